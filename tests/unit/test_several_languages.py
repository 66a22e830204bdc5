"""One run on the pairs of several languages, with parallel sentences beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from polyalign.config.resolve import budget_overrides, resolve
from polyalign.config.schema import Recipe
from polyalign.data.load import load_split, load_tables
from polyalign.data.pairs import merge
from polyalign.evaluation.model import load
from polyalign.evaluation.results import LeftOut, Run
from polyalign.experiments import report
from polyalign.models.embed import SentenceFeatures
from polyalign.models.feature_cache import CachedFeatures
from polyalign.training import inputs, train
from polyalign.training.loop import Loop
from polyalign.training.loss import info_nce, positives
from polyalign.utils.errors import UserError
from tests import tiny


@pytest.fixture
def recipe():
    def resolved(name: str = "lit", /, **sections: dict[str, object]) -> Recipe:
        data = {"also_langs": ["de"], **sections.pop("data", {})}
        return tiny.resolved(name, source={"name": "folder", "root": str(tiny.bilingual())}, data=data, **sections)

    return resolved


def test_pairs_of_all_languages_are_one_table_in_which_an_image_is_one(recipe):
    tables = load_tables(recipe())
    assert tables.trained_on() == {"en": (128, 64), "de": (64, 32)}
    assert len(tables.train.images) == 64
    assert list(tables.dev) == list(tables.test) == ["en", "de"]
    last = len(tables.train) - 1
    assert (tables.train.caption_langs[0], tables.train.caption_langs[last]) == ("en", "de")
    english = tables.train.take_pairs([c for c, lang in enumerate(tables.train.caption_langs) if lang == "en"])
    assert english.captions == load_tables(recipe(data={"also_langs": []})).train.captions


def test_captions_of_one_image_in_two_languages_are_positives(recipe):
    train = load_tables(recipe()).train
    de = train.caption_langs.index("de")
    same = [c for c in range(len(train)) if train.image_of[c] == train.image_of[de]]
    assert {train.caption_langs[c] for c in same} == {"en", "de"}
    assert positives(torch.from_numpy(train.image_of[same])).all()


def test_budgets_of_single_languages(recipe):
    found = recipe(data={"budget": "40-pairs", "budgets": {"de": "10-pairs"}})
    assert load_tables(found).trained_on() == {"en": (40, 34), "de": (10, 10)}
    assert found.budget == "en=40-pairs+de=10-pairs"
    assert budget_overrides("en=40-pairs,de=10-pairs+20min") == {
        "data": {"budget": None, "budgets": {"en": "40-pairs", "de": "10-pairs"}},
        "train": {"max_seconds": 1200},
    }


def test_only_the_named_targets_select_the_checkpoint(recipe):
    assert list(load_tables(recipe(data={"targets": ["de"]})).dev) == ["de"]


@pytest.mark.parametrize(
    ("lang", "overrides", "message"),
    [
        ("sw,de,sw", {}, "a language is named twice"),
        ("sw,xx", {}, 'unknown language "xx"'),
        ("sw", {"data": {"targets": ["de"]}}, "de is not trained on"),
        ("sw", {"data": {"budgets": {"de": "10-pairs"}}}, "de is not trained on"),
        (" , ", {}, "--lang is empty"),
        ("sw", {"train": {"temperature": 0.5}}, "greater than or equal to 1"),
    ],
)
def test_languages_that_make_no_sense_are_refused(lang, overrides, message):
    with pytest.raises(UserError, match=message):
        resolve("starter", lang, "lilt", overrides)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, Run]:
    out = tmp_path_factory.mktemp("run")
    source = {"name": "folder", "root": str(tiny.bilingual())}
    found = tiny.resolved("lit", source=source, data={"also_langs": ["de"], "budgets": {"de": "20-pairs"}})
    return out, train.train(found, out, resume=False)


def test_a_run_is_tested_in_each_of_its_languages(run):
    _, found = run
    assert [one.lang for one in found.test] == ["en", "de"]
    assert found.langs == ("en", "de")
    assert all(one.mean_recall.value > 0.2 for one in found.test)
    assert found.trained_on["de"].pairs == 20
    assert found.pairs == 148


def test_in_the_tables_of_a_language_a_run_counts_the_pairs_of_that_language(run, tmp_path):
    _, found = run
    german = found.in_language("de")
    assert (german.lang, german.pairs, german.budget, german.test[0].lang) == ("de", 20, "20-pairs", "de")
    assert german.recipe["data"]["also_langs"] == ["en"]
    found.save_json(tmp_path / "runs" / "one.json")
    comparisons = report.load(tmp_path)
    assert [(one.lang, one.budget) for one in comparisons] == [("de", "20-pairs"), ("en", "all")]


# Parallel sentences


def test_a_step_takes_the_pivot_and_another_language_of_each_row():
    row_of = np.array([[0, 1, 2], [3, -1, 4], [-1, 5, 6]])
    features = SentenceFeatures(CachedFeatures(np.zeros((7, 2), np.float32), 1), row_of, np.arange(7))
    picked = [features.pick(np.array([0, 1, 2]), np.random.default_rng(seed)) for seed in range(30)]
    assert {tuple(two[0]) for two in picked} == {(0, 1), (0, 2)}
    assert {tuple(two[1]) for two in picked} == {(3, 4)}
    assert {tuple(sorted(two[2])) for two in picked} == {(5, 6)}


def loop_with(recipe: Recipe) -> Loop:
    aligner = tiny.build_aligner(recipe)
    found = inputs.of_pairs(recipe, aligner, 1)
    return Loop(recipe, aligner, found.train, found.dev, Accelerator(), found.sentences)


@pytest.mark.parametrize("micro", [None, 7])
def test_the_loss_of_parallel_sentences_and_its_gradient(micro, recipe):
    """A naive twin: the sentences are encoded whole, without a cache and in one batch."""
    parallel = {"text": "captions", "langs": ["en", "de"], "weight": 0.5, "anchor": 2.0, "batch_size": 20}
    changes = {"parallel": parallel, "optim": {"micro_batch": micro}, "data": {"also_langs": []}}
    loop = loop_with(recipe("lora", **changes))
    assert len(loop.sentences) == 61
    aligner = loop.aligner.train()
    with torch.no_grad():
        for parameter in aligner.trainable().values():
            parameter.add_(0.05)
    loss = loop.backward_sentences(step=1, seed=0)
    found = {name: one.grad.clone() for name, one in aligner.trainable().items() if one.grad is not None}
    aligner.zero_grad()

    sentences = loop.sentences
    rows = loop._rows.batch(1)
    picked = sentences.pick(rows, np.random.default_rng((0, 2**32, 1, 0)))
    aligner.eval()  # without dropout there is nothing random
    store = sentences.store
    left, right = (aligner.text.suffix(store.batch(side), store.cut) for side in picked.T)
    joint = [torch.nn.functional.normalize(aligner.text_projection(one)) for one in (left, right)]
    same = positives(*(torch.from_numpy(sentences.text_of[side]) for side in picked.T))
    before = [torch.from_numpy(sentences.before[side]) for side in picked.T]
    drift = torch.cat([1 - torch.cosine_similarity(a, b) for a, b in zip((left, right), before, strict=True)])
    twin = 0.5 * info_nce(*joint, aligner.scale, same) + 2 * drift.mean()
    twin.backward()
    torch.testing.assert_close(loss, twin.detach(), rtol=1e-4, atol=1e-5)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, aligner.trainable()[name].grad, rtol=2e-3, atol=1e-5)
    assert any(name.startswith("text.") for name in found)


def test_training_on_sentences_brings_other_sentences_and_their_translations_nearer(recipe, tmp_path):
    parallel = {"text": "captions", "langs": ["en", "de"], "batch_size": 64}
    kept = {"data": {"also_langs": []}, "optim": {"epochs": 4}}

    def found(folder: Path, **sections: object) -> float:
        asked = recipe("lit", **kept, **sections)
        run = train.train(asked, folder, resume=False)
        assert run.parallel_rows == (61 if sections else 0)
        captions = [load_split(asked, "dev", lang).captions for lang in ("en", "de")]
        english, german = (load(folder).encode_text(one) for one in captions)
        same = positives(torch.arange(len(english)))
        return float(info_nce(torch.from_numpy(english), torch.from_numpy(german), torch.tensor(20.0), same))

    assert found(tmp_path / "taught", parallel=parallel) < found(tmp_path / "alone") - 0.2


def test_an_interrupted_run_with_sentences_goes_on_to_the_bit(recipe, tmp_path, monkeypatch):
    parallel = {"text": "captions", "langs": ["en", "de"], "batch_size": 16, "anchor": 1.0}
    asked = recipe("lora", parallel=parallel, optim={"epochs": 2})
    whole = train.train(asked, tmp_path / "whole", resume=False)
    step = Loop._step

    def interrupted(self: Loop, index: int) -> torch.Tensor:
        if index == 4:
            raise KeyboardInterrupt
        return step(self, index)

    monkeypatch.setattr(Loop, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.train(asked, tmp_path / "parts", resume=False)
    monkeypatch.setattr(Loop, "_step", step)
    again = train.train(asked, tmp_path / "parts", resume=True)
    assert tiny.same(tiny.weights(tmp_path / "whole"), tiny.weights(tmp_path / "parts"))
    assert [one.mean_recall for one in again.test] == [one.mean_recall for one in whole.test]


def test_tables_of_other_images_keep_their_own():
    table = tiny.table()
    one, other = table.take_images([0, 1]), table.take_images([1, 2])
    both = merge([one, other])
    assert both.image_ids == tuple(dict.fromkeys([*other.image_ids, *one.image_ids]))
    for c, caption in enumerate((*one.captions, *other.captions)):
        assert caption in [
            table.captions[k]
            for k in np.flatnonzero(table.image_of == table.image_ids.index(both.image_ids[both.image_of[c]]))
        ]


def test_one_set_of_captions_is_not_two_languages():
    with pytest.raises(UserError, match="has the same captions in en and sw: state the language of each caption"):
        load_tables(tiny.resolved(data={"also_langs": ["sw"]}))


def test_budgets_of_the_other_languages_tell_runs_apart(run, tmp_path):
    _, found = run
    other = {**found.recipe, "data": {**found.recipe["data"], "budgets": {"de": "20-pairs", "en": "100-pairs"}}}
    two = found.model_copy(update={"recipe": other, "budget": "en=100-pairs+de=20-pairs"})
    for name, one in (("one", found), ("two", two)):
        one.save_json(tmp_path / "runs" / f"{name}.json")
    german = next(one for one in report.load(tmp_path) if one.lang == "de")
    assert len(german.methods) == 2


def test_a_failed_run_is_listed_in_the_tables_of_each_of_its_languages(run, tmp_path):
    _, found = run
    fields = found.model_dump(include={"recipe", "lang", "strategy", "towers", "budget", "seed"})
    found.save_json(tmp_path / "runs" / "one.json")
    LeftOut(**{**fields, "seed": 1}, why="no memory").save_json(tmp_path / "left-out" / "two.json")
    assert [[one.why for one in comparison.left_out] for comparison in report.load(tmp_path)] == [["no memory"]] * 2


def test_other_languages_are_those_that_all_methods_were_tested_in(run, tmp_path):
    _, found = run
    test = found.test[0]
    transfer = [test.model_copy(update={"lang": lang}).without_ranks() for lang in ("sw", "qu")]
    alone = found.model_copy(update={"untrained_in": {}, "trained_on": {}, "budget": "all", "test": (test, *transfer)})
    alone = alone.model_copy(update={"recipe": {**alone.recipe, "data": {**alone.recipe["data"], "also_langs": []}}})
    both = found.model_copy(update={"test": (*found.test, transfer[0])})
    alone.save_json(tmp_path / "runs" / "one.json")
    both.save_json(tmp_path / "runs" / "two.json")
    english = next(one for one in report.load(tmp_path) if one.lang == "en")
    assert {method.other_langs for method in english.methods} == {("sw",)}
    assert {method.name for method in english.methods} == {"lit, text tower", "lit, text tower, with de"}
