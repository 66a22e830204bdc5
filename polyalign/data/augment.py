"""Several augmented views an image: random resized crops, each fixed by a seed so that it can be computed once."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from polyalign.data.pairs import ImageRef, PairTable

MIN_AREA = 0.5
"""Of the picture, that a crop keeps; captions speak of all of it (ALBEF and BLIP crop so)."""
MAX_ASPECT = 4 / 3
_TRIES = 10
_VERSION = 1  # part of every view's key: raise it with any change of the crops


@dataclass(frozen=True)
class View:
    """One view of an image: a crop drawn by ``seed``, stretched to ``px`` by ``px``; with ``mirror`` flipped or not."""

    image: ImageRef
    seed: int
    px: int
    mirror: bool

    def open(self) -> Image.Image:
        """Decode the image and crop it, the same each time."""
        picture = self.image.open()
        rng = np.random.default_rng(self.seed)
        box = crop(picture.width, picture.height, rng)
        view = picture.resize((self.px, self.px), Image.Resampling.BICUBIC, box=box)
        if self.mirror and rng.random() < 0.5:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return view

    def key(self) -> str:
        """Name the view by its image and all that is done to it."""
        return f"{self.image.key()}:view{_VERSION} {self.seed} {self.px} {self.mirror}"


def crop(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw a box (left, upper, right, lower) inside the picture, as torchvision's ``RandomResizedCrop`` does.

    A picture too long for a box of that area and shape gives the largest such box in its middle.
    """
    for _ in range(_TRIES):
        area = width * height * rng.uniform(MIN_AREA, 1)
        aspect = math.exp(rng.uniform(-math.log(MAX_ASPECT), math.log(MAX_ASPECT)))
        across, down = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < across <= width and 0 < down <= height:
            left, upper = int(rng.integers(width - across + 1)), int(rng.integers(height - down + 1))
            return left, upper, left + across, upper + down
    across, down = min(width, round(height * MAX_ASPECT)), min(height, round(width * MAX_ASPECT))
    left, upper = (width - across) // 2, (height - down) // 2
    return left, upper, left + across, upper + down


def of(table: PairTable, count: int, px: int, seed: int, *, mirror: bool) -> tuple[View, ...]:
    """Return the first view of every image, then the second of every image, and so on.

    An image's views hang on its id, not on which others are in the table nor on where its file lies.
    """
    return tuple(
        View(image, _seed(seed, image_id, number), px, mirror)
        for number in range(count)
        for image_id, image in zip(table.image_ids, table.images, strict=True)
    )


def _seed(seed: int, image_id: str, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {number} {image_id}".encode()).digest()[:8], "big")
