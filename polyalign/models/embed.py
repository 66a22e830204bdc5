"""Images and captions of a table as unit vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from polyalign.config.schema import Cache, Data
from polyalign.data.augment import of
from polyalign.data.pairs import ImageRef, PairTable
from polyalign.models.aligner import Aligner
from polyalign.models.feature_cache import CachedFeatures, caption_features, image_features
from polyalign.utils.process import Spent

_OF_LIKE_LENGTH = 64


@dataclass(frozen=True)
class PairFeatures:
    """A table as the aligner's trainable part takes it.

    ``images`` holds the first of ``views`` views of all images, then the second of all, and so on.
    """

    images: CachedFeatures
    captions: CachedFeatures
    image_of: npt.NDArray[np.int64]
    views: int = 1

    def image_rows(self, pairs: npt.NDArray[np.int64], epoch: int) -> npt.NDArray[np.int64]:
        """Return the rows of the images of these pairs, in the view of this epoch."""
        return self.image_of[pairs] + epoch % self.views * (len(self.images) // self.views)

    @property
    def spent(self) -> Spent:
        """What it cost to fill both."""
        return self.images.spent + self.captions.spent


@dataclass(frozen=True)
class Embeddings:
    """Float32 unit vectors: ``images (I, D)``, ``captions (C, D)``, and each caption's image ``image_of (C,)``."""

    images: npt.NDArray[np.float32]
    captions: npt.NDArray[np.float32]
    image_of: npt.NDArray[np.int64]


def prepare(aligner: Aligner, table: PairTable, config: Cache, data: Data | None = None) -> PairFeatures:
    """Compute what is frozen, once, or find it in the cache; with the views that ``data`` asks for, if any.

    Raises:
        UserError: the cache would grow over its limit.
    """
    vision_cut, text_cut = aligner.cuts()
    images: Sequence[ImageRef] = table.images
    if data is not None and data.views is not None:
        how = aligner.vision.preprocessing
        # At this size the tower's own preprocessing has nothing left to resize.
        images = of(table, data.views, int(how.image_px / how.crop_pct), data.data_seed, mirror=data.mirror)
    return PairFeatures(
        image_features(aligner.vision, images, vision_cut, config),
        caption_features(aligner.text, table.captions, text_cut, config),
        table.image_of,
        len(images) // len(table.images),
    )


def embed_features(aligner: Aligner, features: PairFeatures, batch_size: int = 256) -> Embeddings:
    """Run the trainable part in evaluation mode."""
    images = embed_images(aligner, features.images, batch_size)
    return Embeddings(images, embed_captions(aligner, features.captions, batch_size), features.image_of)


@torch.no_grad()
def embed_images(aligner: Aligner, store: CachedFeatures, batch_size: int = 256) -> npt.NDArray[np.float32]:
    """Return ``(I, D)`` unit vectors."""
    aligner.eval()
    images = np.empty((len(store), aligner.vision_projection.out_features), np.float32)
    for rows in _batches(np.arange(len(images)), batch_size):
        images[rows] = _encode(aligner, aligner.encode_image, store, rows)
    return images


@torch.no_grad()
def embed_captions(aligner: Aligner, store: CachedFeatures, batch_size: int = 256) -> npt.NDArray[np.float32]:
    """Return ``(C, D)`` unit vectors; captions go sorted by length, so that little is padded."""
    aligner.eval()
    captions = np.empty((len(store), aligner.vision_projection.out_features), np.float32)
    for rows in _batches(store.by_length(np.arange(len(captions))), batch_size):
        captions[rows] = _encode(aligner, aligner.encode_text, store, rows)
    return captions


def encode_captions(aligner: Aligner, store: CachedFeatures, rows: npt.NDArray[np.int64]) -> torch.Tensor:
    """Run the trainable part on these captions, with gradients: ``(B, D)``, in the order of ``rows``.

    A batch is padded to its longest caption, half as long again as the mean. On a processor, where padding costs what
    words cost, the captions go through in parts of like length. The batch stays what it is, and so do its negatives.
    """
    device = aligner.logit_scale.device
    if store.offsets is None or device.type != "cpu":
        return aligner.encode_text(store.batch(rows, device), store.cut)
    by_length = store.by_length(rows)
    parts = np.array_split(by_length, max(1, len(rows) // _OF_LIKE_LENGTH))
    encoded = torch.cat([aligner.encode_text(store.batch(rows[part], device), store.cut) for part in parts])
    return encoded[torch.from_numpy(np.argsort(by_length))]


def embed(aligner: Aligner, table: PairTable, *, batch_size: int = 256, config: Cache | None = None) -> Embeddings:
    """Embed a table from its images and captions."""
    return embed_features(aligner, prepare(aligner, table, config or Cache()), batch_size)


def _encode(
    aligner: Aligner, encode: Callable[[Any, int], torch.Tensor], store: CachedFeatures, rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    device = aligner.logit_scale.device
    with torch.autocast(device.type, torch.bfloat16, enabled=store.in_bf16):
        unit = encode(store.batch(rows, device), store.cut)
    if store.in_bf16:
        unit = F.normalize(unit.float(), dim=-1)  # of unit length to bf16's two digits only
    found: npt.NDArray[np.float32] = unit.float().cpu().numpy()
    return found


def _batches(order: npt.NDArray[np.int64], size: int) -> list[npt.NDArray[np.int64]]:
    return [order[start : start + size] for start in range(0, len(order), size)]
