from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from benchmarks import evaluation, inference, machine, material, page, recall, searching, steps, targets, training
from polyalign.models.build import build_aligner


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks") / "towers"
    material.write_towers(folder, material.SIZES["test"])
    return folder


def case(name):
    return next(one for one in steps.CASES if one.name == name)


def test_every_strategy_that_is_measured_is_named_once():
    names = [one.name for one in steps.CASES]
    assert len(names) == len(set(names)) > 10
    assert sum(one.is_peer for one in steps.CASES) == 3
    assert {*targets._CACHED, *targets._FEW_PARAMETERS} < set(names)


def test_pairs_are_of_the_lengths_stated_and_the_longest_is_among_them(towers):
    table = material.pairs(material.SIZES["test"], 500)
    lengths = [len(caption.split()) + 2 for caption in table.captions]
    assert max(lengths) == lengths[0] == material.LONGEST
    assert 13 < np.mean(lengths) < 15


def test_both_sides_run_the_same_towers_with_the_same_weights(towers):
    pytest.importorskip("open_clip")
    model = steps.open_clip_model(case("open_clip"), "test", towers).eval()
    aligner = build_aligner(steps.recipe(case("full"), towers, batch=4, steps=3))
    table = material.pairs(material.SIZES["test"], 4)
    pixels = torch.stack([aligner.vision.transform(image.open()) for image in table.images])
    tokens = aligner.text.collate(aligner.text.tokenize(list(table.captions)))
    with torch.no_grad():
        ours = aligner.vision(pixels), aligner.text(tokens)
        scaled = (pixels - aligner.vision.mean) / aligner.vision.std
        states = model.text.transformer(input_ids=tokens.ids, attention_mask=tokens.mask.long())
        theirs = model.visual.trunk(scaled), model.text.pooler(states, tokens.mask.long())
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    unbiased = steps.DIM  # open_clip's text projection has no bias
    assert aligner.count()[0] - unbiased == sum(p.numel() for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["projection", "open_clip, both towers locked"])
def test_steps_are_timed_and_memory_is_measured_in_a_process_of_its_own(name, towers, tmp_path):
    chosen = case(name)
    if chosen.is_peer:
        pytest.importorskip("open_clip")
    task = {"size": "test", "towers": str(towers), "batch": 4, "steps": 5, "fill": False, "case": vars(chosen)}
    found = machine.measure("benchmarks.steps", task, {"POLYALIGN_CACHE": str(tmp_path)})
    assert 3 <= len(found["seconds"]) <= 4
    assert all(seconds > 0 for seconds in found["seconds"])
    assert found["peak"] > found["floor"] > 2**26
    assert 0 < found["trainable"] < found["total"]


def test_all_ways_of_scoring_give_the_same_ranks():
    made = evaluation.embeddings(captions=120, images=40)
    expected = evaluation.matrix(*made)
    for name, method in evaluation.METHODS.items():
        for found, wanted in zip(method(*made), expected, strict=True):
            np.testing.assert_array_equal(found, wanted, err_msg=name)


FACTS = {"gpu": None, "processor": "x", "cores": 2, "memory_gib": 1, "load_before": 0, "versions": {"torch": "2"}}


def test_the_time_to_a_recall_counts_the_filling_and_says_where_the_cache_is_no_other_thing(monkeypatch):
    def measured(module, task, env):
        slower = 1 if task["cached"] else 3
        name = task["strategy"]["name"]
        dev_evaluations = [
            (slower * at, recall) for at, recall in ((10, 0.2), (20, 0.5), (30, 0.8 if name == "full" else 0.6))
        ]
        return {"fill_seconds": 5.0, "dev_evaluations": dev_evaluations, "cuts": [0, 0] if name == "full" else [1, 1]}

    monkeypatch.setattr(machine, "measure", measured)
    monkeypatch.setattr(machine, "facts", lambda: FACTS)
    found = recall.run(images=100, steps=9)
    assert found["target"] == pytest.approx(0.9 * 0.6)
    shown = page.page({"recall": found})
    assert "| `lit` | 35.0 | 5.0 | 95.0 | 2.7 |" in shown
    assert "| `lilt-deep, layers last:1` | 35.0 |" in shown
    assert "| `full` | 35.0 | 5.0 | the same |  |" in shown


