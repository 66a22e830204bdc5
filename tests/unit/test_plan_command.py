from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi, constants

from polyalign.config.plugins import plugin_names
from polyalign.config.resolve import resolve
from polyalign.experiments import costs, plan, run_folders
from polyalign.utils import row_blocks, row_files
from tests import tiny

STRATEGIES = plugin_names("strategies")
FACTOR = 5
"""Between the times of the plan and of the run, on a machine whose load changes."""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def recipe(tmp_path):
    return tiny.write(tmp_path / "tiny.toml")


def rows(out: str) -> dict[str, dict]:
    return {row["strategy"]: row for row in json.loads(out)["rows"]}


@pytest.mark.parametrize("strategy", ["projection", "lilt"])
def test_a_run_in_the_starter_world_takes_what_the_plan_says(strategy, tmp_path):
    sizes = {"name": "starter", "train_images": 100, "dev_images": 40, "test_images": 20}
    changes = {"source": sizes, "optim": {"min_steps": 8, "epochs": 1, "batch_size": 32}, "train": {"evals": 2}}
    changes |= {"data": {"budget": "64-pairs"}}
    said = plan.forecast("starter", "sw", [strategy], changes)
    assert not list(row_files.folder().glob("*"))  # nothing is left behind
    run = run_folders.train_into(
        tmp_path / "run", resolve("starter", "sw", strategy, changes), resume=False, overwrite=False
    )
    assert run is not None
    assert (said.pairs, said.images, said.steps) == (run.pairs, run.images, run.steps)
    [row] = said.rows
    assert (row.trainable, row.total) == (run.trainable, run.total)
    assert row.cache.amount == sum(card.bytes for card in row_blocks.entries())
    assert run.seconds / FACTOR < row.time.amount < max(run.seconds, 0.5) * FACTOR
    assert run.peak_memory_bytes / 2 < row.memory.amount < 2 * run.peak_memory_bytes
    assert (row.cache.how, row.time.how, row.memory.how, row.lacks) == ("measured", "measured", "estimated", ())
    assert said.download.amount == 0


@pytest.mark.parametrize(
    "names", [("mlp", "side", "lora", "scratch"), pytest.param(tuple(STRATEGIES), marks=pytest.mark.repeated)]
)
def test_the_plan_is_a_table_that_fits_a_terminal(names, run, recipe, monkeypatch):
    monkeypatch.setattr(costs, "_ENOUGH_SECONDS", 0)
    code, out, err = run("plan", "--lang", "en", "--recipe", recipe, "--strategies", ",".join(names))
    assert code == 0, err
    assert all(f" {name} " in out for name in names)
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 80
    assert "128 pairs of 64 images" in out
    assert "measuring" in err


@pytest.mark.parametrize(("free", "lack"), [("free_memory", "memory"), ("_disk_free", "disk")])
def test_what_is_out_of_reach_is_told(free, lack, run, recipe, monkeypatch):
    monkeypatch.setattr(plan, free, lambda _: 0)
    code, out, _ = run("plan", "--lang", "en", "--recipe", recipe, "--strategies", "projection,lilt")
    assert code == 0
    assert out.count(f"no: {lack}") == 2
    assert ("--set optim.micro_batch=8" in out) == (lack == "memory")


def test_without_the_memory_nothing_is_run(run, recipe, monkeypatch):
    monkeypatch.setattr(plan, "free_memory", lambda _: 0)
    monkeypatch.setattr(costs, "measure", lambda *_: pytest.fail("it is run"))
    found = rows(run("plan", "--lang", "en", "--recipe", recipe, "--strategies", "full", "--json")[1])
    assert found["full"]["time"] is None
    assert found["full"]["memory"]["how"] == "estimated"


def test_a_strategy_that_a_tower_does_not_support_has_its_reason(run, tmp_path):
    recipe = tiny.write(tmp_path / "conv.toml", vision={"model": str(tiny.conv())})
    code, out, _ = run("plan", "--lang", "en", "--recipe", recipe, "--strategies", "projection,lilt")
    assert code == 0
    assert "no (see below)" in out
    assert "\nlilt: " in out
    code, _, err = run("plan", "--lang", "en", "--recipe", recipe, "--strategies", "lilt")
    assert code == 2
    assert "lilt" in err


def test_the_download_is_the_hubs_figure_or_estimated_from_the_parameters(monkeypatch, caplog):
    recipe = resolve("xlmr-dinov2", "sw", "projection")
    assert plan._download(recipe, 4_000) == plan.Figure(amount=4_000, how="estimated")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(plan, "check_hub", lambda: None)
    asked = []

    def info(_, repo, *, revision, files_metadata):
        asked.append((repo, revision, files_metadata))
        sizes = {"model.safetensors": 100, "config.json": 1, "pytorch_model.bin": 100, "onnx/model.safetensors": 9}
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name, size=size) for name, size in sizes.items()])

    monkeypatch.setattr(HfApi, "model_info", info)
    assert plan._download(recipe, 4_000) == plan.Figure(amount=202, how="measured")
    assert asked == [
        ("timm/vit_small_patch14_dinov2.lvd142m", None, True),
        ("FacebookAI/xlm-roberta-base", None, True),
    ]


def test_shapes_are_those_of_the_towers_and_recomputation_holds_less():
    linear = costs.shapes(tiny.resolved(), 10)
    assert (linear.image, linear.caption, linear.token) == (4 * 32, 4 * 32, 0)
    patches = (tiny.PX // 8) ** 2 + 1
    lilt = costs.shapes(tiny.resolved("lilt", cache={"dtype": "float16"}), 10)
    assert (lilt.image, lilt.caption) == (2 * 32 * patches, 0)
    whole = costs.shapes(tiny.resolved("full"), 10)
    assert (whole.image, whole.token) == (3 * tiny.PX**2, 0)
    again = costs.shapes(tiny.resolved("full", train={"recompute": True}), 10)
    assert linear.held < again.held < whole.held
    assert whole.memory(8, 32) < whole.memory(32, 32)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--strategies", "lit,lora2"], 'unknown strategy "lora2"'),
        (["--budget", "9k-pairs"], "fewer than 9k-pairs"),
        (["--strategies", ","], "is an empty list"),
    ],
)
def test_what_cannot_be_planned_is_refused(words, problem, run, recipe):
    code, _, err = run("plan", "--lang", "en", "--recipe", recipe, *words)
    assert code == 2
    assert problem in err
