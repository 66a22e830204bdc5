from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.retrieval import RetrievalHitRate

from polyalign.evaluation import bootstrap, ranking
from polyalign.utils.errors import UserError


def unit(rng: np.random.Generator, rows: int, width: int = 16) -> np.ndarray:
    x = rng.standard_normal((rows, width))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def rank_captions(scores: list[list[float]], image_of: list[int]) -> ranking.Ranked:
    """Rank captions by images; with the identity as images, the coordinates of a caption are its scores."""
    matrix = np.array(scores, dtype=np.float32)
    return ranking.both_directions(np.eye(matrix.shape[1]), matrix, np.array(image_of))[0]


def rank_images(scores: list[list[float]], image_of: list[int]) -> ranking.Ranked:
    """Rank images by captions, in the same way."""
    matrix = np.array(scores, dtype=np.float32)
    return ranking.both_directions(matrix, np.eye(matrix.shape[1]), np.array(image_of))[1]


def naive_ranks(queries: np.ndarray, keys: np.ndarray, query_image: np.ndarray, key_image: np.ndarray) -> list[int]:
    """Rank one query at a time, by definition: sort by score, with wrong keys before right ones on ties."""
    out = []
    for query, image in zip(queries, query_image, strict=True):
        scores = [np.float32(sum(float(a) * float(b) for a, b in zip(query, key, strict=True))) for key in keys]
        order = sorted(range(len(keys)), key=lambda k: (-scores[k], key_image[k] == image))
        out.append(1 + next(place for place, k in enumerate(order) if key_image[k] == image))
    return out


def test_one_positive_by_hand() -> None:
    got = rank_captions([[0.9, 0.1, 0.2], [0.9, 0.8, 0.2], [0.5, 0.4, 0.3]], [0, 1, 2])
    assert got.rank.tolist() == [1, 2, 3]
    assert not got.tied.any()


def test_the_best_of_five_captions_counts() -> None:
    image_of = [0] * 5 + [1] * 5
    scores = [
        [0.1, 0.2, 0.7, 0.3, 0.4, 0.6, 0.5, 0.5, 0.0, 0.0],  # best own 0.7, nothing above
        [0.9, 0.8, 0.7, 0.6, 0.5, 0.1, 0.2, 0.3, 0.55, 0.4],  # best own 0.55, four others above
    ]
    assert rank_images(scores, image_of).rank.tolist() == [1, 5]


def test_other_right_captions_never_rank_ahead_even_tied() -> None:
    got = rank_images([[0.5, 0.5, 0.5, 0.1], [0, 0, 0, 1]], [0, 0, 0, 1])
    assert got.rank.tolist() == [1, 1]
    assert not got.tied.any()


def test_a_tie_with_a_wrong_key_ranks_behind_it_and_is_reported() -> None:
    scores = [[0.5, 0.5, 0.5, 0.1], [0.1, 0.7, 0.2, 0.2], [0, 0, 1, 0], [0, 0, 0, 1]]
    got = rank_captions(scores, [0, 1, 2, 3])
    assert got.rank.tolist() == [3, 1, 1, 1]
    assert got.tied.tolist() == [True, False, False, False]
    assert rank_images(scores, [0, 1, 2, 3]).rank.tolist() == [3, 1, 1, 1]


def test_a_tie_among_wrong_keys_is_no_tie() -> None:
    got = rank_captions([[0.5, 0.4, 0.4], [0.6, 0.1, 0.6], [0, 0, 1]], [0, 1, 2])
    assert got.rank.tolist() == [1, 3, 1]
    assert not got.tied.any()


def test_a_collapsed_model_is_last_in_both_directions() -> None:
    images = np.tile(unit(np.random.default_rng(0), 1, 300), (50, 1))
    captions = np.tile(unit(np.random.default_rng(1), 1, 300), (250, 1))
    image_of = np.repeat(np.arange(50), 5)
    by_text, by_image = ranking.both_directions(images, captions, image_of)
    assert (by_text.rank == 50).all()
    assert by_text.tied.all()
    assert (by_image.rank == 246).all()
    assert ranking.recalls(ranking.gather_hits(by_text.rank, by_image.rank, image_of)).max() == 0.0


