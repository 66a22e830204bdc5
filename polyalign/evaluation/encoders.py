"""What can be evaluated: anything that turns images and captions into unit vectors of one space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from polyalign.config.recipe import Cache
from polyalign.data.pairs import ImageRef, PairTable
from polyalign.models import feature_cache as cache
from polyalign.models.aligner import Aligner
from polyalign.models.embed import embed_captions, embed_images

Vectors = npt.NDArray[np.float32]


class Encoder(Protocol):
    """A model to evaluate."""

    @property
    def name(self) -> str:
        """Say in results which."""
        ...

    def encode_image(self, images: Sequence[ImageRef]) -> Vectors:
        """Give unit vectors ``(I, D)``."""
        ...

    def encode_text(self, captions: Sequence[str]) -> Vectors:
        """Give unit vectors ``(C, D)``."""
        ...


@dataclass(frozen=True)
class Aligned:
    """A trained run as an encoder; what its frozen layers give is cached."""

    name: str
    aligner: Aligner
    cache: Cache

    def encode_image(self, images: Sequence[ImageRef]) -> Vectors:
        """Give unit vectors ``(I, D)``.

        Raises:
            UserError: the cache would grow over its limit.
        """
        cut, _ = self.aligner.cuts()
        return embed_images(self.aligner, cache.image_features(self.aligner.vision, images, cut, self.cache))

    def encode_text(self, captions: Sequence[str]) -> Vectors:
        """Give unit vectors ``(C, D)``.

        Raises:
            UserError: the cache would grow over its limit.
        """
        _, cut = self.aligner.cuts()
        return embed_captions(self.aligner, cache.caption_features(self.aligner.text, captions, cut, self.cache))


class Gallery:
    """Photos, embedded once however many languages and benchmarks describe them."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self._known: dict[str, npt.NDArray[np.float32]] = {}

    def embed(self, table: PairTable) -> tuple[Vectors, Vectors]:
        """Give the unit vectors of a table's images ``(I, D)`` and captions ``(C, D)``."""
        return self.images(table.images), self.encoder.encode_text(table.captions)

    def images(self, images: Sequence[ImageRef]) -> Vectors:
        """Give the unit vectors of images ``(I, D)``."""
        keys = [image.key() for image in images]
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in self._known}
        if new:
            vectors = self.encoder.encode_image(list(new.values()))
            self._known.update(zip(new, vectors, strict=True))
        return np.stack([self._known[key] for key in keys])
