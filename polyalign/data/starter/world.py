"""The facts of the starter world: what a scene can contain, independent of how it is drawn or described."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

KINDS: Final = (
    "house", "tree", "car", "fish", "bird", "star", "flower", "cup", "ball", "boat", "book", "chair",
    "clock", "key", "hat", "umbrella", "banana", "cat", "moon", "bottle", "knife", "ladder", "mushroom", "table",
)  # fmt: skip
COLORS: Final = ("red", "green", "blue", "yellow", "black", "white", "brown", "pink", "orange", "grey")
SIZES: Final = ("small", "large")
COUNTS: Final = (1, 2, 3)
RELATIONS: Final = ("left", "right", "above", "below")
BACKGROUNDS: Final = ("grass", "sand", "water", "snow", "sky")

OPPOSITE: Final = {"left": "right", "right": "left", "above": "below", "below": "above"}

# 36 of the 240 combinations of kind and colour, evenly spread: one or two for each kind, three or four for each colour.
# Only test scenes have them, and no image that a tower is pretrained or aligned on.
HELD_OUT: Final = frozenset(
    [(kind, COLORS[(7 * i + 3) % 10]) for i, kind in enumerate(KINDS)]
    + [(kind, COLORS[(9 * i + 4) % 10]) for i, kind in enumerate(KINDS[::2])]
)


@dataclass(frozen=True)
class Thing:
    """One to three equal objects next to each other."""

    kind: str
    color: str
    size: str
    count: int


@dataclass(frozen=True)
class Scene:
    """Two things on a background; ``things[0]`` stands in ``relation`` to ``things[1]`` (left of it, above it, ...).

    ``seed`` determines how the scene is drawn (jitter, occlusion, noise, clutter), not what it contains.
    """

    background: str
    things: tuple[Thing, Thing]
    relation: str
    seed: int

    def facts(self) -> tuple[str, tuple[Thing, Thing], str]:
        """Return the facts of the scene; "a cup left of a cat" and "a cat right of a cup" are equal."""
        if self.relation in ("right", "below"):
            return self.background, (self.things[1], self.things[0]), OPPOSITE[self.relation]
        return self.background, self.things, self.relation

    def is_held_out(self) -> bool:
        """Return whether an object of the scene has a held-out combination of kind and colour."""
        return any((thing.kind, thing.color) in HELD_OUT for thing in self.things)