def test_equal_keys_tie_wherever_they_stand() -> None:
    # In float32 products, equal columns can differ in the last bits, depending on their position in a block.
    rng = np.random.default_rng(3)
    images = np.repeat(unit(rng, 1, 257), 1031, axis=0)
    by_text, by_image = ranking.both_directions(images, unit(rng, 1031, 257), np.arange(1031))
    assert (by_text.rank == 1031).all()
    assert sorted(by_image.rank) == list(range(1, 1032))


@pytest.mark.parametrize("block_rows", [1, 2, 7, 64, 100_000])
def test_blocks_do_not_change_ranks(block_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    captions = np.concatenate([unit(rng, 211, 96)] * 3)
    images = unit(rng, 131, 96)
    image_of = np.concatenate([np.arange(131), rng.integers(131, size=len(captions) - 131)])
    whole = ranking.both_directions(images, captions, image_of)
    monkeypatch.setattr(ranking, "_SCORES_PER_BLOCK", block_rows * len(images))
    blocks = ranking.both_directions(images, captions, image_of)
    for one, other in zip(whole, blocks, strict=True):
        assert np.array_equal(one.rank, other.rank)
        assert np.array_equal(one.tied, other.tied)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), images=st.integers(1, 9), extra=st.integers(0, 12), grid=st.booleans())
def test_matches_the_naive_twin(seed: int, images: int, extra: int, grid: bool) -> None:
    rng = np.random.default_rng(seed)
    image_emb = unit(rng, images, 4)
    image_of = np.concatenate([np.arange(images), rng.integers(images, size=extra)])
    caption_emb = unit(rng, len(image_of), 4)
    if grid:  # coarse coordinates, exact in float32, make many ties
        image_emb, caption_emb = np.round(image_emb * 2) / 2, np.round(caption_emb * 2) / 2
    by_text, by_image = ranking.both_directions(image_emb, caption_emb, image_of)
    own = np.arange(images)
    # Round the coordinates to the grid first, since the naive version uses float64.
    image_emb, caption_emb = (np.round(x.astype(np.float64) * 2**25) / 2**25 for x in (image_emb, caption_emb))
    assert by_text.rank.tolist() == naive_ranks(caption_emb, image_emb, image_of, own)
    assert by_image.rank.tolist() == naive_ranks(image_emb, caption_emb, own, image_of)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_order_of_queries_and_keys_does_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images, image_of = unit(rng, 20), np.concatenate([np.arange(20), rng.integers(20, size=15)])
    captions = unit(rng, 35)
    captions[5:9] = captions[4]
    by_text, by_image = ranking.both_directions(images, captions, image_of)
    assert by_text.rank.min() >= 1
    assert by_text.rank.max() <= 20
    assert (by_image.rank <= 35 - np.bincount(image_of) + 1).all()
    shuffled = rng.permutation(35)
    again_text, again_image = ranking.both_directions(images, captions[shuffled], image_of[shuffled])
    assert np.array_equal(again_text.rank, by_text.rank[shuffled])
    assert np.array_equal(again_image.rank, by_image.rank)


def test_an_image_without_caption_is_never_found() -> None:
    by_text, by_image = ranking.both_directions(np.eye(3), np.eye(3)[:2], np.array([0, 2]))
    assert by_text.rank.tolist() == [1, 3]
    assert by_image.rank.tolist() == [1, 3, 2]
    assert by_image.tied.tolist() == [False, False, True]


def test_hit_rates_agree_with_torchmetrics() -> None:
    rng = np.random.default_rng(11)
    images, image_of = unit(rng, 60), np.repeat(np.arange(60), 5)
    captions = images[image_of] + 1.5 * unit(rng, 300)
    captions /= np.linalg.norm(captions, axis=1, keepdims=True)
    by_text, by_image = ranking.both_directions(images, captions, image_of)
    recalls = ranking.recalls(ranking.gather_hits(by_text.rank, by_image.rank, image_of))
    scores = torch.from_numpy(captions @ images.T)
    right = torch.from_numpy(image_of[:, None] == np.arange(60))
    for column, k in enumerate(ranking.RECALL_AT):
        for offset, matrix, target in ((0, scores, right), (3, scores.T, right.T)):
            indexes = torch.arange(len(matrix))[:, None].expand_as(matrix)
            oracle = RetrievalHitRate(top_k=k)(matrix.flatten(), target.flatten(), indexes.flatten())
            assert recalls[column + offset] == pytest.approx(float(oracle), abs=1e-6)
    assert 0.1 < recalls[0] < 0.9


