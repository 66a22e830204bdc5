"""Draw the starter world: the facts of a scene become a picture, always the same one for the same scene."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from polyalign.data.starter.shapes import SHAPES
from polyalign.data.starter.world import BACKGROUNDS, COLORS, COUNTS, KINDS, RELATIONS, SIZES, Scene, Thing

DRAWING_VERSION: Final = 1
"""Part of the key of every image: increase it when any pixel changes."""

Floats = npt.NDArray[np.float64]
Paint = tuple[int, int, int]

# Lengths are in sixty-fourths of the picture's side.
_SIDE: Final = 64.0
_RADIUS: Final = {"small": (6.8, 8.4), "large": (10.5, 12.8)}
_OVERSAMPLING: Final = 2
_NOISE: Final = 7.0

_PAINTS: Final[dict[str, Paint]] = {
    "red": (208, 32, 38), "green": (36, 140, 52), "blue": (38, 66, 200), "yellow": (246, 216, 36),
    "black": (26, 26, 30), "white": (246, 246, 246), "brown": (118, 70, 34), "pink": (246, 138, 184),
    "orange": (242, 128, 22), "grey": (134, 134, 140),
}  # fmt: skip
_GROUNDS: Final[dict[str, tuple[Paint, Paint]]] = {  # at the top and at the bottom
    "grass": ((152, 196, 104), (116, 170, 78)), "sand": ((236, 214, 164), (220, 190, 132)),
    "water": ((112, 176, 204), (62, 128, 172)), "snow": ((222, 230, 240), (242, 245, 250)),
    "sky": ((128, 186, 240), (196, 222, 248)),
}  # fmt: skip


def sample_scene(rng: np.random.Generator, *, held_out: bool | None = None) -> Scene:
    """Sample the facts of a scene: two things of different kinds, all values of a fact equally likely.

    With ``held_out`` true at least one thing has a held-out combination of kind and colour, with false none has; None
    leaves it to chance (about three scenes in ten have one).
    """
    while True:
        first, second = rng.choice(len(KINDS), 2, replace=False)
        scene = Scene(
            background=BACKGROUNDS[rng.integers(len(BACKGROUNDS))],
            things=(_sample_thing(rng, KINDS[first]), _sample_thing(rng, KINDS[second])),
            relation=RELATIONS[rng.integers(len(RELATIONS))],
            seed=int(rng.integers(2**31)),
        )
        if held_out is None or scene.is_held_out() == held_out:
            return scene


def _sample_thing(rng: np.random.Generator, kind: str) -> Thing:
    color, size, count = rng.integers((len(COLORS), len(SIZES), len(COUNTS)))
    return Thing(kind, COLORS[color], SIZES[size], COUNTS[count])


def draw(scene: Scene, size: int = 64) -> Image.Image:
    """Draw a scene as an RGB picture of ``size`` by ``size`` pixels.

    The things stand on both sides of the middle, as the relation says, each a row of equal objects that may overlap.
    ``scene.seed`` determines what captions do not mention: positions, tilts, light, noise, clutter, and occlusion.
    """
    rng = np.random.default_rng(scene.seed)
    canvas = _Canvas(scene.background, size, rng)
    canvas.clutter(int(rng.integers(3, 8)))
    places = _places(scene, rng)
    for index in rng.permutation(len(places)):
        thing, centre, radius = places[index]
        canvas.object(thing.kind, thing.color, centre, radius)
    if rng.random() < 0.35:
        _, centre, radius = places[rng.integers(len(places))]
        canvas.cover(centre, radius)
    return canvas.finish()


def draw_object(kind: str, color: str, background: str, radius: float, seed: int, size: int = 64) -> Image.Image:
    """Draw one object near the middle, ``radius`` in sixty-fourths of the picture's side."""
    rng = np.random.default_rng(seed)
    canvas = _Canvas(background, size, rng)
    canvas.clutter(int(rng.integers(0, 5)))
    centre = _SIDE / 2 + rng.uniform(-1, 1, 2) * max(0.0, _SIDE / 2 - radius) * 0.5
    canvas.object(kind, color, centre, radius)
    if rng.random() < 0.2:
        canvas.cover(centre, radius)
    return canvas.finish()


def _places(scene: Scene, rng: np.random.Generator) -> list[tuple[Thing, Floats, float]]:
    """Return the centre and the radius of each object."""
    across = 0 if scene.relation in ("left", "right") else 1
    first_is_near = scene.relation in ("left", "above")
    places = []
    for thing, near in zip(scene.things, (first_is_near, not first_is_near), strict=True):
        radius = rng.uniform(*_RADIUS[thing.size])
        middle = np.empty(2)
        middle[across] = (0.27 if near else 0.73) * _SIDE + rng.uniform(-2.5, 2.5)
        gap = min(radius * rng.uniform(1.7, 2.3), (_SIDE - 2 * radius) / max(1, thing.count - 1))
        free = (_SIDE - gap * (thing.count - 1)) / 2 - radius
        middle[1 - across] = _SIDE / 2 + rng.uniform(-1, 1) * min(max(free, 0.0), 14.0)
        for number in range(thing.count):
            centre = middle + rng.uniform(-2, 2, 2)
            centre[1 - across] += gap * (number - (thing.count - 1) / 2)
            places.append((thing, centre, radius * rng.uniform(0.93, 1.07)))
    return places


