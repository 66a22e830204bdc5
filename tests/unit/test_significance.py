from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from polyalign.evaluation.results import Run
from polyalign.experiments.significance import Method, comparisons
from polyalign.utils.errors import UserError
from tests.unit.test_results import a_retrieval, a_run


def trained(strategy: str, seed: int, noise: float, **changes: object) -> Run:
    recipe = {"name": "starter", "optim": {"lr": 1e-3}, "train": {"seed": seed, "evals": 5}}
    fields = {"recipe": recipe, "strategy": strategy, "seed": seed, "test": (a_retrieval(noise, seed=seed),)}
    return a_run(**{**fields, **changes})


def methods(*runs: Run) -> dict[str, Method]:
    (comparison,) = comparisons(runs)
    return {method.name: method for method in comparison.methods}


def test_seeds_are_pooled_into_one_entry() -> None:
    runs = [trained("lilt", seed, 2.0) for seed in (2, 0, 1)]
    (comparison,) = comparisons(runs)
    (method,) = comparison.methods
    assert [run.seed for run in method.runs] == [0, 1, 2]
    assert comparison.seeds == (0, 1, 2)
    assert method.scores[-1].value == pytest.approx(np.mean([run.test[0].mean_recall.value for run in runs]))
    assert method.scores[0].low < method.scores[0].value < method.scores[0].high


def of_seeds(strategy: str, noise: float, seeds: Sequence[int]) -> list[Run]:
    return [trained(strategy, seed, noise) for seed in seeds]


def test_the_best_is_first_and_the_worse_is_told_from_it() -> None:
    (comparison,) = comparisons([*of_seeds("projection", 6.0, range(3)), *of_seeds("full", 1.5, range(3))])
    best, worse = comparison.methods
    assert [(method.name, method.standing) for method in (best, worse)] == [("full", "best"), ("projection", "worse")]
    assert best.p_value is None
    assert worse.p_value is not None
    assert worse.p_value < 0.05
    assert worse.against_best is not None
    assert worse.against_best.high < 0


def test_methods_that_differ_less_than_their_seeds_are_level() -> None:
    noises = {"lilt": (1.7, 2.0, 2.4), "lit": (1.8, 2.1, 2.3)}
    found = methods(*(trained(name, seed, noises[name][seed]) for name in noises for seed in range(3)))
    assert {method.standing for method in found.values()} == {"best", "level"}


def test_nothing_is_significant_with_one_seed() -> None:
    """One seed says nothing about how much seeds differ, however large the difference on these images."""
    found = methods(trained("full", 0, 1.0), trained("lilt", 0, 6.0), trained("lit", 0, 1.1))
    assert {name: method.standing for name, method in found.items()} == {
        "full": "best", "lilt": "untested", "lit": "untested"
    }  # fmt: skip
    assert {method.p_value for method in found.values()} == {None}
    assert {method.covers for method in found.values()} == {"test images only"}


def test_only_methods_with_several_seeds_are_tested() -> None:
    several = [*of_seeds("full", 1.5, range(3)), *of_seeds("lilt", 6.0, range(3))]
    found = methods(*several, trained("lit", 0, 6.0))
    assert [found[name].standing for name in ("full", "lilt", "lit")] == ["best", "worse", "untested"]
    assert [found[name].covers for name in ("full", "lit")] == ["test images and seeds", "test images only"]


def test_nothing_is_tested_against_a_best_with_one_seed() -> None:
    found = methods(trained("lit", 0, 0.5), *of_seeds("full", 1.5, range(3)), *of_seeds("lilt", 6.0, range(3)))
    assert {name: method.standing for name, method in found.items()} == {
        "lit": "best", "full": "untested", "lilt": "untested"
    }  # fmt: skip


def test_more_seeds_need_not_be_the_same_seeds() -> None:
    found = methods(*of_seeds("full", 1.5, (0, 1, 2)), *of_seeds("lilt", 6.0, (7, 8)))
    assert found["lilt"].standing == "worse"


def test_other_budgets_languages_and_galleries_are_other_contests() -> None:
    runs = [
        trained("lilt", 0, 2.0),
        trained("lilt", 0, 2.0, budget="1k-pairs", pairs=1000),
        trained("lilt", 0, 2.0, lang="de"),
        trained("lilt", 0, 2.0, test=(a_retrieval(captions=np.full(40, 2)),)),
        trained("lilt", 0, 2.0, recipe={"name": "other"}),
    ]
    found = comparisons(runs)
    assert len(found) == 5
    assert [comparison.lang for comparison in found] == ["de", "sw", "sw", "sw", "sw"]
    assert [c.budget for c in comparisons(runs[:2])] == ["1k-pairs", "10k-pairs"]


def test_options_that_differ_are_named() -> None:
    slow = {"name": "starter", "optim": {"lr": 1e-4}, "train": {"seed": 0}}
    found = methods(trained("lilt", 0, 2.0), trained("lilt", 0, 2.0, recipe=slow), trained("full", 0, 2.0))
    assert set(found) == {"full", "lilt, optim.lr=0.0001, train.evals=None", "lilt, optim.lr=0.001, train.evals=5"}


def test_towers_are_in_the_name_and_are_another_entry() -> None:
    assert set(methods(trained("lilt", 0, 2.0), trained("lilt", 0, 2.0, towers="text"))) == {"lilt", "lilt, text tower"}


def test_two_results_of_one_run_are_refused() -> None:
    with pytest.raises(UserError, match=r"two results of lilt, sw, 10k-pairs, seed 0"):
        comparisons([trained("lilt", 0, 2.0), trained("lilt", 0, 3.0)])
