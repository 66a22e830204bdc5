from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from polyalign.evaluation import ranking
from polyalign.evaluation.tasks import retrieval
from polyalign.models.embed import embed
from polyalign.utils.errors import UserError
from tests import tiny
from tests.unit.test_results import a_gallery, embeddings


def test_score_says_everything() -> None:
    gallery = a_gallery(np.array([1, 3, 2, 4]))
    got = retrieval.measure(*embeddings(gallery, noise=0.01), gallery)
    assert (got.gallery, got.lang, got.origin, got.images, got.captions) == ("toy", "sw", "human", 4, 10)
    assert got.image_of == (0, 1, 1, 1, 2, 2, 3, 3, 3, 3)
    assert (got.text_to_image.queries, got.image_to_text.queries) == (10, 4)
    assert got.mean_recall.value == 1.0
    assert got.text_to_image.median_rank == got.image_to_text.mean_rank == 1.0
    assert list(got.text_to_image.recall) == [1, 5, 10]


def test_captions_in_any_order_give_the_same_recall() -> None:
    gallery = a_gallery(np.full(30, 3))
    images, captions = embeddings(gallery, noise=1.5)
    shuffled = np.random.default_rng(1).permutation(len(gallery))
    other = replace(gallery, captions=tuple(gallery.captions[c] for c in shuffled), image_of=gallery.image_of[shuffled])
    one, two = retrieval.measure(images, captions, gallery), retrieval.measure(images, captions[shuffled], other)
    assert one.mean_recall == two.mean_recall
    assert one.fingerprint != two.fingerprint


def test_collapse_is_zero_and_every_query_tied() -> None:
    gallery = a_gallery(np.full(40, 5))
    got = retrieval.measure(np.full((40, 16), 0.25), np.full((200, 16), 0.25), gallery)
    assert got.mean_recall.value == got.mean_recall.low == 0.0
    assert got.mean_recall.high == pytest.approx(1 - 0.025 ** (1 / 40)), "one in 40 images may be found by chance"
    assert (got.text_to_image.ties, got.image_to_text.ties) == (200, 40)


def test_an_empty_gallery_is_an_error() -> None:
    with pytest.raises(UserError, match="no captions in"):
        retrieval.check_gallery(a_gallery(np.array([0, 0])))


def test_an_image_without_caption_is_named() -> None:
    with pytest.raises(UserError, match=r'1 images .* "img2" is the first'):
        retrieval.check_gallery(a_gallery(np.array([1, 2, 0])))


def test_fingerprint_changes_with_any_part() -> None:
    gallery = a_gallery(np.array([2, 1]))
    others = [
        replace(gallery, image_ids=("img0", "other")),
        replace(gallery, captions=(*gallery.captions[:2], "other")),
        replace(gallery, image_of=np.array([0, 1, 1])),
        replace(gallery, captions=("neno 0\0neno 1", *gallery.captions[1:])),
    ]
    prints = {retrieval.fingerprint(g) for g in (gallery, *others)}
    assert len(prints) == 5
    assert retrieval.fingerprint(a_gallery(np.array([2, 1]))) in prints


def test_evaluate_embeds_what_it_scores() -> None:
    aligner, gallery = tiny.aligner(), tiny.table("test")
    embedded = embed(aligner, gallery, config=tiny.resolved().cache)
    got = retrieval.score(tiny.encoder(aligner), gallery, retrieval.Config())
    assert got.text_to_image.ranks == retrieval.measure(embedded.images, embedded.captions, gallery).text_to_image.ranks
    assert (got.images, got.captions) == (24, 48)


def test_folds_are_searched_each_alone_and_averaged() -> None:
    """By hand: images 0 and 2 look alike, which hurts neither, being in two folds. Fold 1 confuses its images."""
    east, north, up = np.eye(3, dtype=np.float32)
    gallery = replace(a_gallery(np.array([2, 1, 1, 1])), fold_of=np.array([0, 0, 1, 1]))
    images = np.stack([east, north, east, north])
    captions = np.stack([east, east, north, north, up])  # image 2 is called what image 3 is, image 3 something else
    got = retrieval.measure(images, captions, gallery)
    # Fold 0: captions 2/2 of image 0 and 1/1 of image 1 found first. Fold 1: "north" is nearer to 3; "up" ties both.
    assert got.text_to_image.ranks == (1, 1, 1, 2, 2)
    assert got.image_to_text.ranks == (1, 1, 2, 2)
    assert got.text_to_image.recall[1].value == got.image_to_text.recall[1].value == 0.5
    assert got.fold_sizes() == (2, 2)
    assert got.chance()[0] == 0.5
    whole = retrieval.measure(images, captions, replace(gallery, fold_of=None))
    assert whole.text_to_image.ranks[:2] == (2, 2)
    assert whole.fingerprint != got.fingerprint
    assert type(got).model_validate_json(got.model_dump_json()) == got


def test_the_mean_of_folds_is_the_mean_of_their_results() -> None:
    gallery = a_gallery(np.random.default_rng(0).integers(4, 7, 50))
    fold_of = np.arange(50) // 10
    images, captions = embeddings(gallery, noise=1.5)
    got = retrieval.measure(images, captions, replace(gallery, fold_of=fold_of))
    folds = []
    for fold in range(5):
        of_fold = fold_of[gallery.image_of] == fold
        part = gallery.take_images(np.flatnonzero(fold_of == fold))
        folds.append(retrieval.measure(images[fold_of == fold], captions[of_fold], part))
    for k in (1, 5, 10):
        for way in ("text_to_image", "image_to_text"):
            mean = np.mean([getattr(one, way).recall[k].value for one in folds])
            assert getattr(got, way).recall[k].value == pytest.approx(mean)
    assert got.mean_recall.low < got.mean_recall.value < got.mean_recall.high
    assert got.chance() == pytest.approx(np.mean([one.chance() for one in folds], axis=0))
    assert ranking.recalls(got.hits())[6] == pytest.approx(got.mean_recall.value)
