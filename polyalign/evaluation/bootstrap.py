"""Bootstrap over photos, for averages of galleries that share them; intervals of one gallery are in ``intervals``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from polyalign.evaluation.ranking import Hits, Ints, recalls, with_mean

_SCORES_PER_BLOCK = 2**23


def resample_together(
    entries: Sequence[tuple[Hits, Ints]], photos: int, *, resamples: int = 1000, seed: int = 0
) -> list[npt.NDArray[np.float64]]:
    """Bootstrap the recalls of galleries that share photos, over the photos of all of them.

    A photo is drawn with all it answers for, in whatever galleries and languages: what is averaged over them keeps its
    dependence. A gallery of which no photo is drawn keeps its observed recalls in that draw.

    Args:
        entries: for each gallery its hits and (I,) which photo each of its images is.
        photos: how many there are.
        resamples: R.
        seed: of the draws.

    Returns:
        (R, 7) for each entry, columns as ``recalls``.
    """
    parts: list[list[npt.NDArray[np.float64]]] = [[] for _ in entries]
    for weights in _image_weights(seed, resamples, photos):
        for (own, photo_of), part in zip(entries, parts, strict=True):
            drawn = weights[:, photo_of]
            hits, asked = drawn @ own.hits, drawn @ own.queries
            observed = np.broadcast_to(recalls([own])[:-1], hits.shape).copy()
            part.append(with_mean(np.divide(hits, asked, out=observed, where=asked > 0)))
    return [np.concatenate(part) for part in parts]


def interval(samples: npt.NDArray[np.float64], confidence: float = 0.95) -> npt.NDArray[np.float64]:
    """Return the percentile interval of each column of ``resample_together``: (2, M), low and high."""
    tail = (1 - confidence) / 2
    bounds: npt.NDArray[np.float64] = np.quantile(samples, [tail, 1 - tail], axis=0)
    return bounds


def _draw(rng: np.random.Generator, resamples: int, items: int) -> npt.NDArray[np.float64]:
    """Draw ``items`` of ``items`` with replacement and count how often each came: (R, items)."""
    drawn = rng.integers(items, size=(resamples, items)) + np.arange(resamples)[:, None] * items
    return np.bincount(drawn.ravel(), minlength=resamples * items).reshape(resamples, items).astype(np.float64)


def _image_weights(seed: int, resamples: int, images: int) -> Iterator[npt.NDArray[np.float64]]:
    """Draw image weights (R, images) in blocks of rows, so that memory does not grow with their number."""
    rng = np.random.default_rng(seed)
    step = max(1, _SCORES_PER_BLOCK // images)
    for start in range(0, resamples, step):
        yield _draw(rng, min(step, resamples - start), images)
