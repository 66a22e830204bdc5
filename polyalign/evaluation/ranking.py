"""Retrieval metrics: ranks with pessimistic ties, and recall at K.

Recall@K is, as usual in retrieval, a hit rate: the share of queries with at least one right answer among the top K.
Values are fractions. Embeddings are rows of unit length, so a score is a cosine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from polyalign.utils.errors import UserError

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]

RECALL_AT = (1, 5, 10)
"""The K of recall@K."""

COLUMNS = (*(f"{way}_r{k}" for way in ("text_to_image", "image_to_text") for k in RECALL_AT), "mean_recall")
"""Names of the six recalls and of their mean, in files."""

_SCORES_PER_BLOCK = 2**23
_GRID_BITS = 25
_MAX_SCORE = 8.0


@dataclass(frozen=True)
class Ranked:
    """The ranks (Q,) of each query's best right key, from 1, and where it is ``tied`` (Q,).

    A query is tied if a wrong key has exactly the same score; the wrong key is then ranked ahead.
    """

    rank: Ints
    tied: npt.NDArray[np.bool_]


def both_directions(image_emb: Floats, caption_emb: Floats, image_of: Ints) -> tuple[Ranked, Ranked]:
    """Return the ranks of text-to-image (one query per caption) and image-to-text (one query per image).

    A rank is one plus the number of wrong answers that score at least as high as the best right one, so a collapsed
    model is last, not first. The processor does not change a rank: embeddings are rounded to multiples of 2**-25, for
    which float64 sums are exact in any order, and each score is rounded once to float32.

    Args:
        image_emb: (I, D), rows of unit length.
        caption_emb: (C, D), rows of unit length.
        image_of: (C,) the image of each caption; an image without a caption has rank C + 1.

    Raises:
        UserError: an embedding is NaN or infinite.
        ValueError: the shapes do not match, rows are far from unit length, or there is nothing to rank.
    """
    _check(image_emb, caption_emb, image_of)
    images, captions = _to_grid(image_emb), len(caption_emb)
    step = max(1, _SCORES_PER_BLOCK // len(images))
    blocks = [slice(start, start + step) for start in range(0, captions, step)]
    own = np.empty(captions, dtype=np.float32)
    for block in blocks:
        own[block] = np.einsum("cd,cd->c", _to_grid(caption_emb[block]), images[image_of[block]])
    best = np.full(len(images), -np.inf, dtype=np.float32)
    np.maximum.at(best, image_of, own)
    text_reached, text_above = np.empty((2, captions), dtype=np.int64)
    image_reached, image_above = np.zeros((2, len(images)), dtype=np.int64)
    for block in blocks:
        scores = (_to_grid(caption_emb[block]) @ images.T).astype(np.float32)
        text_reached[block] = np.count_nonzero(scores >= own[block, None], axis=1)
        text_above[block] = np.count_nonzero(scores > own[block, None], axis=1)
        image_reached += np.count_nonzero(scores >= best, axis=0)
        image_above += np.count_nonzero(scores > best, axis=0)
    right = np.bincount(image_of[own == best[image_of]], minlength=len(images))
    return _ranked(text_reached, text_above, np.ones(captions, np.int64)), _ranked(image_reached, image_above, right)


def nearest(queries: Floats, keys: Floats) -> Ints:
    """Return the index of the best key of each query (Q,), the first of equal ones.

    Args:
        queries: (Q, D), rows of unit length.
        keys: (K, D), rows of unit length.
    """
    on_grid = _to_grid(keys)
    step = max(1, _SCORES_PER_BLOCK // len(keys))
    blocks = (_to_grid(queries[start : start + step]) for start in range(0, len(queries), step))
    return np.concatenate([(block @ on_grid.T).astype(np.float32).argmax(axis=1) for block in blocks])


def _ranked(reached: Ints, above: Ints, right: Ints) -> Ranked:
    """Rank queries from counts: keys at or above the best right score, above it, and right keys that reach it."""
    return Ranked(rank=1 + reached - right, tied=reached - right > above)


def _to_grid(rows: Floats) -> npt.NDArray[np.float64]:
    """Round to multiples of 2**-25: products are multiples of 2**-50, and sums of them up to 8 fit 53 bits."""
    grid: npt.NDArray[np.float64] = np.ldexp(np.rint(np.ldexp(rows.astype(np.float64), _GRID_BITS)), -_GRID_BITS)
    return grid


def _check(image_emb: Floats, caption_emb: Floats, image_of: Ints) -> None:
    if image_emb.ndim != 2 or caption_emb.ndim != 2 or image_emb.shape[1] != caption_emb.shape[1]:
        raise ValueError(f"embeddings of shapes {image_emb.shape} and {caption_emb.shape} cannot be compared")
    if image_of.shape != (len(caption_emb),):
        raise ValueError(f"{len(caption_emb)} captions need as many image indices, not {image_of.shape}")
    if not len(image_of):
        raise ValueError("there is nothing to rank")
    if not 0 <= image_of.min() <= image_of.max() < len(image_emb):
        raise ValueError(f"image_of must name one of the {len(image_emb)} images")
    longest = [float(np.linalg.norm(rows, axis=1).max()) for rows in (image_emb, caption_emb)]
    if not all(map(math.isfinite, longest)):
        raise UserError("the embeddings contain NaN or infinity: check the weights and the preprocessing of the model")
    if longest[0] * longest[1] > _MAX_SCORE:
        raise ValueError(f"embeddings must have unit length, these have up to {longest[0]:.3g} and {longest[1]:.3g}")


def chance(captions_per_image: Ints) -> npt.NDArray[np.float64]:
    """Return the expected hit rates (6,) of a random ordering, in the column order of ``Hits``.

    Args:
        captions_per_image: (I,) how many captions each image of the gallery has.
    """
    images, captions = len(captions_per_image), int(captions_per_image.sum())
    text_to_image = [min(k, images) / images for k in RECALL_AT]
    image_to_text = []
    for k in RECALL_AT:
        # P(no right caption in the top k) = prod_j (C - n - j) / (C - j), drawing without replacement.
        places = np.arange(min(k, captions))
        left = np.clip(captions - captions_per_image[:, None] - places, 0, None) / (captions - places)
        image_to_text.append(1.0 - float(left.prod(axis=1).mean()))
    return np.array(text_to_image + image_to_text)


@dataclass(frozen=True)
class Hits:
    """The number of ``hits`` and of ``queries`` of each image, the unit that is resampled.

    Both are (I, 6): columns text-to-image at 1, 5, 10, then image-to-text at 1, 5, 10.
    """

    hits: npt.NDArray[np.float64]
    queries: npt.NDArray[np.float64]


def gather_hits(text_to_image: Ints, image_to_text: Ints, image_of: Ints, fold_of: Ints | None = None) -> Hits:
    """Count hits by image.

    Args:
        text_to_image: (C,) rank of each caption's image.
        image_to_text: (I,) rank of each image's best caption.
        image_of: (C,) the image of each caption.
        fold_of: (I,) the fold that each image was searched in. Hits and queries are then divided by the number of
            queries of the fold, so that the recalls are means over the folds.
    """
    images = len(image_to_text)
    captions = np.bincount(image_of, minlength=images)
    columns = len(RECALL_AT)
    hits, queries = np.ones((2, images, 2 * columns))
    for column, k in enumerate(RECALL_AT):
        hits[:, column] = np.bincount(image_of, weights=text_to_image <= k, minlength=images)
        hits[:, columns + column] = image_to_text <= k
    queries[:, :columns] = captions[:, None]
    if fold_of is not None:
        _, fold = np.unique(fold_of, return_inverse=True)
        asked = np.zeros((fold.max() + 1, 2 * columns))
        np.add.at(asked, fold, queries)
        hits, queries = hits / asked[fold], queries / asked[fold]
    return Hits(hits, queries)


def recalls(hits: Hits) -> npt.NDArray[np.float64]:
    """Return the six recalls and, last, their mean (mean recall): (7,)."""
    return with_mean(hits.hits.sum(axis=0) / hits.queries.sum(axis=0))


def with_mean(six: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Append the mean of the six recalls: (..., 6) to (..., 7)."""
    return np.concatenate([six, six.mean(axis=-1, keepdims=True)], axis=-1)
