"""Runs that start from a run, and runs that a run teaches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from polyalign.config.schema import Parent, Recipe, merge
from polyalign.data.trained_images import join, load_trained_images
from polyalign.evaluation.evaluate import evaluate
from polyalign.evaluation.model import load
from polyalign.evaluation.results import Run
from polyalign.experiments.run_folders import continuation, distillation
from polyalign.models import checkpoint
from polyalign.models.embed import prepare
from polyalign.training import inputs, train
from polyalign.training.inherit import inherit
from polyalign.utils.errors import UserError
from tests import tiny

SENTENCES = {"text": "captions", "langs": ["en", "de"]}


@pytest.fixture(scope="module")
def parent(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("parent")
    train.train(tiny.resolved("lilt", data={"budget": "60-pairs"}), out, resume=False)
    return out


def test_a_run_goes_on_from_the_weights_of_another(parent):
    recipe = continuation(parent, None, {"data": {"budget": None}})
    aligner = tiny.build_aligner(recipe)
    inherit(aligner, recipe)
    assert tiny.same(checkpoint.trained_state(aligner), tiny.weights(parent))
    start = train.set_up(recipe)
    before = Run.load_json(parent / train.RESULT).test[0]
    assert start.untrained[0].mean_recall.value == before.mean_recall.value


def test_its_folder_is_enough_to_use_it_and_remembers_the_images_of_both(parent, tmp_path):
    recipe = continuation(parent, "de", {"data": {"budget": "30-pairs", "data_seed": 5}, "optim": {"epochs": 2}})
    assert recipe.parent is not None
    assert recipe.lang == "de"
    run = train.train(recipe, tmp_path / "on", resume=False)
    assert run.dev_evaluations[0].step == 0
    assert run.dev_evaluations[0].loss is None
    images = load_trained_images(tmp_path / "on").image_ids
    assert set(load_trained_images(parent).image_ids) < set(images)
    assert len(images) > run.images
    (tmp_path / "away").mkdir()
    (tmp_path / "on").rename(tmp_path / "away" / "run")
    again = evaluate(tmp_path / "away" / "run", langs=["de"])[0]
    assert again.mean_recall == run.test[0].mean_recall


def test_the_parent_is_kept_where_training_makes_it_worse(parent, tmp_path, caplog):
    recipe = continuation(parent, None, {"optim": {"lr": 30.0, "epochs": 1}})
    train.train(recipe, tmp_path, resume=False)
    assert "its weights are kept" in caplog.text
    assert tiny.same(tiny.weights(tmp_path), tiny.weights(parent))


def test_images_that_the_parent_was_trained_on_are_not_tested_on(parent):
    source = {"name": "folder", "root": str(tiny.data()), "split_column": None}
    moved = tiny.resolved("lilt", source={**source, "captions": "captions.csv"})
    earlier = load_trained_images(parent)
    table = tiny.table()
    assert set(earlier.image_ids) <= set(table.image_ids)
    recipe = moved.model_copy(update={"parent": Parent(run=str(parent), weights="0" * 64)})
    with pytest.raises(UserError, match=r"is not the file that the recipe was made from"):
        inputs.trained_images(recipe)


def test_a_dev_split_with_images_of_the_parent_is_refused_or_loses_them(parent, monkeypatch):
    recipe = continuation(parent, None, {})
    earlier = load_trained_images(parent)
    taken = earlier.image_ids[:3]
    whole = inputs.load_tables
    dev = tiny.table("dev")
    mixed = tiny.table().take_images([tiny.table().image_ids.index(one) for one in taken])

    from polyalign.data import load as loading

    def with_leak(source: Recipe, split: str, lang: str | None = None) -> object:
        return mixed if split == "dev" else tiny.table(split)

    monkeypatch.setattr(loading, "load_split", with_leak)
    with pytest.raises(UserError, match=r"leakage: the earlier run was trained on images of .*: 3 of the 3 images"):
        whole(recipe, earlier)
    excluded = continuation(parent, None, {"data": {"leakage": "exclude"}})
    with pytest.raises(UserError, match="the earlier run was trained on all its images"):
        whole(excluded, earlier)
    assert len(dev.images) == 24


def test_images_of_the_same_name_stay_two_if_they_look_different():
    table = tiny.table()
    one = table.take_images([0, 1])
    other = table.take_images([2, 3])
    renamed = type(other)(other.name, "en", "human", one.image_ids, other.images, (), np.empty(0, np.int64))
    assert len(join(one, renamed).images) == 4
    assert join(one, one).image_ids == one.image_ids
    assert join(one, None) is one


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"strategy": {"reduction": 2}}, "leave out strategy"),
        ({"projection": {"dim": 8}}, "leave out projection"),
        ({"vision": {"model": str(tiny.conv())}}, "leave out vision"),
    ],
)
def test_what_the_weights_belong_to_cannot_be_changed(overrides, message, parent):
    with pytest.raises(UserError, match=message):
        continuation(parent, None, overrides)


def test_a_folder_without_a_run_is_one_line(tmp_path):
    with pytest.raises(UserError, match="holds no finished checkpoint"):
        continuation(tmp_path, None, {})


# Distillation


@pytest.fixture(scope="module")
def student(parent, tmp_path_factory) -> tuple[Path, Run]:
    out = tmp_path_factory.mktemp("student")
    overrides = {"parallel": SENTENCES, "optim": {"epochs": 30, "lr": 3e-3}}
    return out, train.train(distillation(parent, "de", "lora", overrides), out, resume=False)


def test_a_student_has_the_images_of_its_teacher(parent, student):
    out, run = student
    photos = [str(path) for path in sorted((tiny.data() / "images").iterdir())[:5]]
    np.testing.assert_allclose(load(out).encode_image(photos), load(parent).encode_image(photos), atol=1e-6)
    assert (run.pairs, run.budget) == (0, "0-pairs")
    assert run.parallel_rows > 50
    assert load_trained_images(out).image_ids == load_trained_images(parent).image_ids


def test_a_student_says_what_its_teacher_says(parent, student):
    """The captions of this German are those of the English: the student must learn the teacher's own vectors."""
    out, run = student
    captions = list(tiny.table("test").captions[:20])
    wanted, found = load(parent).encode_text(captions), load(out).encode_text(captions, "de")
    assert float((wanted * found).sum(1).mean()) > 0.9
    assert run.test[0].lang == "de"
    assert run.test[0].mean_recall.value > run.untrained.mean_recall.value
    assert {one.lang for one in run.test} == {"de", "en"}