def summary(name, seconds, memory):
    steps = {"seconds": [seconds] * 3, "collating": seconds / 50}
    turn = {
        "train": {**steps, "peak": memory + 5, "floor": 5, "trainable": 7, "total": 70},
        "fill": None if case(name).is_peer else {"seconds": [8.0], "rows": 2, "peak": 9, "floor": 5},
    }
    return training._summary(case(name), [turn], batch=4)


def test_ratios_are_those_of_the_seconds_and_count_the_filling_over_the_epochs():
    rows = [summary("open_clip", 80.0, 2 * 2**20), summary("full", 40.0, 4 * 2**20), summary("lit", 4.0, 2**20)]
    found = {"rows": rows, "machine": FACTS, "towers": "two", "batch": 4, "repeats": 1, "steps": 3}
    shown = page.training({**found, "size": "test", "device": "cpu"})
    cells = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in shown.splitlines()
        if line.startswith("|")
    }
    # A pair of open_clip takes 20 s; one of lit takes 1 s and 4 s to fill, once in ten epochs.
    assert cells["`lit`"] == ["7", "1.0", "20", "14.3", "2.0 %", "1", "0.25"]
    assert cells["`full`"] == ["7", "0.1", "2.0", "1.92", "2.0 %", "4", "1.00"]
    assert cells["open_clip"][2:4] == ["1.00", ""]


def test_targets_by_hand():
    rows = [summary("open_clip", 80.0, 2 * 2**20), summary("full", 88.0, 4 * 2**20), summary("lit", 4.0, 2**20)]
    rows.append(summary("lora", 60.0, 3 * 2**20))
    results = {
        "training": {"x": {"rows": rows, "size": "test", "device": "cpu"}},
        "evaluation": {
            "rows": [
                {"method": "polyalign, in blocks", "captions": 100_000, "images": 20_000, "memory": 3 * 2**30},
                {"method": "matrix, counted", "captions": 100_000, "images": 20_000, "memory": 9 * 2**30},
            ]
        },
        "startup": {"help_seconds": 0.3},
    }
    found = [(one.what, one.measured, one.is_met) for one in targets.targets(results)]
    assert found == [
        ("`lit` (test, cpu), pairs a second, cache filled", "20.00 times", True),
        ("`lit` (test, cpu), filling included, over 10 epochs", "14.29 times", True),
        ("`full` (test, cpu), pairs a second", "0.91 times", False),
        ("`lora` (test, cpu), peak memory", "0.75 of it", False),
        ("scoring 100,000 captions by 20,000 images, memory beyond the embeddings", "3.00 GiB", False),
        ("`polyalign --help`", "0.30 s", True),
    ]
    assert targets.targets({}) == []


def test_bf16_is_timed_beside_float32(towers):
    rows = inference._measure(str(towers), "test")
    assert [row["tower"] for row in rows] == ["vision", "text"]
    assert all(0.99 < row["least_cosine"] <= 1.0001 and min(row["fp32"], row["bf16"]) > 0 for row in rows)


def test_the_page_in_the_repository_is_written_from_its_results(repo):
    results, written = repo / "benchmarks" / "results.json", repo / "benchmarks" / "README.md"
    assert written.is_file() == results.is_file(), "one without the other"
    if results.is_file():
        found = json.loads(results.read_text(encoding="utf-8"))
        assert page.page(found) == written.read_text(encoding="utf-8")


def test_both_ways_to_search_find_the_same():
    found = searching._measure(300, 16)
    assert found["agree"] == 1
    assert min(found["seconds"], found["plain_seconds"], found["open_seconds"]) > 0
