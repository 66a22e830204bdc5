"""Encoders: models that embed images and captions as unit vectors in one space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from polyalign.config.schema import Cache, Recipe
from polyalign.data.pairs import ImageRef
from polyalign.models import feature_cache
from polyalign.models.aligner import Aligner
from polyalign.models.embed import embed_captions, embed_images
from polyalign.utils.errors import UserError
from polyalign.utils.progress import progress

T = TypeVar("T")
Vectors = npt.NDArray[np.float32]

_BATCH = 64


class Encoder(Protocol):
    """A model to evaluate."""

    @property
    def name(self) -> str:
        """The name of the model in results."""

    def encode_image(self, images: Sequence[ImageRef], /) -> Vectors:
        """Return unit vectors ``(N, D)``."""

    def encode_text(self, texts: Sequence[str], lang: str | None = None, /) -> Vectors:
        """Return unit vectors ``(N, D)``; ``lang`` is the language of the texts, where it is known."""


@dataclass(frozen=True)
class Aligned:
    """A finished run as an encoder; the outputs of its frozen layers are cached on disk."""

    name: str
    aligner: Aligner
    recipe: Recipe
    cache: Cache
    folder: Path

    def encode_image(self, images: Sequence[ImageRef]) -> Vectors:
        """Return unit vectors ``(N, D)``; a cache that would exceed its limit is a ``UserError``."""
        cut, _ = self.aligner.cuts()
        return embed_images(self.aligner, feature_cache.image_features(self.aligner.vision, images, cut, self.cache))

    def encode_text(self, texts: Sequence[str], lang: str | None = None) -> Vectors:
        """Return unit vectors ``(N, D)``; a cache that would exceed its limit is a ``UserError``."""
        _, cut = self.aligner.cuts()
        features = feature_cache.caption_features(self.aligner.text, texts, cut, self.cache, lang)
        return embed_captions(self.aligner, features)


@dataclass
class ImageMemory:
    """An encoder that embeds each image once for all languages and benchmarks."""

    encoder: Encoder
    _known: dict[str, Vectors] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the model in results."""
        return self.encoder.name

    def encode_image(self, images: Sequence[ImageRef]) -> Vectors:
        """Return unit vectors ``(N, D)``."""
        keys = [image.key() for image in images]
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in self._known}
        if new:
            self._known.update(zip(new, self.encoder.encode_image(list(new.values())), strict=True))
        return np.stack([self._known[key] for key in keys])

    def encode_text(self, texts: Sequence[str], lang: str | None = None) -> Vectors:
        """Return unit vectors ``(N, D)``."""
        return self.encoder.encode_text(texts, lang)


def aligner_of(encoder: Encoder) -> Aligner:
    """Return the aligner of a run, for tasks that use its towers.

    Raises:
        UserError: the encoder is an external model.
    """
    inner = encoder.encoder if isinstance(encoder, ImageMemory) else encoder
    if not isinstance(inner, Aligned):
        raise UserError(f"{encoder.name} is not a run of polyalign: this task compares the towers of a run")
    return inner.aligner


@torch.no_grad()
def in_batches(items: Sequence[T], encode: Callable[[Sequence[T]], torch.Tensor], task: str) -> Vectors:
    """Return the vectors ``(N, D)`` of N items, encoded in batches; ``task`` names the progress bar of several."""
    parts = []
    for start in range(0, len(items), _BATCH):
        parts.append(encode(items[start : start + _BATCH]).float().cpu().numpy())
        if len(items) > _BATCH:
            progress(task, min(start + _BATCH, len(items)), len(items))
    return np.concatenate(parts)


def device() -> torch.device:
    """Return the accelerator if there is one, else the CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")
