"""Images and captions of a table as unit vectors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from polyalign import cache
from polyalign.aligner import Aligner
from polyalign.cache import Store
from polyalign.pairs import PairTable
from polyalign.process import Spent
from polyalign.progress import Progress
from polyalign.recipe import Cache


@dataclass(frozen=True)
class Stores:
    """A table as the aligner's trainable part takes it."""

    images: Store
    captions: Store
    image_of: npt.NDArray[np.int64]

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


def prepare(aligner: Aligner, table: PairTable, config: Cache, progress: Progress | None = None) -> Stores:
    """Compute what is frozen, once, or find it in the cache.

    Raises:
        UserError: the cache would grow over its limit.
    """
    vision_cut, text_cut = aligner.cuts()
    return Stores(
        cache.images(aligner.vision, table.images, vision_cut, config, progress),
        cache.captions(aligner.text, table.captions, text_cut, config, progress),
        table.image_of,
    )


def embed_stores(aligner: Aligner, stores: Stores, batch_size: int = 256) -> Embeddings:
    """Run the trainable part in evaluation mode."""
    images = embed_images(aligner, stores.images, batch_size)
    return Embeddings(images, embed_captions(aligner, stores.captions, batch_size), stores.image_of)


@torch.no_grad()
def embed_images(aligner: Aligner, store: Store, batch_size: int = 256) -> npt.NDArray[np.float32]:
    """Give ``(I, D)`` unit vectors."""
    aligner.eval()
    images = np.empty((len(store), aligner.vision_projection.out_features), np.float32)
    for rows in _batches(np.arange(len(images)), batch_size):
        x = store.batch(rows, aligner.logit_scale.device)
        images[rows] = aligner.encode_image(x, store.cut).float().cpu().numpy()
    return images


@torch.no_grad()
def embed_captions(aligner: Aligner, store: Store, batch_size: int = 256) -> npt.NDArray[np.float32]:
    """Give ``(C, D)`` unit vectors; captions go sorted by length, so that little is padded."""
    aligner.eval()
    captions = np.empty((len(store), aligner.vision_projection.out_features), np.float32)
    order = np.arange(len(captions)) if store.offsets is None else np.argsort(np.diff(store.offsets), kind="stable")
    for rows in _batches(order, batch_size):
        x = store.batch(rows, aligner.logit_scale.device)
        captions[rows] = aligner.encode_text(x, store.cut).float().cpu().numpy()
    return captions


def embed(
    aligner: Aligner,
    table: PairTable,
    *,
    batch_size: int = 256,
    config: Cache | None = None,
    progress: Progress | None = None,
) -> Embeddings:
    """Embed a table from its images and captions."""
    return embed_stores(aligner, prepare(aligner, table, config or Cache(), progress), batch_size)


def _batches(order: npt.NDArray[np.int64], size: int) -> list[npt.NDArray[np.int64]]:
    return [order[start : start + size] for start in range(0, len(order), size)]
