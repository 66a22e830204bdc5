"""Confidence intervals of retrieval recalls over test images and training seeds.

The test images are a random sample; the captions of one image form a cluster. The training seeds of one method are a
random sample as well, and each seed is tested on all images. Recalls and intervals are fractions of one. Arrays of six
columns are text-to-image at 1, 5, 10 and image-to-text at 1, 5, 10; a seventh column is their mean, the mean recall.

References:
    Clopper, C. J. and Pearson, E. S. (1934). Biometrika 26(4).
    Korn, E. L. and Graubard, B. I. (1998). Confidence intervals for proportions with small expected number of positive
    counts estimated from survey data. Survey Methodology 24(2).
    Zou, G. Y. and Donner, A. (2008). Construction of confidence limits about effect measures: a general approach.
    Statistics in Medicine 27(10).
    Agresti, A. and Min, Y. (2005). Simple improved confidence intervals for comparing matched proportions. Statistics
    in Medicine 24(5).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from polyalign.evaluation.ranking import with_mean

Floats = npt.NDArray[np.float64]

_PRIOR_IMAGES = 4.0
_PSEUDO_IMAGES = 0.5
_ROUNDING = 1e-9


class Intervals(NamedTuple):
    """Estimates and confidence limits, each (7,): six recalls and the mean recall, as fractions."""

    value: Floats
    low: Floats
    high: Floats


def recall_intervals(hits: Sequence[Floats], queries: Floats, confidence: float = 0.95) -> Intervals:
    """Return the recalls averaged over seeds with their confidence intervals.

    The image component is a Clopper-Pearson interval on the effective sample size (Korn and Graubard, 1998), which does
    not collapse at recalls of 0 and 1. With two or more seeds the t interval of the mean over seeds is added in
    quadrature (Zou and Donner, 2008), and the interval covers test images and seeds. With one seed it covers test
    images only. The interaction between images and seeds is part of both components, so the interval is wide rather
    than narrow. Limits are clipped to [0, 1].

    Args:
        hits: S arrays (I, 6), one a seed: by image, the number (or weight) of its queries that hit.
        queries: (I, 6) the number (or weight) of queries by image, the same for all seeds.
        confidence: nominal coverage.

    Raises:
        ValueError: the shapes differ, there is no seed, a column has no query, or an image has more hits than queries.
    """
    stacked = _stack(hits, queries)
    by_seed = _recalls(stacked, queries)
    value = by_seed.mean(axis=0)
    tail = (1 - confidence) / 2
    low, high = _clopper_pearson(value, effective_images(stacked.mean(axis=0), queries), tail)
    seeds = len(by_seed)
    if seeds > 1:
        margin = stats.t.isf(tail, seeds - 1) * by_seed.std(axis=0, ddof=1) / np.sqrt(seeds)
        low, high = value - np.hypot(value - low, margin), value + np.hypot(high - value, margin)
    return Intervals(value, np.clip(low, 0.0, 1.0), np.clip(high, 0.0, 1.0))


def image_influence(hits: Floats, queries: Floats) -> Floats:
    """Return the linearised contribution of each image to the recalls and the mean recall: (I, 7).

    A recall is a ratio of two sums over images. To first order its deviation from the population value is the sum of
    ``(hits - recall * queries) / queries.sum()``; the squares sum to its variance. The last column is the mean of the
    six, so it carries their covariances.

    Args:
        hits: (I, 6), of one seed or averaged over seeds.
        queries: (I, 6).
    """
    asked = queries.sum(axis=0)
    return with_mean((hits - hits.sum(axis=0) / asked * queries) / asked)


def effective_images(hits: Floats, queries: Floats) -> Floats:
    """Return the effective sample size of each recall and of the mean recall: (7,).

    It is the number of independent trials n for which ``p (1 - p) / n`` equals the variance over images. Where few
    images differ from the rest, that variance is itself poorly known. It is therefore averaged with its upper bound
    ``p (1 - p) * sum(q**2) / sum(q)**2``, attained if all queries of an image share one outcome; the weights are 4 for
    the bound and, for the estimate, the number of images with a hit or with a miss, whichever is smaller. Without any
    hit, or without any miss, the effective sample size is the number of images (for unequal weights, Kish's).

    Args:
        hits: (I, 6), of one seed or averaged over seeds.
        queries: (I, 6).
    """
    share = _recalls(hits, queries)
    spread = share * (1 - share)
    variance = (image_influence(hits, queries) ** 2).sum(axis=0)
    estimate = np.divide(variance, spread, out=np.zeros_like(spread), where=spread > 0)
    six = (queries**2).sum(axis=0) / queries.sum(axis=0) ** 2
    bound = np.append(six, six.max())
    informative = np.minimum(_images_with(hits, queries), _images_with(queries - hits, queries))
    effective: Floats = (_PRIOR_IMAGES + informative) / (_PRIOR_IMAGES * bound + informative * estimate)
    return effective


def image_covariance(hits: Sequence[Sequence[Floats]], queries: Floats) -> Floats:
    """Return the covariance of the methods' mean recalls due to the sampling of test images: (k, k).

    All methods are tested on the same images, so their mean recalls, each averaged over the seeds of the method, are
    correlated. Half an image that is all hit is added to the variance of each method, which keeps the variance of a
    difference above zero (after Agresti and Min, 2005) and is negligible unless few images are hit.

    Args:
        hits: for each of k methods, one (I, 6) array a seed.
        queries: (I, 6), the same for all.

    Raises:
        ValueError: as for ``recall_intervals``.
    """
    means = [_stack(seeds, queries).mean(axis=0) for seeds in hits]
    influence = np.stack([image_influence(mean, queries)[:, -1] for mean in means], axis=1)
    largest = float(((queries**2).sum(axis=0) / queries.sum(axis=0) ** 2).max())
    covariance: Floats = influence.T @ influence + _PSEUDO_IMAGES * largest**2 * np.eye(len(means))
    return covariance


def mean_recalls(hits: Sequence[Floats], queries: Floats) -> Floats:
    """Return the mean recall of each seed: (S,).

    Args:
        hits: S arrays (I, 6), one a seed.
        queries: (I, 6), the same for all.

    Raises:
        ValueError: as for ``recall_intervals``.
    """
    return _recalls(_stack(hits, queries), queries)[:, -1]


def _clopper_pearson(share: Floats, trials: Floats, tail: float) -> tuple[Floats, Floats]:
    """Return the limits of a proportion of a number of trials, which need not be whole."""
    found = share * trials
    missed = trials - found
    with np.errstate(invalid="ignore"):
        low = np.where(found > 0, stats.beta.ppf(tail, found, missed + 1), 0.0)
        high = np.where(missed > 0, stats.beta.isf(tail, found + 1, missed), 1.0)
    return low, high


def _stack(hits: Sequence[Floats], queries: Floats) -> Floats:
    """Return the hits of all seeds in one array (S, I, 6), checked against the queries."""
    if not hits or queries.ndim != 2 or any(one.shape != queries.shape for one in hits):
        raise ValueError(f"hits of shapes {[one.shape for one in hits]} do not match queries of shape {queries.shape}")
    if (queries < 0).any() or not (queries.sum(axis=0) > 0).all():
        raise ValueError("each column needs queries, and none may be negative")
    stacked = np.stack(hits).astype(np.float64)
    if not ((stacked >= 0) & (stacked <= queries * (1 + _ROUNDING))).all():
        raise ValueError("the hits of an image must lie between 0 and its queries")
    return stacked


def _recalls(hits: Floats, queries: Floats) -> Floats:
    """Return the recalls and the mean recall (..., 7) of hits (..., I, 6)."""
    recalls: Floats = np.clip(with_mean(hits.sum(axis=-2) / queries.sum(axis=0)), 0.0, 1.0)
    return recalls


def _images_with(part: Floats, queries: Floats) -> Floats:
    """Return the number of images (7,) with a nonzero part of their queries; in any column for the mean recall."""
    there = part > _ROUNDING * queries
    return np.append(there.sum(axis=0), there.any(axis=1).sum()).astype(np.float64)