def test_hits_by_hand() -> None:
    hits = ranking.gather_hits(np.array([1, 6, 11, 2]), np.array([1, 7]), np.array([0, 0, 1, 1]))
    assert hits.hits.tolist() == [[1, 1, 2, 1, 1, 1], [0, 1, 1, 0, 0, 1]]
    assert hits.queries.tolist() == [[2, 2, 2, 1, 1, 1]] * 2
    assert ranking.recalls(hits).tolist() == pytest.approx([0.25, 0.5, 0.75, 0.5, 0.5, 1.0, 3.5 / 6])


def test_nan_is_an_error_and_not_rank_one() -> None:
    emb = np.full((3, 4), np.nan)
    with pytest.raises(UserError, match="NaN"):
        ranking.both_directions(emb, emb, np.arange(3))


@pytest.mark.parametrize(
    ("images", "captions", "image_of", "message"),
    [
        (np.eye(2), np.eye(2), [0, 2], "one of the 2 images"),
        (np.eye(2), np.eye(2), [0, -1], "one of the 2 images"),
        (np.eye(2), np.eye(3), [0, 1, 0], "cannot be compared"),
        (np.eye(2), np.eye(2), [0], "2 captions need"),
        (np.eye(2) * 9, np.eye(2), [0, 1], "unit length"),
        (np.zeros((0, 2)), np.zeros((0, 2)), [], "nothing to rank"),
    ],
)
def test_misuse_is_refused(images: np.ndarray, captions: np.ndarray, image_of: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ranking.both_directions(images, captions, np.array(image_of, dtype=np.int64))


def test_chance_by_hand() -> None:
    one = ranking.chance(np.ones(1000, dtype=np.int64))
    assert one.tolist() == pytest.approx([0.001, 0.005, 0.01] * 2)
    two = ranking.chance(np.array([2, 1]))
    # of three captions, an image with two misses at 1 with 1/3, an image with one with 2/3; nothing misses at 5
    assert two.tolist() == pytest.approx([0.5, 1, 1, 0.5, 1, 1])


def test_chance_is_what_random_embeddings_get() -> None:
    rng = np.random.default_rng(0)
    image_of = np.repeat(np.arange(30), rng.integers(1, 6, size=30))
    total = np.zeros(6)
    for _ in range(300):
        by_text, by_image = ranking.both_directions(unit(rng, 30, 24), unit(rng, len(image_of), 24), image_of)
        total += ranking.recalls(ranking.gather_hits(by_text.rank, by_image.rank, image_of))[:6]
    assert total / 300 == pytest.approx(ranking.chance(np.bincount(image_of)), abs=0.015)


def some_hits(rng: np.random.Generator, images: int, good: float) -> ranking.Hits:
    image_of = np.repeat(np.arange(images), 5)
    by_text = np.where(rng.random(images * 5) < good, 1, 20)
    return ranking.gather_hits(by_text, np.where(rng.random(images) < good, 1, 20), image_of)


def resampled(hits: ranking.Hits, **options: int) -> np.ndarray:
    images = len(hits.hits)
    return bootstrap.resample_together([(hits, np.arange(images))], images, **options)[0]


def test_interval_agrees_with_scipy_on_clusters() -> None:
    hits = some_hits(np.random.default_rng(2), 120, 0.4)
    low, high = bootstrap.interval(resampled(hits, resamples=4000))
    for column in (0, 3):
        oracle = scipy.stats.bootstrap(
            (hits.hits[:, column], hits.queries[:, column]),
            lambda h, q, axis: h.sum(axis=axis) / q.sum(axis=axis),
            paired=True,
            vectorized=True,
            n_resamples=4000,
            method="percentile",
            rng=np.random.default_rng(1),
        ).confidence_interval
        assert [low[column], high[column]] == pytest.approx([oracle.low, oracle.high], abs=0.01)


def test_captions_of_one_image_are_not_independent() -> None:
    image_of, found = np.repeat(np.arange(200), 5), np.repeat(np.arange(200) % 2, 5)
    all_or_none = ranking.gather_hits(np.where(found, 1, 20), np.where(found[::5], 1, 20), image_of)
    low, high = bootstrap.interval(resampled(all_or_none))
    assert high[0] - low[0] == pytest.approx(2 * 1.96 * (0.25 / 200) ** 0.5, rel=0.15)


def test_resampling_is_seeded_and_blocks_do_not_change_it(monkeypatch: pytest.MonkeyPatch) -> None:
    hits = some_hits(np.random.default_rng(2), 50, 0.4)
    whole = resampled(hits, seed=3)
    assert np.array_equal(whole, resampled(hits, seed=3))
    assert not np.array_equal(whole, resampled(hits, seed=4))
    monkeypatch.setattr(bootstrap, "_SCORES_PER_BLOCK", 50 * 64)
    assert np.array_equal(whole, resampled(hits, seed=3))


def test_a_thousand_resamples_of_a_thousand_images_take_less_than_a_second() -> None:
    hits = some_hits(np.random.default_rng(2), 1000, 0.4)
    start = time.perf_counter()
    resampled(hits, resamples=1000)
    assert time.perf_counter() - start < 1


def test_interval_covers_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(8)
    covered = 0
    for _ in range(200):
        low, high = bootstrap.interval(resampled(some_hits(rng, 150, 0.3), resamples=400))
        covered += low[3] <= 0.3 <= high[3]
    assert 180 <= covered <= 199


# Galleries that share photos


def a_hits(seed, images=30, each=2):
    rng = np.random.default_rng(seed)
    image_of = np.repeat(np.arange(images), each)
    return ranking.gather_hits(rng.integers(1, 15, len(image_of)), rng.integers(1, 15, images), image_of)


def test_galleries_are_resampled_together_like_a_plain_loop():
    first, second = a_hits(1), a_hits(2, images=12, each=3)
    photos = [np.arange(30), np.array([29, 3, 5, *range(30, 39)])]
    found = bootstrap.resample_together([(first, photos[0]), (second, photos[1])], 39, resamples=150, seed=5)
    drawn = np.random.default_rng(5).integers(39, size=(150, 39))
    for hits, photo, rows in zip((first, second), photos, found, strict=True):
        for draw, row in zip(drawn, rows, strict=True):
            times = [np.count_nonzero(draw == one) for one in photo]
            total = sum(t * h for t, h in zip(times, hits.hits, strict=True))
            asked = sum(t * q for t, q in zip(times, hits.queries, strict=True))
            np.testing.assert_allclose(row[:6], total / asked)
            assert row[6] == pytest.approx(row[:6].mean())


def test_a_gallery_of_which_no_photo_is_drawn_keeps_its_recalls():
    rare = ranking.gather_hits(np.array([3]), np.array([1]), np.array([0]))
    found = bootstrap.resample_together([(a_hits(0), np.arange(30)), (rare, np.array([30]))], 31, resamples=200)[1]
    np.testing.assert_array_equal(found, np.broadcast_to(ranking.recalls(rare), (200, 7)))


def test_hits_of_folds_give_the_mean_of_the_folds():
    """By hand: a fold of one image with three found captions, and a fold of two images with one found caption."""
    image_of, fold_of = np.array([0, 0, 0, 1, 2]), np.array([7, 2, 2])
    hits = ranking.gather_hits(np.array([1, 1, 1, 1, 2]), np.array([1, 1, 6]), image_of, fold_of)
    # text to image at 1: (3/3 + 1/2) / 2, not 4/5; image to text at 1 and at 5: (1/1 + 1/2) / 2, not 2/3
    assert ranking.recalls(hits)[:6] == pytest.approx([0.75, 1, 1, 0.75, 0.75, 1])


def test_memory_does_not_grow_with_the_square_of_the_gallery():
    """30,000 captions and 3,000 images: the matrix of all scores would take 343 MiB in float32."""
    rng = np.random.default_rng(0)
    images, captions = (rng.standard_normal((n, 4)) for n in (3_000, 30_000))
    images, captions = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (images, captions))
    tracemalloc.start()
    try:
        ranking.both_directions(images, captions, np.arange(30_000) % 3_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 160 * 2**20
