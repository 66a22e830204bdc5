from __future__ import annotations

import math
from pathlib import Path

import pytest

import polyalign
from polyalign.evaluation.results import Score
from polyalign.experiments.report import results
from polyalign.utils.errors import UserError
from tests.unit.test_report import saved, some_runs


def test_one_row_a_run_with_every_setting_and_metric(tmp_path: Path) -> None:
    runs = some_runs()
    found = results(saved(tmp_path, runs))
    assert len(found) == len(runs)
    assert list(found["strategy"]) == [run.strategy for run in runs]
    first, run = found.iloc[0], runs[0]
    assert first["recipe.optim.lr"] == 1e-3
    assert first["recipe.train.seed"] == first["seed"] == 0
    assert (first["trainable"], first["seconds"], first["versions.torch"]) == (211_204, 93.4, "2.14.1")
    assert first["mean_recall"] == pytest.approx(run.test[0].mean_recall.value)
    assert first["mean_recall_low"] < first["mean_recall"] < first["mean_recall_high"]
    assert first["text_to_image_r1"] == pytest.approx(run.test[0].text_to_image.recall[1].value)
    assert first["untrained_image_to_text_r10"] == pytest.approx(run.untrained.image_to_text.recall[10].value)
    assert first["mean_recall.yo"] == run.test[1].mean_recall.value
    assert math.isnan(found.iloc[2]["mean_recall.yo"])
    assert first["retention"] == pytest.approx(0.875)
    assert found.iloc[1]["tuned.optim.lr"] == (1e-3, 3e-3)


def test_intervals_are_computed_from_the_ranks_and_not_read_from_old_files(tmp_path: Path) -> None:
    run = some_runs()[0]
    value = run.test[0].mean_recall.value
    old = run.test[0].model_copy(update={"mean_recall": Score(value=value, low=value, high=value)})
    found = results(saved(tmp_path, [run.model_copy(update={"test": (old,)})])).iloc[0]
    assert found["mean_recall_low"] < found["mean_recall_high"]


def test_a_result_without_ranks_keeps_its_intervals(tmp_path: Path) -> None:
    run = some_runs()[0]
    bare = run.test[0].without_ranks()
    found = results(saved(tmp_path, [run.model_copy(update={"test": (bare,)})])).iloc[0]
    assert found["mean_recall_high"] == bare.mean_recall.high


def test_it_is_what_import_polyalign_gives(tmp_path: Path) -> None:
    assert polyalign.results(saved(tmp_path, some_runs())).equals(results(tmp_path))


def test_a_folder_without_results_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there are no results in .*runs: run polyalign compare first"):
        results(tmp_path)
