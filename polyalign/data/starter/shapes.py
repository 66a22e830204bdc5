"""The silhouettes of the starter world's kinds: polygons in a box from (-1, -1), top left, to (1, 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

Shade = Literal["body", "dark", "light"]
Point = tuple[float, float]


@dataclass(frozen=True)
class Patch:
    """A filled polygon ``(N, 2)`` in one of the three shades that an object's colour has."""

    shade: Shade
    points: npt.NDArray[np.float64]


def _poly(*points: Point, shade: Shade = "body") -> list[Patch]:
    return [Patch(shade, np.array(points, dtype=np.float64))]


def _box(left: float, top: float, right: float, bottom: float, shade: Shade = "body") -> list[Patch]:
    return _poly((left, top), (right, top), (right, bottom), (left, bottom), shade=shade)


def _arc(centre: Point, radii: Point, start: float, end: float, steps: int = 16) -> list[Point]:
    """Walk along an ellipse, degrees clockwise from the right."""
    angles = (math.radians(start + (end - start) * i / steps) for i in range(steps + 1))
    return [(centre[0] + radii[0] * math.cos(a), centre[1] + radii[1] * math.sin(a)) for a in angles]


def _oval(x: float, y: float, rx: float, ry: float | None = None, shade: Shade = "body") -> list[Patch]:
    return _poly(*_arc((x, y), (rx, rx if ry is None else ry), 0, 360, 20), shade=shade)