@dataclass(frozen=True)
class DrawnImage:
    """A picture that is drawn when it is opened; ``name`` contains everything that determines the pixels."""

    name: str
    draw: Callable[[], Image.Image] = field(compare=False)

    def open(self) -> Image.Image:
        """Draw the picture."""
        return self.draw()

    def key(self) -> str:
        """Return the name."""
        return self.name


class _Canvas:
    """An unfinished picture, larger than the result so that edges become smooth."""

    def __init__(self, background: str, size: int, rng: np.random.Generator) -> None:
        self.rng, self.scale = rng, size * _OVERSAMPLING / _SIDE
        top, bottom = (np.array(paint) + rng.uniform(-8, 8, 3) for paint in _GROUNDS[background])
        self.dim, self.bright = _tone(bottom, 0.86), _tone(top, 1.1)
        column = np.linspace(top, bottom, size * _OVERSAMPLING).clip(0, 255).astype(np.uint8)
        self.image = Image.fromarray(column[:, None]).resize((size * _OVERSAMPLING,) * 2, Image.Resampling.NEAREST)
        self.pen = ImageDraw.Draw(self.image)
        self._texture(background)

    def _texture(self, background: str) -> None:
        """Draw the texture of the ground, which distinguishes blue water from blue sky and pale sand from snow."""
        for x, y in self.rng.uniform(0, _SIDE, (9, 2)):
            if background == "grass":
                self._line([(x, y), (x + 0.5, y - 3.5)], self.dim)
                self._line([(x + 1, y), (x + 2.5, y - 3)], self.bright)
            elif background == "sand":
                self._blob((x, y), (0.9, 0.7), self.dim)
            elif background == "water":
                self._line([(x - 4, y), (x - 2, y - 1.2), (x, y), (x + 2, y - 1.2), (x + 4, y)], self.bright)
            elif background == "snow":
                self._blob((x, y), (5.0, 0.9), self.dim)
            elif y < _SIDE / 2:
                self._blob((x, y), (6.0, 2.2), (244, 248, 252))

    def clutter(self, count: int) -> None:
        """Scatter pebbles and leaves, which no caption mentions."""
        for x, y, rx, ry, shade in self.rng.uniform(0, 1, (count, 5)):
            base = np.array((150, 140, 120) if shade < 0.6 else (96, 122, 70), dtype=np.float64)
            self._blob((x * _SIDE, y * _SIDE), (1 + 1.4 * rx, 0.8 + ry), _tone(base, 0.7 + 0.6 * shade))

    def object(self, kind: str, color: str, centre: Floats, radius: float) -> None:
        """Draw an object, slightly tilted and stretched, mirrored with probability 0.5."""
        rng = self.rng
        base = np.array(_PAINTS[color]) + rng.uniform(-14, 14, 3)
        shades = {
            "body": _tone(base, 1.0),
            # Very light colours are darkened less.
            "dark": _tone(base, 0.62 if base.max() < 235 or base.min() < 120 else 0.8),
            # Half way to white; white itself becomes light grey.
            "light": _tone(base, 0.87) if base.min() > 200 else _tone(base + (255 - base) * 0.5, 1.0),
        }
        # Dark, or lighter for black, so that it stands out from any ground.
        edge = _tone(base + 60, 1.0) if base.max() < 60 else _tone(base, 0.45)
        angle = rng.normal(0, 0.16)
        stretch = np.array([rng.uniform(0.88, 1.1) * rng.choice((-1, 1)), rng.uniform(0.88, 1.1)])
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        matrix = stretch[:, None] * turn * radius * self.scale
        for patch in SHAPES[kind]:
            points = patch.points @ matrix + centre * self.scale
            self.pen.polygon(points.ravel().tolist(), fill=shades[patch.shade], outline=edge)

    def cover(self, centre: Floats, radius: float) -> None:
        """Hide a part of an object behind a blob in the colour of the ground."""
        angle = self.rng.uniform(0, 2 * np.pi)
        x, y = centre + 0.75 * radius * np.array([np.cos(angle), np.sin(angle)])
        self._blob((x, y), (radius * self.rng.uniform(0.45, 0.75), radius * self.rng.uniform(0.4, 0.6)), self.dim)

    def finish(self) -> Image.Image:
        """Reduce to the final size, and add brightness and sensor noise."""
        pixels = np.asarray(self.image.reduce(_OVERSAMPLING), dtype=np.float32)
        light = np.float32(self.rng.uniform(0.82, 1.08))
        noise = self.rng.standard_normal(pixels.shape, dtype=np.float32)
        pixels = pixels * light + np.float32(_NOISE) * noise
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))

    def _blob(self, centre: tuple[float, float], radii: tuple[float, float], paint: Paint) -> None:
        (x, y), (rx, ry) = centre, radii
        box = [(x - rx) * self.scale, (y - ry) * self.scale, (x + rx) * self.scale, (y + ry) * self.scale]
        self.pen.ellipse(box, fill=paint)

    def _line(self, points: list[tuple[float, float]], paint: Paint) -> None:
        self.pen.line([(x * self.scale, y * self.scale) for x, y in points], fill=paint, width=round(self.scale))


def _tone(base: Floats, factor: float) -> Paint:
    red, green, blue = (base * factor).clip(0, 255).astype(int).tolist()
    return red, green, blue
