"""Successive halving by hand, without training."""

from __future__ import annotations

import pytest

from polyalign.experiments.tuning import SHARES, Search, shortened
from tests import tiny


def search(strategy: str = "projection", /, **sections: dict[str, object]) -> Search:
    return Search(tiny.resolved(strategy, **sections))


def test_the_best_third_is_left_and_of_equal_ones_the_nearest_to_the_preset():
    found = search()
    found.learn({0: 0.1, 1: 0.2, 2: 0.3, 3: 0.2, 4: 0.1, 5: 0.2, 6: 0.2, 7: 0.0, 8: None}, SHARES[0])
    assert found.left == [2, 3, 5]
    found.learn({2: 0.4, 3: 0.6, 5: 0.5}, SHARES[1])
    assert found.left == [3]
    assert found.changes(3) == {"optim": {"lr": 0.0017}}
    recalls = found.record()["dev_mean_recall"]
    assert recalls == ([0.1], [0.2], [0.3, 0.4], [0.2, 0.6], [0.1], [0.2, 0.5], [0.2], [0.0], [None])


def test_if_all_fail_the_preset_is_left():
    found = search()
    found.learn(dict.fromkeys(range(9)), SHARES[0])
    assert found.changes(found.left[0]) == {"optim": {}}


@pytest.mark.parametrize(
    ("strategy", "optim", "keys"),
    [
        ("projection", {}, {"optim.lr"}),
        ("lit", {}, {"optim.lr"}),
        ("lit", {"text_lr": 1e-4}, {"optim.text_lr"}),
        ("lilt", {}, {"optim.vision_lr", "optim.text_lr"}),
    ],
)
def test_rates_are_those_of_the_towers_that_train(strategy, optim, keys):
    found = search(strategy, optim=optim)
    record = found.record()
    assert {key for key in record if key.startswith("optim.")} == keys
    assert all(len(record[key]) == 9 for key in keys)
    if optim:
        assert record["optim.text_lr"][4] == 1e-4


@pytest.mark.parametrize(
    ("optim", "short", "most"),
    [
        ({"epochs": 18, "min_steps": 90}, [(2, 10), (6, 30)], 2.0),
        ({"epochs": 5, "min_steps": 100}, [(1, 11), (2, 33)], 3.0),  # of whole epochs
        ({"epochs": 1}, [(1, 0), (1, 0)], 12.0),
    ],
)
def test_the_length_of_the_rungs_and_their_total_by_hand(optim, short, most):
    recipe = tiny.resolved(optim=optim)
    found = [shortened(recipe, share)["optim"] for share in SHARES]
    assert [(one["epochs"], one["min_steps"]) for one in found] == short
    assert Search(recipe).most() == pytest.approx(most, abs=0.01)