def _stroke(points: Sequence[Point], width: float, shade: Shade = "body") -> list[Patch]:
    """Draw a line of some width as one band, its corners mitred."""
    line = np.array(points, dtype=np.float64)
    along = np.gradient(line, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    aside = np.stack([-along[:, 1], along[:, 0]], axis=1) * width / 2
    return [Patch(shade, np.concatenate([line + aside, (line - aside)[::-1]]))]


def _spokes(count: int, outer: float, inner: float) -> list[Point]:
    """Go round the corners of a star, the first pointing up."""
    radii = [outer, inner] * count
    angles = [math.pi * (i / count - 0.5) for i in range(2 * count)]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


def _petals() -> list[Patch]:
    centres = [(0.5 * math.cos(a), -0.38 + 0.5 * math.sin(a)) for a in np.linspace(0, 2 * math.pi, 5, endpoint=False)]
    return [patch for x, y in centres for patch in _oval(x, y, 0.3)]


SHAPES: Final[dict[str, tuple[Patch, ...]]] = {
    "house": (
        *_poly((-0.95, -0.15), (0, -0.95), (0.95, -0.15), shade="dark"),
        *_box(-0.72, -0.15, 0.72, 0.9),
        *_box(-0.16, 0.3, 0.2, 0.9, "light"),
    ),
    "tree": (
        *_box(-0.17, 0.3, 0.17, 1.0, "dark"),
        *_poly((0, -1.0), (0.5, -0.3), (0.28, -0.3), (0.8, 0.45), (-0.8, 0.45), (-0.28, -0.3), (-0.5, -0.3)),
    ),
    "car": (
        *_poly((-0.5, -0.5), (0.3, -0.5), (0.58, -0.02), (1, 0.05), (1, 0.45), (-1, 0.45), (-1, -0.05), (-0.72, -0.05)),
        *_poly((-0.4, -0.36), (0.2, -0.36), (0.38, -0.02), (-0.55, -0.02), shade="light"),
        *_oval(-0.5, 0.45, 0.27, shade="dark"),
        *_oval(0.52, 0.45, 0.27, shade="dark"),
    ),
    "fish": (
        *_poly((0.35, 0), (1.0, -0.55), (0.85, 0), (1.0, 0.55)),
        *_oval(-0.2, 0, 0.78, 0.46),
        *_poly((-0.2, -0.44), (0.2, -0.7), (0.25, -0.36), shade="dark"),
        *_oval(-0.62, -0.1, 0.1, shade="light"),
    ),
    "bird": (
        *_poly((-0.6, -0.55), (-1.0, -0.38), (-0.6, -0.3), shade="dark"),
        *_poly((0.35, -0.05), (1.0, -0.3), (0.9, 0.1), (0.4, 0.35)),
        *_oval(0.02, 0.12, 0.55, 0.4),
        *_oval(-0.48, -0.42, 0.28),
        *_poly((-0.2, 0.0), (0.55, -0.75), (0.4, 0.15), shade="dark"),
        *_stroke([(-0.05, 0.45), (-0.1, 0.95)], 0.12, "dark"),
        *_stroke([(0.2, 0.45), (0.2, 0.95)], 0.12, "dark"),
    ),
    "star": tuple(_poly(*_spokes(5, 1.0, 0.42))),
    "flower": (
        *_stroke([(0, 0), (0, 1.0)], 0.14, "dark"),
        *_poly((0, 0.75), (0.55, 0.4), (0.5, 0.65), shade="dark"),
        *_petals(),
        *_oval(0, -0.38, 0.26, shade="light"),
    ),
    "cup": (
        *_stroke(_arc((0.5, 0.0), (0.42, 0.38), -100, 100), 0.2),
        *_poly((-0.8, -0.6), (0.6, -0.6), (0.45, 0.7), (-0.65, 0.7)),
        *_oval(-0.1, -0.6, 0.7, 0.16, "dark"),
    ),
    "ball": (
        *_oval(0, 0, 0.85),
        *_stroke(_arc((-0.95, 0), (0.75, 0.95), -52, 52), 0.14, "light"),
        *_stroke(_arc((0.95, 0), (0.75, 0.95), 128, 232), 0.14, "light"),
    ),
    "boat": (
        *_stroke([(0, -0.95), (0, 0.4)], 0.12, "dark"),
        *_poly((0.12, -0.9), (0.8, 0.2), (0.12, 0.2), shade="light"),
        *_poly((-0.1, -0.7), (-0.1, 0.2), (-0.65, 0.2), shade="light"),
        *_poly((-1.0, 0.35), (1.0, 0.35), (0.6, 0.9), (-0.6, 0.9)),
    ),
    "book": (
        *_poly((0, -0.45), (0.95, -0.65), (0.95, 0.5), (0, 0.75)),
        *_poly((0, -0.45), (-0.95, -0.65), (-0.95, 0.5), (0, 0.75)),
        *_poly((0.12, -0.35), (0.8, -0.5), (0.8, 0.35), (0.12, 0.53), shade="light"),
        *_poly((-0.12, -0.35), (-0.8, -0.5), (-0.8, 0.35), (-0.12, 0.53), shade="light"),
    ),
    "chair": (
        *_box(-0.6, -1.0, -0.32, 0.1),
        *_box(-0.6, 0.0, 0.6, 0.26),
        *_box(-0.6, 0.26, -0.38, 1.0, "dark"),
        *_box(0.38, 0.26, 0.6, 1.0, "dark"),
    ),
    "clock": (
        *_poly((-0.55, 0.6), (-0.3, 0.7), (-0.6, 1.0), shade="dark"),
        *_poly((0.55, 0.6), (0.3, 0.7), (0.6, 1.0), shade="dark"),
        *_oval(0, 0, 0.88),
        *_oval(0, 0, 0.6, shade="light"),
        *_stroke([(0, 0.06), (0, -0.5)], 0.14, "dark"),
        *_stroke([(-0.06, 0), (0.4, 0)], 0.14, "dark"),
    ),
    "key": (
        *_stroke(_arc((-0.58, 0), (0.3, 0.3), 0, 360, 20), 0.24),
        *_box(-0.25, -0.11, 1.0, 0.11),
        *_box(0.5, 0.1, 0.66, 0.48),
        *_box(0.84, 0.1, 1.0, 0.48),
    ),
    "hat": (
        *_poly((-0.55, 0.4), (-0.5, -0.75), (0.5, -0.75), (0.55, 0.4)),
        *_box(-0.54, 0.05, 0.54, 0.32, "dark"),
        *_oval(0, 0.45, 1.0, 0.2),
    ),
    "umbrella": (
        *_stroke([(0, -0.1), (0, 0.75), *_arc((0.17, 0.75), (0.17, 0.2), 180, 0, 8)], 0.13, "dark"),
        *_poly(*_arc((0, 0), (1.0, 0.9), 180, 360), (0.66, -0.16), (0.33, 0), (0, -0.16), (-0.33, 0), (-0.66, -0.16)),
    ),
    "banana": (
        *_poly(*_arc((0, -0.55), (0.98, 1.2), 8, 172), *_arc((0, -0.75), (0.78, 0.85), 165, 15)),
        *_box(-1.0, -0.62, -0.74, -0.3, "dark"),
    ),
    "cat": (
        *_stroke([(0.5, 0.7), (0.85, 0.55), (0.9, 0.1), (0.75, -0.15)], 0.18),
        *_oval(0.08, 0.5, 0.52, 0.5),
        *_poly((-0.72, -0.3), (-0.78, -1.0), (-0.35, -0.68), (-0.02, -0.68), (0.4, -1.0), (0.35, -0.3)),
        *_oval(-0.2, -0.3, 0.55, 0.42),
        *_oval(-0.4, -0.36, 0.1, shade="light"),
        *_oval(0.02, -0.36, 0.1, shade="light"),
    ),
    "moon": tuple(_poly(*_arc((0.1, 0), (0.95, 0.95), 60, 300), *_arc((0.45, 0), (0.72, 0.74), 285, 75))),
    "bottle": (
        *_box(-0.4, 0.0, 0.4, 1.0),
        *_poly((-0.14, -0.7), (0.14, -0.7), (0.14, -0.35), (0.4, 0.02), (-0.4, 0.02), (-0.14, -0.35)),
        *_box(-0.18, -1.0, 0.18, -0.72, "dark"),
        *_box(-0.4, 0.3, 0.4, 0.68, "light"),
    ),
    "knife": (
        *_poly((-1.0, 0.12), (-0.75, -0.2), (0.25, -0.2), (0.25, 0.2), (-0.9, 0.2), shade="light"),
        *_box(0.2, -0.26, 0.32, 0.32, "dark"),
        *_box(0.3, -0.17, 1.0, 0.2),
    ),
    "ladder": (
        *(patch for y in (-0.7, -0.25, 0.2, 0.65) for patch in _box(-0.4, y - 0.08, 0.4, y + 0.08)),
        *_box(-0.5, -1.0, -0.28, 1.0),
        *_box(0.28, -1.0, 0.5, 1.0),
    ),
    "mushroom": (
        *_poly((-0.22, 0.0), (0.22, 0.0), (0.32, 0.95), (-0.32, 0.95), shade="light"),
        *_poly(*_arc((0, 0.05), (0.95, 0.95), 180, 360)),
        *_oval(-0.4, -0.3, 0.15, shade="light"),
        *_oval(0.3, -0.45, 0.17, shade="light"),
    ),
    "table": (
        *_box(-0.85, -0.3, -0.62, 0.9, "dark"),
        *_box(0.62, -0.3, 0.85, 0.9, "dark"),
        *_box(-1.0, -0.5, 1.0, -0.2),
    ),
}
