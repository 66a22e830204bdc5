"""Intervals of recalls: worked numbers, scipy's exact binomial interval, and coverage by simulation."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from polyalign.evaluation.intervals import (
    effective_images,
    image_covariance,
    image_influence,
    mean_recalls,
    recall_intervals,
)


def same_in_all_columns(hits: np.ndarray) -> np.ndarray:
    """(I,) hits by image as (I, 6)."""
    return np.repeat(np.asarray(hits, dtype=np.float64)[:, None], 6, axis=1)


def gallery(images: int, captions: int) -> np.ndarray:
    """The queries of a gallery in which each image has equally many captions."""
    return np.repeat([[captions] * 3 + [1] * 3], images, axis=0).astype(np.float64)


# --- Worked by hand, and against scipy --------------------------------------------------------------------------------


@pytest.mark.parametrize("found", [0, 1, 2, 37, 199, 200])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_one_caption_an_image_is_the_exact_binomial_interval(found: int, confidence: float) -> None:
    hits = same_in_all_columns(np.arange(200) < found)
    value, low, high = recall_intervals([hits], np.ones((200, 6)), confidence)
    exact = scipy.stats.binomtest(found, 200).proportion_ci(confidence, method="exact")
    np.testing.assert_allclose(value, found / 200)
    np.testing.assert_allclose(low, exact.low, atol=1e-12)
    np.testing.assert_allclose(high, exact.high)


def test_no_hit_is_no_certainty() -> None:
    # With all queries of an image alike, none of 1000 images was hit: 1 - 0.025 ** (1 / 1000).
    _, low, high = recall_intervals([np.zeros((1000, 6))], gallery(1000, 5))
    np.testing.assert_array_equal(low, 0.0)
    np.testing.assert_allclose(high, 0.003682, rtol=1e-3)
    value, low, high = recall_intervals([gallery(1000, 5)] * 3, gallery(1000, 5))
    np.testing.assert_array_equal(value, 1.0)
    np.testing.assert_allclose(low, 1 - 0.003682, rtol=1e-3)
    np.testing.assert_array_equal(high, 1.0)


def test_captions_that_hit_together_count_as_one() -> None:
    queries = gallery(400, 5)
    hits = queries * (np.arange(400) % 4 == 0)[:, None]
    np.testing.assert_allclose(effective_images(hits, queries), 400)


def test_captions_that_hit_independently_count_each() -> None:
    queries = gallery(1000, 5)
    hits = np.random.default_rng(0).binomial(queries.astype(int), 0.3).astype(np.float64)
    effective = effective_images(hits, queries)
    np.testing.assert_allclose(effective[:3], 5000, rtol=0.15)
    np.testing.assert_allclose(effective[3:6], 1000, rtol=0.01)
    # The mean of six independent recalls, three of variance 1/5000 and three of 1/1000: 36 / (3/5000 + 3/1000).
    assert effective[6] == pytest.approx(36 / (3 / 5000 + 3 / 1000), rel=0.15)


def test_the_seeds_add_a_t_interval_in_quadrature_by_hand() -> None:
    # Recalls 0.4, 0.5 and 0.6: the margin of the seeds is t(0.975, 2) * 0.1 / sqrt(3) = 4.3027 * 0.057735 = 0.24842.
    images = np.arange(1000)
    hits = [same_in_all_columns(images < found) for found in (400, 500, 600)]
    value, low, high = recall_intervals(hits, np.ones((1000, 6)))
    np.testing.assert_allclose(value, 0.5)
    trials = effective_images(np.mean(hits, axis=0), np.ones((1000, 6)))[0]
    exact = scipy.stats.beta.ppf(0.025, trials / 2, trials / 2 + 1)
    np.testing.assert_allclose(low, 0.5 - np.hypot(0.5 - exact, 0.24842), rtol=1e-4)
    np.testing.assert_allclose(low + high, 1.0)


def test_limits_stay_between_0_and_1() -> None:
    hits = [same_in_all_columns(np.arange(100) < found) for found in (1, 9)]
    _, low, high = recall_intervals(hits, np.ones((100, 6)))
    np.testing.assert_array_equal(low, 0.0)
    assert (high <= 1).all()
    assert (high > 0.3).all()


def test_the_influence_is_the_effect_of_leaving_an_image_out() -> None:
    rng = np.random.default_rng(1)
    queries = np.repeat(rng.integers(1, 6, size=(300, 1)), 6, axis=1).astype(np.float64)
    hits = rng.binomial(queries.astype(int), [0.1, 0.3, 0.5, 0.2, 0.4, 0.6]).astype(np.float64)
    ratio = hits.sum(axis=0) / queries.sum(axis=0)
    without = (hits.sum(axis=0) - hits) / (queries.sum(axis=0) - queries)
    left_out = np.append(ratio - without, (ratio - without).mean(axis=1, keepdims=True), axis=1)
    np.testing.assert_allclose(image_influence(hits, queries), left_out, rtol=0.02, atol=1e-6)
    np.testing.assert_allclose(image_influence(hits, queries).sum(axis=0), 0.0, atol=1e-12)


def test_the_covariance_of_mean_recalls_is_that_of_a_bootstrap_over_images() -> None:
    rng = np.random.default_rng(2)
    queries = gallery(500, 5)
    ability = rng.random((500, 1))
    hits = [[rng.binomial(queries.astype(int), ability).astype(np.float64) for _ in range(2)] for _ in range(3)]
    mean = np.mean(hits, axis=1)
    drawn = rng.multinomial(500, np.full(500, 1 / 500), size=4000)
    boot = [(drawn @ own / (drawn @ queries)).mean(axis=1) for own in mean]
    np.testing.assert_allclose(image_covariance(hits, queries), np.cov(boot), rtol=0.1)


def test_a_method_without_hits_still_has_a_variance() -> None:
    queries = gallery(100, 5)
    covariance = image_covariance([[np.zeros((100, 6))], [np.zeros((100, 6))]], queries)
    np.testing.assert_allclose(covariance, np.eye(2) * 0.5 / 100**2)


def test_mean_recalls_by_seed() -> None:
    queries = gallery(10, 5)
    hits = np.zeros((10, 6))
    hits[:5, :3], hits[:2, 3:] = 5, 1
    np.testing.assert_allclose(mean_recalls([hits, queries], queries), [(0.5 + 0.2) / 2, 1.0])


def test_what_does_not_fit_is_refused() -> None:
    good = np.ones((4, 6))
    with pytest.raises(ValueError, match="do not match"):
        recall_intervals([good, np.ones((3, 6))], good)
    with pytest.raises(ValueError, match="do not match"):
        recall_intervals([], good)
    with pytest.raises(ValueError, match="needs queries"):
        recall_intervals([0 * good], 0 * good)
    with pytest.raises(ValueError, match="between 0 and its queries"):
        recall_intervals([2 * good], good)
    with pytest.raises(ValueError, match="between 0 and its queries"):
        mean_recalls([np.nan * good], good)


# --- Properties -------------------------------------------------------------------------------------------------------


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    images, seeds = draw(st.integers(1, 40)), draw(st.integers(1, 3))
    share = draw(st.sampled_from([0.0, 0.01, 0.3, 0.99, 1.0]))
    queries = gallery(images, 1)
    queries[:, :3] = rng.integers(1, 6, size=(images, 1))
    return [rng.binomial(queries.astype(int), share).astype(np.float64) for _ in range(seeds)], queries


@given(runs())
def test_an_interval_holds_its_value_and_is_never_empty(case: tuple[list[np.ndarray], np.ndarray]) -> None:
    hits, queries = case
    value, low, high = recall_intervals(hits, queries)
    assert (low >= 0).all()
    assert (high <= 1).all()
    assert (low <= value).all()
    assert (value <= high).all()
    assert (high - low > 1e-3).all()


@given(runs(), st.sampled_from([0.01, 3.0]))
def test_weights_have_no_unit(case: tuple[list[np.ndarray], np.ndarray], unit: float) -> None:
    hits, queries = case
    for one, other in zip(
        recall_intervals(hits, queries), recall_intervals([unit * own for own in hits], unit * queries), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-9)


@given(runs())
def test_misses_mirror_hits(case: tuple[list[np.ndarray], np.ndarray]) -> None:
    hits, queries = case
    value, low, high = recall_intervals(hits, queries)
    missed = recall_intervals([queries - own for own in hits], queries)
    np.testing.assert_allclose(missed.value, 1 - value, atol=1e-9)
    np.testing.assert_allclose(missed.low, 1 - high, atol=1e-6)
    np.testing.assert_allclose(missed.high, 1 - low, atol=1e-6)


@given(runs())
def test_the_order_of_images_is_immaterial(case: tuple[list[np.ndarray], np.ndarray]) -> None:
    hits, queries = case
    backwards = recall_intervals([own[::-1] for own in hits], queries[::-1])
    np.testing.assert_allclose(recall_intervals(hits, queries), backwards, atol=1e-9)


# --- Coverage by simulation -------------------------------------------------------------------------------------------


def draw_hits(rng: np.random.Generator, share: float, captions: int, within: float, effect: float = 0.0) -> np.ndarray:
    """Draw hits of 1000 images; scores within an image correlate by ``within``, and ``effect`` shifts all of them."""
    score = np.sqrt(within) * rng.standard_normal((1000, 1)) + np.sqrt(1 - within) * rng.standard_normal(
        (1000, captions)
    )
    hit = score < scipy.stats.norm.ppf(share) + effect
    return np.repeat(np.stack([hit.sum(axis=1), hit[:, 0]], axis=1), 3, axis=1).astype(np.float64)


def assert_covered(covered: np.ndarray, nominal: float = 0.93, risk: float = 0.01) -> None:
    """Demand that the simulation shows each column to be covered more often than ``nominal`` (exact binomial test)."""
    for count in covered.sum(axis=0):
        shown = scipy.stats.binomtest(int(count), len(covered), nominal, alternative="greater").pvalue
        assert shown < risk, f"{count} of {len(covered)} intervals hold the true value"


def coverage(share: float, captions: int, within: float, replicates: int) -> np.ndarray:
    """Whether text-to-image R@1, image-to-text R@1 and mean recall are covered with one seed: (replicates, 3)."""
    rng = np.random.default_rng((captions, int(1e4 * share), int(100 * within)))
    covered = np.empty((replicates, 3), dtype=bool)
    for replicate in range(replicates):
        got = recall_intervals([draw_hits(rng, share, captions, within)], gallery(1000, captions))
        covered[replicate] = ((got.low <= share) & (share <= got.high))[[0, 3, 6]]
    return covered


@pytest.mark.parametrize("share", [0.0002, 0.002, 0.01, 0.05, 0.5, 0.995])
@pytest.mark.parametrize(("captions", "within"), [(1, 0.0), (5, 0.0), (5, 0.5), (5, 0.9)])
def test_images_are_covered(share: float, captions: int, within: float) -> None:
    # At moderate shares the coverage is nearer to nominal, and takes more to tell from 93 %.
    assert_covered(coverage(share, captions, within, 1500 if 0.03 < share < 0.97 else 600))


def test_nothing_to_find_is_covered() -> None:
    assert coverage(0.0, 5, 0.5, 1).all()


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize(("share", "noise"), [(0.002, 0.0), (0.01, 0.2), (0.4, 0.0), (0.4, 0.02), (0.4, 0.05)])
def test_images_and_seeds_are_covered(seeds: int, share: float, noise: float) -> None:
    rng = np.random.default_rng((seeds, int(1000 * share), int(100 * noise)))
    # Scores have a unit variance and a normal effect of the seed is added: the mean over seeds and images.
    truth = scipy.stats.norm.cdf(scipy.stats.norm.ppf(share) / np.sqrt(1 + noise**2))
    covered = np.empty((800, 2), dtype=bool)
    for replicate in range(len(covered)):
        shared = rng.standard_normal((1000, 1))
        hits = []
        for effect in noise * rng.standard_normal(seeds):
            score = np.sqrt(0.7) * shared + np.sqrt(0.3) * rng.standard_normal((1000, 1))
            hits.append(np.repeat(score < scipy.stats.norm.ppf(share) + effect, 6, axis=1).astype(np.float64))
        got = recall_intervals(hits, np.ones((1000, 6)))
        covered[replicate] = ((got.low <= truth) & (truth <= got.high))[[0, 6]]
    assert_covered(covered)
