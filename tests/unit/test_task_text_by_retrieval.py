from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sacrebleu.metrics.chrf import CHRF

from polyalign.data.pairs import FileImage, PairTable
from polyalign.evaluation.tasks import text_by_retrieval
from polyalign.utils.errors import UserError
from tests import tiny

CAPTIONS = ("paka mweusi", "paka mmoja", "mbwa mweupe", "mbwa wawili", "mbwa mkubwa mweupe")
GALLERY = PairTable(
    name="toy",
    lang="sw",
    origin="human",
    image_ids=("a", "b"),
    images=(FileImage(Path("a")), FileImage(Path("b"))),
    captions=CAPTIONS,
    image_of=np.array([0, 0, 1, 1, 1]),
)


def found(*picks: int) -> text_by_retrieval.TextByRetrieval:
    """Score a model whose images retrieve these captions."""
    return text_by_retrieval.measure(np.eye(5)[list(picks)], np.eye(5), GALLERY)


def test_a_right_caption_is_scored_against_the_others_of_its_image() -> None:
    expected = CHRF().corpus_score(
        ["paka mmoja", "mbwa wawili"], [["paka mweusi", "mbwa mweupe"], [None, "mbwa mkubwa mweupe"]]
    )
    assert found(1, 3).chrf == pytest.approx(expected.score)


def test_a_wrong_caption_is_scored_against_all_of_the_image() -> None:
    expected = CHRF().corpus_score(
        ["mbwa mweupe", "mbwa mweupe"], [["paka mweusi", "mbwa wawili"], ["paka mmoja", CAPTIONS[4]]]
    )
    assert found(2, 2).chrf == pytest.approx(expected.score)


def test_baselines_frame_the_score() -> None:
    got = found(0, 2)
    assert got.chrf == got.own
    assert got.random < got.own
    assert found(3, 1).chrf < got.chrf
    assert "nc:6" in got.signature


def test_equal_captions_of_an_image_do_not_take_themselves_as_reference() -> None:
    twin = replace(GALLERY, captions=("x", "x", *CAPTIONS[2:]))
    assert text_by_retrieval.measure(np.eye(5)[[0, 2]], np.eye(5), twin).chrf > 0


def test_captions_in_any_order_give_the_same_score() -> None:
    order = np.array([4, 1, 3, 0, 2])
    mixed = replace(GALLERY, captions=tuple(CAPTIONS[c] for c in order), image_of=GALLERY.image_of[order])
    assert text_by_retrieval.measure(np.eye(5)[[1, 3]], np.eye(5)[order], mixed).chrf == pytest.approx(found(1, 3).chrf)


def test_evaluate_embeds_the_gallery() -> None:
    got = text_by_retrieval.score(tiny.encoder(tiny.aligner()), tiny.table("test"), text_by_retrieval.Config())
    assert (got.images, got.captions) == (24, 48)
    assert 0 < got.chrf <= 100


@pytest.mark.parametrize("captions", [[0], [0, 1], [0, 1, 2]])
def test_a_single_caption_is_an_error(captions: list[int]) -> None:
    with pytest.raises(UserError, match="two captions or more each"):
        text_by_retrieval.check_gallery(GALLERY.take_pairs(captions))
