"""Images and captions of a table as unit vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import torch.nn.functional as F

from polyalign.config.schema import Cache, Data
from polyalign.data.augment import of
from polyalign.data.pairs import ImageRef, PairTable
from polyalign.data.parallel import ParallelText
from polyalign.models.aligner import Aligner
from polyalign.models.feature_cache import CachedFeatures, caption_features, image_features

_OF_LIKE_LENGTH = 64


@dataclass(frozen=True)
class PairFeatures:
    """The input of the aligner's trainable part for a table.

    ``images`` has the first of ``views`` views of all images, then the second view of all, and so on. ``image_of``,
    ``caption_of`` and ``lang_of`` ``(C,)`` number the image, the text and the language of each caption.
    """

    images: CachedFeatures
    captions: CachedFeatures
    image_of: npt.NDArray[np.int64]
    caption_of: npt.NDArray[np.int64]
    lang_of: npt.NDArray[np.int64]
    views: int = 1

    def image_rows(self, pairs: npt.NDArray[np.int64], epoch: int) -> npt.NDArray[np.int64]:
        """Return the rows of the images of these pairs, in the view of this epoch."""
        return self.image_of[pairs] + epoch % self.views * (len(self.images) // self.views)


@dataclass(frozen=True)
class SentenceFeatures:
    """The input of the text tower's trainable part for R rows of parallel sentences in L languages.

    ``store`` has N sentences; ``row_of`` ``(R, L)`` is the place of each in it, -1 where a row lacks a language; the
    first language is the pivot. ``text_of`` ``(N,)`` numbers the distinct sentences. ``before`` ``(N, width)`` are the
    tower's features before training, for an anchor.
    """

    store: CachedFeatures
    row_of: npt.NDArray[np.int64]
    text_of: npt.NDArray[np.int64]
    before: npt.NDArray[np.float32] | None = None

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.row_of)

    def pick(self, rows: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Return two sentences of each row, as places ``(B, 2)``: that of the pivot and a random other one.

        A row without the pivot gives two random ones.
        """
        places = self.row_of[rows]
        order = rng.random(places.shape)
        order[:, 0] -= 1  # first
        order[places < 0] = 2  # last
        two = np.argsort(order, axis=1)[:, :2]
        return np.take_along_axis(places, two, axis=1)


@dataclass(frozen=True)
class Embeddings:
    """Float32 unit vectors: ``images (I, D)``, ``captions (C, D)``, and each caption's image ``image_of (C,)``."""

    images: npt.NDArray[np.float32]
    captions: npt.NDArray[np.float32]
    image_of: npt.NDArray[np.int64]


def prepare(aligner: Aligner, table: PairTable, config: Cache, data: Data | None = None) -> PairFeatures:
    """Compute the frozen features or load them from the cache, with the augmented views of ``data``, if any.

    Raises:
        UserError: the cache would be larger than its limit.
    """
    vision_cut, text_cut = aligner.cuts()
    images: Sequence[ImageRef] = table.images
    if data is not None and data.views is not None:
        how = aligner.vision.preprocessing
        # At this size the tower's own preprocessing does not resize again.
        images = of(table, data.views, int(max(how.size) / how.crop_pct), data.data_seed, mirror=data.mirror)
    return PairFeatures(
        image_features(aligner.vision, images, vision_cut, config),
        caption_features(aligner.text, table.captions, text_cut, config, table.caption_langs or table.lang),
        table.image_of,
        number_distinct([caption.strip() for caption in table.captions]),
        number_distinct(table.caption_langs or [table.lang] * len(table)),
        len(images) // len(table.images),
    )