def test_only_the_text_side_trains_and_what_the_teacher_trained_is_saved(parent):
    aligner = tiny.build_aligner(distillation(parent, "de", "lora", {"parallel": SENTENCES}))
    assert all(name.startswith("text") for name in aligner.trainable())
    saved = checkpoint.trained_state(aligner)
    assert {name for name in tiny.weights(parent) if not name.startswith("text")} <= saved.keys()
    assert aligner.cuts()[0] == checkpoint.load(parent)[0].cuts()[0] == 1  # the teacher's adapters are in each block


def test_features_of_the_teachers_tower_are_not_taken_for_those_of_the_pretrained_one(parent):
    recipe = distillation(parent, "de", "projection", {"parallel": SENTENCES})
    pretrained = tiny.build_aligner(tiny.resolved())
    prepare(pretrained, tiny.table("test"), recipe.cache)
    aligner = tiny.build_aligner(recipe)
    inherit(aligner, recipe)
    found = inputs.of_teacher(recipe, aligner)
    teacher, _ = checkpoint.load(parent)
    features = prepare(teacher, tiny.table("test"), recipe.cache)
    assert found.test["de"].images.cut == features.images.cut == 1
    with torch.no_grad():
        rows = np.arange(4)
        one = aligner.encode_image(found.test["de"].images.batch(rows), 1)
        other = teacher.encode_image(features.images.batch(rows), 1)
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("strategy", "overrides", "message"),
    [
        ("lora", {}, r"distillation needs parallel sentences"),
        ("lora", {"parallel": {**SENTENCES, "langs": ["en", "sw"]}}, "has no sentences in de"),
        ("lora", {"parallel": SENTENCES, "projection": {"dim": 8}}, "the vision side is that of"),
        ("nothing", {"parallel": SENTENCES}, "unknown strateg"),
    ],
)
def test_bad_input_of_distillation_is_one_line(strategy, overrides, message, parent):
    with pytest.raises(UserError, match=message):
        train.set_up(distillation(parent, "de", strategy, overrides))


def test_a_distilled_run_can_be_gone_on_from_with_pairs(student, tmp_path):
    out, _ = student
    recipe = continuation(out, "de", {"data": {"budget": "30-pairs"}, "optim": {"epochs": 1}})
    assert not recipe.distils
    run = train.train(recipe, tmp_path, resume=False)
    assert run.pairs == 30


def test_a_mean_squared_error_without_a_teacher_is_refused():
    with pytest.raises(UserError, match="mse is for polyalign distill"):
        tiny.resolved(optim={"loss": "mse"})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"parallel": {"anchor": 1.0}}, r"parallel\.anchor: distillation uses no pairs"),
        ({"data": {"budget": "10-pairs"}}, r"data\.budget: distillation uses no pairs"),
        ({"data": {"views": 2}}, r"data\.views: distillation uses no pairs"),
        ({"strategy": {"name": "lilt"}}, "the strategy is given by --strategy"),
        ({"lang": "sw"}, "is given by --lang"),
    ],
)
def test_settings_that_distillation_does_not_use_are_refused(overrides, message, parent):
    with pytest.raises(UserError, match=message):
        distillation(parent, "de", "lora", merge({"parallel": SENTENCES}, overrides))


def test_another_strategy_starts_from_the_pretrained_text_tower(parent, student, caplog):
    caplog.set_level("INFO")
    recipe = distillation(parent, "de", "lora", {"parallel": SENTENCES})
    aligner = tiny.build_aligner(recipe)
    before = aligner.text_projection.weight.clone()
    inherit(aligner, recipe)
    assert torch.equal(aligner.text_projection.weight, before)
    assert "the text tower starts as pretrained" in caplog.text
    same = distillation(parent, "de", "lilt", {"parallel": SENTENCES})
    aligner = tiny.build_aligner(same)
    inherit(aligner, same)
    assert torch.equal(aligner.text_projection.weight, tiny.weights(parent)["text_projection.weight"])


def test_a_dev_split_without_a_taught_language_is_one_line(parent, tmp_path):
    rows = [f"{caption}\t{caption}\t" for caption in tiny.table().captions[:40]]
    (tmp_path / "text.tsv").write_text("\n".join(["en\tde\tsw", *rows]), encoding="utf-8")
    recipe = distillation(parent, "de,sw", "lora", {"parallel": {"text": str(tmp_path / "text.tsv")}})
    recipe = recipe.model_copy(update={"source": {"name": "folder", "root": str(tiny.bilingual())}})
    with pytest.raises(UserError, match=r"0 of the rows held out for dev have a sentence in sw|has no row with lang"):
        inputs.of_teacher(recipe, tiny.build_aligner(recipe))
