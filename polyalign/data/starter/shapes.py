"""The silhouettes of the starter world's kinds, read from ``shapes.toml``, which explains the format."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Patch:
    """A filled polygon ``(N, 2)`` in a box from (-1, -1) to (1, 1), in the shade "body", "dark" or "light"."""

    shade: str
    points: npt.NDArray[np.float64]


def _arc(x: float, y: float, rx: float, ry: float, start: float, end: float, steps: int) -> Points:
    angles = (math.radians(start + (end - start) * i / steps) for i in range(steps + 1))
    return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles]


def _points(given: list[Any]) -> Points:
    """Replace each arc in a list of points by its points."""
    return [xy for item in given for xy in (_arc(*item["arc"]) if isinstance(item, dict) else [tuple(item)])]


def _band(points: Points, width: float) -> npt.NDArray[np.float64]:
    """Return the outline of a line of this width, with mitred corners."""
    line = np.array(points, dtype=np.float64)
    along = np.gradient(line, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    aside = np.stack([-along[:, 1], along[:, 0]], axis=1) * width / 2
    return np.concatenate([line + aside, (line - aside)[::-1]])


def _outline(patch: dict[str, Any]) -> Points | npt.NDArray[np.float64]:
    match patch:
        case {"polygon": points}:
            return _points(points)
        case {"box": [left, top, right, bottom]}:
            return [(left, top), (right, top), (right, bottom), (left, bottom)]
        case {"oval": [x, y, rx, ry]}:
            return _arc(x, y, rx, ry, 0, 360, 20)
        case {"line": points, "width": width}:
            return _band(_points(points), width)
        case {"star": [count, outer, inner]}:
            angles = [math.pi * (i / count - 0.5) for i in range(2 * count)]
            return [(r * math.cos(a), r * math.sin(a)) for r, a in zip([outer, inner] * count, angles, strict=True)]
    raise ValueError(f"not a patch: {patch}")


SHAPES: Final = {
    kind: tuple(Patch(patch.get("shade", "body"), np.array(_outline(patch), np.float64)) for patch in patches)
    for kind, patches in tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")).items()
}
