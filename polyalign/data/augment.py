"""Augmented views of images: random resized crops with fixed seeds, so that their features can be cached."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from polyalign.data.pairs import ImageRef, PairTable

MIN_AREA = 0.5
"""Minimum share of the image area kept by a crop, since captions describe the whole image (as in ALBEF and BLIP)."""
MAX_ASPECT = 4 / 3
_TRIES = 10
_VERSION = 1  # part of every view's key: increment with any change to the crops


@dataclass(frozen=True)
class View:
    """A view of an image: a random crop resized to ``px`` by ``px`` and, with ``mirror``, randomly flipped."""

    image: ImageRef
    seed: int
    px: int
    mirror: bool

    def open(self) -> Image.Image:
        """Decode and crop the image; the result is deterministic."""
        picture = self.image.open()
        rng = np.random.default_rng(self.seed)
        box = crop(picture.width, picture.height, rng)
        view = picture.resize((self.px, self.px), Image.Resampling.BICUBIC, box=box)
        if self.mirror and rng.random() < 0.5:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return view

    def key(self) -> str:
        """Return a key of the image and all parameters of the view."""
        return f"{self.image.key()}:view{_VERSION} {self.seed} {self.px} {self.mirror}"


def crop(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Sample a box (left, upper, right, lower) as in torchvision's ``RandomResizedCrop``.

    If no sampled box fits into the image, the largest central box within the aspect limits is returned.
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
    """Return the first view of every image, then the second view of every image, and so on.

    The views of an image depend on its id and the seed, not on the other images or the file location.
    """
    return tuple(
        View(image, _seed(seed, image_id, number), px, mirror)
        for number in range(count)
        for image_id, image in zip(table.image_ids, table.images, strict=True)
    )


def _seed(seed: int, image_id: str, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {number} {image_id}".encode()).digest()[:8], "big")
