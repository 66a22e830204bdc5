from __future__ import annotations

import numpy as np
import pytest

from polyalign.evaluation import metrics
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


def test_the_best_is_first_and_the_worse_is_told_from_it() -> None:
    runs = [trained(s, seed, noise) for s, noise in (("projection", 6.0), ("full", 1.5)) for seed in (0, 1)]
    (comparison,) = comparisons(runs)
    assert [method.name for method in comparison.methods] == ["full", "projection"]
    best, worse = comparison.methods
    assert best.best
    assert best.level
    assert best.p_value is None
    assert worse.p_value is not None
    assert worse.p_value < 0.01
    assert not worse.level


def test_two_that_do_alike_are_level() -> None:
    found = methods(trained("lilt", 0, 2.0), trained("lit", 0, 2.0, test=(a_retrieval(2.0, seed=9),)))
    assert all(method.level for method in found.values())


def test_p_values_are_adjusted_for_the_number_of_rivals() -> None:
    best = [trained("full", seed, 1.8) for seed in (0, 1)]
    rival = [trained("lit", seed, 2.2) for seed in (0, 1)]
    others = [trained(s, seed, 2.2) for s in ("lora", "bitfit") for seed in (0, 1)]
    alone, among = methods(*best, *rival), methods(*best, *rival, *others)
    assert alone["lit"].p_value is not None
    assert among["lit"].p_value == pytest.approx(min(1, 3 * alone["lit"].p_value))


def test_the_test_uses_the_seeds_that_both_have() -> None:
    runs = [trained("full", 0, 1.5), trained("full", 1, 1.5), trained("lilt", 1, 6.0), trained("lit", 5, 6.0)]
    found = methods(*runs)
    samples = metrics.resample([[run.test[0].hits()] for run in runs[1:3]], resamples=10_000)
    assert found["lilt"].p_value == metrics.paired_p_value(*(drawn[:, -1] for drawn in samples))
    assert found["lit"].p_value is None
    assert not found["lit"].level


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


def test_the_order_of_the_runs_does_not_matter() -> None:
    runs = [trained(s, seed, noise) for s, noise in (("lilt", 2.0), ("full", 2.1)) for seed in (0, 1)]
    assert comparisons(runs) == comparisons(runs[::-1])
