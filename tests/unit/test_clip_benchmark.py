"""Compare retrieval metrics with CLIP_benchmark's, reimplemented from their definition, and show the differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from polyalign.data.pairs import PairTable
from polyalign.evaluation import ranking
from polyalign.evaluation.tasks import retrieval


def clip_benchmark(images, captions, image_of, k):
    """Return (image_retrieval_recall@k, text_retrieval_recall@k) as CLIP_benchmark's zeroshot_retrieval defines them.

    Scores are texts times images; a positive is a caption with its own image. A query scores 1 if ``topk`` of its
    scores holds any positive, which is recall clipped to a hit, and the mean over queries is a fraction. Its
    "image_retrieval" has captions as queries: our text to image.
    """
    scores = torch.from_numpy(captions) @ torch.from_numpy(images).T
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[torch.arange(len(image_of)), torch.from_numpy(image_of)] = True

    def hits(matrix, truth):
        top = matrix.topk(min(k, matrix.shape[1]), dim=1).indices
        return float(truth.gather(1, top).any(1).float().mean())

    return hits(scores, positive), hits(scores.T, positive.T)


def ours(images, captions, image_of):
    table = PairTable(
        name="gallery",
        lang="en",
        origin="human",
        image_ids=tuple(map(str, range(len(images)))),
        images=(None,) * len(images),
        captions=tuple(map(str, range(len(captions)))),
        image_of=image_of,
    )
    found = retrieval.measure(images, captions, table)
    return {k: (found.text_to_image.recall[k].value, found.image_to_text.recall[k].value) for k in ranking.RECALL_AT}


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def world(seed, images, each, noise=1.0):
    rng = np.random.default_rng(seed)
    seen = rng.standard_normal((images, 12))
    image_of = rng.permutation(np.repeat(np.arange(images), each))
    said = seen[image_of] + noise * rng.standard_normal((len(image_of), 12))
    return unit(seen), unit(said), image_of


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("each", [1, 2, 5])
def test_without_ties_every_number_is_clip_benchmarks(seed, each):
    """With one or five captions per image, in any order: their recall is clipped to a hit, like ours."""
    images, captions, image_of = world(seed, 60, each)
    found = ours(images, captions, image_of)
    for k in ranking.RECALL_AT:
        assert found[k] == pytest.approx(clip_benchmark(images, captions, image_of, k), abs=1e-6)
    assert 0 < found[1][0] < 1


def test_images_with_different_numbers_of_captions_agree_too():
    rng = np.random.default_rng(3)
    image_of = np.concatenate([np.arange(40), rng.integers(0, 40, 70)])
    images, captions = unit(rng.standard_normal((40, 8))), unit(rng.standard_normal((110, 8)))
    found = ours(images, captions, image_of)
    for k in ranking.RECALL_AT:
        assert found[k] == pytest.approx(clip_benchmark(images, captions, image_of, k), abs=1e-6)


def test_ties_are_where_it_differs_topk_may_place_the_right_one_first_and_ours_places_it_last():
    """With a collapsed model all scores are equal: ``topk`` returns arbitrary items, ours finds nothing."""
    image_of = np.arange(20)
    same = np.tile(unit(np.ones((1, 8))), (20, 1))
    theirs = clip_benchmark(same, same, image_of, 10)
    assert theirs == (0.5, 0.5)  # ten of twenty, only because of the order of the rows
    assert ours(same, same, image_of)[10] == (0, 0)


def test_a_tie_between_two_images_costs_us_the_hit_and_leaves_it_to_chance_there():
    images, captions, image_of = world(0, 30, 1, noise=0.0)
    images[1] = images[0]
    found = ours(images, captions, image_of)[1]
    theirs = clip_benchmark(images, captions, image_of, 1)
    # Both images have equal scores for captions 0 and 1: ours counts neither.
    assert found[0] == pytest.approx(28 / 30)
    assert found[0] <= theirs[0]


def test_recall_as_a_share_of_the_captions_is_not_what_either_reports():
    """With five captions per image, the true recall@1 of a perfect model is 0.2; its hit rate is 1 in both."""
    images, captions, image_of = world(0, 12, 5, noise=0.0)
    assert ours(images, captions, image_of)[1][1] == 1
    assert clip_benchmark(images, captions, image_of, 1)[1] == 1