def number_distinct(texts: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the number of each text, equal for equal texts: ``(N,)``."""
    return pd.factorize(np.array(texts, dtype=object))[0].astype(np.int64)


def prepare_sentences(aligner: Aligner, text: ParallelText, config: Cache, *, anchored: bool) -> SentenceFeatures:
    """Compute the frozen features of parallel sentences or load them from the cache.

    With ``anchored`` also those of the whole tower as it is now.

    Raises:
        UserError: the cache would be larger than its limit.
    """
    present = np.array([[bool(sentence) for sentence in row] for row in text.rows])
    row_of = np.where(present, np.cumsum(present).reshape(present.shape) - 1, -1)
    said = [(sentence, lang) for row in text.rows for sentence, lang in zip(row, text.langs, strict=True) if sentence]
    sentences, langs = [sentence for sentence, _ in said], [lang for _, lang in said]
    store = caption_features(aligner.text, sentences, aligner.cuts()[1], config, langs)
    before = _embed(aligner, aligner.text.suffix, store) if anchored else None
    return SentenceFeatures(store, row_of, number_distinct(sentences), before)


def sentence_features(aligner: Aligner, sentences: Sequence[str], lang: str, config: Cache) -> npt.NDArray[np.float32]:
    """Return the text tower's features of sentences ``(N, width)``, of unit length."""
    store = caption_features(aligner.text, sentences, aligner.cuts()[1], config, lang)
    features = _embed(aligner, aligner.text.suffix, store)
    unit: npt.NDArray[np.float32] = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    return unit


def embed_features(aligner: Aligner, features: PairFeatures, batch_size: int = 256) -> Embeddings:
    """Run the trainable part in evaluation mode."""
    images = embed_images(aligner, features.images, batch_size)
    return Embeddings(images, embed_captions(aligner, features.captions, batch_size), features.image_of)


def embed_images(aligner: Aligner, store: CachedFeatures, batch_size: int = 256) -> npt.NDArray[np.float32]:
    """Return ``(I, D)`` unit vectors."""
    return _embed(aligner, aligner.encode_image, store, batch_size)


def embed_captions(aligner: Aligner, store: CachedFeatures, batch_size: int = 256) -> npt.NDArray[np.float32]:
    """Return ``(C, D)`` unit vectors."""
    return _embed(aligner, aligner.encode_text, store, batch_size)


@torch.no_grad()
def _embed(
    aligner: Aligner, encode: Callable[[Any, int], torch.Tensor], store: CachedFeatures, batch_size: int = 256
) -> npt.NDArray[np.float32]:
    """Encode all rows, sorted by length to reduce padding; return them in their own order."""
    aligner.eval()
    device = aligner.logit_scale.device
    vectors: npt.NDArray[np.float32] | None = None
    order = store.by_length(np.arange(len(store)))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        with torch.autocast(device.type, torch.bfloat16, enabled=store.in_bf16):
            made = encode(store.batch(rows, device), store.cut).float()
        if store.in_bf16:
            made = F.normalize(made, dim=-1)  # in bf16 the length is 1 to two digits only
        if vectors is None:
            vectors = np.empty((len(store), made.shape[1]), np.float32)
        vectors[rows] = made.cpu().numpy()
    assert vectors is not None
    return vectors


def encode_captions(
    aligner: Aligner,
    store: CachedFeatures,
    rows: npt.NDArray[np.int64],
    encode: Callable[[Any, int], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Run the trainable part on these captions, with gradients: ``(B, D)``, in the order of ``rows``.

    ``encode`` is ``aligner.encode_text`` by default. A batch is padded to its longest caption, about 1.5 times the mean
    length. On a CPU, where padding costs as much as words, the captions are encoded in parts of similar length. This
    changes neither the batch nor its negatives.
    """
    encode = encode or aligner.encode_text
    device = aligner.logit_scale.device
    if store.offsets is None or device.type != "cpu":
        return encode(store.batch(rows, device), store.cut)
    by_length = store.by_length(rows)
    parts = np.array_split(by_length, max(1, len(rows) // _OF_LIKE_LENGTH))
    encoded = torch.cat([encode(store.batch(rows[part], device), store.cut) for part in parts])
    return encoded[torch.from_numpy(np.argsort(by_length))]


def embed(aligner: Aligner, table: PairTable, *, batch_size: int = 256, config: Cache | None = None) -> Embeddings:
    """Embed a table from its images and captions."""
    return embed_features(aligner, prepare(aligner, table, config or Cache()), batch_size)
