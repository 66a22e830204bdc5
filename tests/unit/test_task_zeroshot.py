from __future__ import annotations

import numpy as np
import pytest

from polyalign.config import language as languages
from polyalign.data.labelled import Labelled
from polyalign.evaluation.tasks import zeroshot
from polyalign.evaluation.tasks.zeroshot import Config
from polyalign.utils.errors import UserError
from tests import tiny
from tests.unit.test_task_retention import labelled


def some(labels: list[int], classes: int) -> Labelled:
    names = tuple(f"class {i}" for i in range(classes))
    images = tiny.table("test").images[: len(labels)]
    return Labelled("toy", "en", images, np.array(labels), names, tuple((name,) for name in names))


def test_score_by_hand() -> None:
    image_emb = np.eye(6)[[0, 0, 1, 2]]
    got = zeroshot.measure(image_emb, np.eye(6), some([0, 0, 0, 2], 6), ("{}",))
    # class 0: two of three, class 2: one of one; the image of class 0 that looks like class 1 ties with all the others
    assert got.top1.value == 0.75
    assert got.top5.value == 0.75
    assert got.mean_per_class.value == pytest.approx((2 / 3 + 1) / 2)
    assert (got.classes, got.images, got.ties) == (6, 4, 1)
    assert got.top1.low < 0.75 < got.top1.high


def test_a_collapsed_model_finds_nothing() -> None:
    got = zeroshot.measure(np.full((4, 4), 0.5), np.full((6, 4), 0.5), some([0, 1, 2, 3], 6), ("{}",))
    assert got.top1.value == got.top5.value == got.mean_per_class.value == 0
    assert got.ties == 4


def test_a_class_without_images_still_distracts() -> None:
    got = zeroshot.measure(np.eye(3)[[2, 1]], np.eye(3), some([0, 1], 3), ("{}",))
    assert got.top1.value == 0.5
    assert got.mean_per_class.value == 0.5


def test_mean_per_class_has_the_interval_of_its_classes() -> None:
    labels = np.repeat([0, 1], [400, 100])
    right = np.concatenate([np.arange(400) % 2 == 0, np.ones(100, bool)])
    got = zeroshot._mean_per_class(right, labels)
    assert got.value == 0.75
    assert got.high - got.value == pytest.approx(1.96 * (0.25 / 400) ** 0.5 / 2)


def test_prompts_are_averaged_by_class() -> None:
    prompts = np.array([[1, 0], [0, 1], [0, 1]], dtype=np.float32)
    centres = zeroshot.centres(prompts, np.array([0, 0, 1]))
    np.testing.assert_allclose(centres, [[0.5**0.5, 0.5**0.5], [0, 1]])


def test_evaluate_uses_the_languages_own_prompts() -> None:
    got = zeroshot.score(tiny.encoder(tiny.aligner()), labelled(), Config(images=""))
    assert got.templates == languages.load_language("en").prompts
    assert 0 <= got.top1.value <= got.top5.value <= 1
    mine = zeroshot.score(tiny.encoder(tiny.aligner()), labelled(), Config(images="", prompts=("a {} then", "{}")))
    assert mine.templates == ("a {} then", "{}")


def test_several_names_and_prompts_of_a_class_make_one_centre() -> None:
    aligner, one = tiny.aligner(), labelled()
    twice = Labelled(one.name, one.lang, one.images, one.labels, one.classes, tuple((n[0], n[0]) for n in one.names))
    a, b = (
        zeroshot.score(tiny.encoder(aligner), gallery, Config(images="", prompts=("{}",))) for gallery in (one, twice)
    )
    assert a == b


def test_a_prompt_without_a_place_for_the_name_is_an_error() -> None:
    with pytest.raises(UserError, match=r'prompt "a photo" has no \{\}'):
        zeroshot.score(tiny.encoder(tiny.aligner()), labelled(), Config(images="", prompts=("a photo",)))
