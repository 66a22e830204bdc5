"""Bootstrap over photos, for averages over galleries that share photos; for single galleries see ``intervals``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from polyalign.evaluation.ranking import Hits, Ints, recalls, with_mean

_SCORES_PER_BLOCK = 2**23


def resample_together(
    entries: Sequence[tuple[Hits, Ints]], photos: int, *, resamples: int = 1000, seed: int = 0
) -> list[npt.NDArray[np.float64]]:
    """Bootstrap the recalls of galleries that share photos.

    A photo is drawn for all galleries and languages at once, so that averages over them keep their dependence. In a
    draw without any photo of a gallery, the gallery keeps its observed recalls.

    Args:
        entries: for each gallery its hits and the index (I,) of the photo of each image.
        photos: number of photos.
        resamples: number of draws R.
        seed: seed of the draws.

    Returns:
        (R, 7) for each gallery, columns as in ``recalls``.
    """
    parts: list[list[npt.NDArray[np.float64]]] = [[] for _ in entries]
    rng = np.random.default_rng(seed)
    step = max(1, _SCORES_PER_BLOCK // photos)  # draws in blocks limit the memory
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(photos, size=(rows, photos)) + np.arange(rows)[:, None] * photos
        weights = np.bincount(drawn.ravel(), minlength=rows * photos).reshape(rows, photos).astype(np.float64)
        for (own, photo_of), part in zip(entries, parts, strict=True):
            hits, asked = weights[:, photo_of] @ own.hits, weights[:, photo_of] @ own.queries
            observed = np.broadcast_to(recalls(own)[:-1], hits.shape).copy()
            part.append(with_mean(np.divide(hits, asked, out=observed, where=asked > 0)))
    return [np.concatenate(part) for part in parts]


def interval(samples: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the 95 % percentile interval of each column of ``samples`` (R, M): (2, M), low and high."""
    tail = (1 - 0.95) / 2
    bounds: npt.NDArray[np.float64] = np.quantile(samples, [tail, 1 - tail], axis=0)
    return bounds
