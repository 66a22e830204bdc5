"""Runs set against each other: which way of training is best, and which are not significantly worse.

Runs that differ in the seed alone are one method. Entries are compared where the language, the gallery, the recipe and
the budget are the same; where time or memory is what all are given, recipes are compared too. Pure functions of the
records.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from polyalign.evaluation import metrics
from polyalign.evaluation.results import LeftOut, Retrieval, Run, Score, with_intervals
from polyalign.utils.errors import UserError

RESAMPLES = 10_000
SIGNIFICANCE = 0.05
_MEAN_RECALL = -1

T = TypeVar("T")


@dataclass(frozen=True)
class Method:
    """One way of training, over its seeds.

    ``options`` names what sets it apart from another method with the same strategy and towers. ``scores`` are the six
    recalls and the mean recall, averaged over the seeds; their intervals cover the test images and the seeds.
    ``p_value`` is for being as good as the best, adjusted for all methods compared (Holm); none for the best
    itself and where no seed is shared with it.
    """

    strategy: str
    towers: str
    options: str
    runs: tuple[Run, ...]
    scores: tuple[Score, ...]
    best: bool
    p_value: float | None

    @property
    def level(self) -> bool:
        """Whether it is the best or not significantly different from it."""
        return self.best or (self.p_value is not None and self.p_value >= SIGNIFICANCE)

    @property
    def name(self) -> str:
        """The strategy with all that sets the method apart."""
        towers = "" if self.towers == "both" else f", {self.towers} tower"
        return self.strategy + towers + (f", {self.options}" if self.options else "")

    @property
    def retention(self) -> float | None:
        """The share of what the towers knew that is left, averaged over the seeds; none where nobody asked."""
        return _average(run.retention.kept for run in self.runs if run.retention is not None)

    @property
    def carried_over(self) -> float | None:
        """The mean recall in languages never trained on, averaged over them and the seeds; none where nobody asked."""
        return _average(other.mean_recall.value for run in self.runs for other in run.test[1:])

    def mean(self, of: Callable[[Run], float]) -> float:
        """Average a figure of the runs over the seeds."""
        return float(np.mean([of(run) for run in self.runs]))


@dataclass(frozen=True)
class Comparison:
    """Entries that can be compared, the best first.

    ``recipes`` are several only where time or memory is what all are given, which ``of_compute`` tells. ``left_out``
    are the runs that would belong here and could not be made.
    """

    lang: str
    gallery: Retrieval
    recipes: tuple[str, ...]
    budget: str
    methods: tuple[Method, ...]
    of_compute: bool = False
    left_out: tuple[LeftOut, ...] = ()

    @property
    def recipe(self) -> str:
        """The recipe's name, or all names."""
        return ", ".join(self.recipes)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that any method was trained with."""
        return tuple(sorted({run.seed for method in self.methods for run in method.runs}))


def comparisons(runs: Iterable[Run], left_out: Iterable[LeftOut] = ()) -> list[Comparison]:
    """Sort runs into comparisons, in the order of language, gallery, recipe and pairs.

    Raises:
        UserError: two runs have the same settings and the same seed.
    """
    missing = list(left_out)
    found = []
    for group in _group(runs, _terms).values():
        conditions = {_conditions(run) for run in group}
        found.append(_comparison(group, [one for one in missing if _conditions(one) in conditions]))
    return sorted(found, key=lambda c: (c.lang, c.gallery.gallery, c.recipe, c.methods[0].runs[0].pairs, c.budget))


def of_compute(run: Run | LeftOut) -> bool:
    """Tell whether the run was given a time or a memory to keep to, whatever its towers."""
    train = run.recipe.get("train", {})
    return any(train.get(key) is not None for key in ("max_seconds", "max_memory_bytes"))


def _terms(run: Run) -> Hashable:
    """Give what must be equal for two runs to be comparable."""
    return run.lang, run.test[0].gallery, run.test[0].fingerprint, run.budget, _rival_recipe(run)


def _conditions(run: Run | LeftOut) -> Hashable:
    """Give what is known of the terms before a run."""
    return run.lang, run.budget, _rival_recipe(run), json.dumps(run.recipe.get("source"), sort_keys=True)


def _rival_recipe(run: Run | LeftOut) -> str | None:
    return None if of_compute(run) else _recipe_name(run)


def _comparison(runs: Sequence[Run], left_out: Sequence[LeftOut]) -> Comparison:
    groups = [sorted(group, key=lambda run: run.seed) for group in _group(runs, _settings).values()]
    groups.sort(key=lambda group: str(_settings(group[0])))
    _refuse_twins(groups)
    means = [metrics.recalls([run.test[0].hits() for run in group]) for group in groups]
    leader = max(range(len(groups)), key=lambda i: means[i][_MEAN_RECALL])
    samples, p_values = _resampled(groups, leader)
    labels = _options(groups)
    methods = [
        Method(
            strategy=group[0].strategy,
            towers=group[0].towers,
            options=labels[i],
            runs=tuple(group),
            scores=with_intervals(means[i], samples[i]),
            best=i == leader,
            p_value=p_values.get(i),
        )
        for i, group in enumerate(groups)
    ]
    methods.sort(key=lambda method: (not method.best, -method.scores[_MEAN_RECALL].value))
    first = groups[leader][0]
    return Comparison(
        lang=first.lang,
        gallery=first.test[0],
        recipes=tuple(sorted(set(map(_recipe_name, runs)))),
        budget=first.budget,
        methods=tuple(methods),
        of_compute=of_compute(first),
        left_out=tuple(sorted(left_out, key=lambda one: (one.strategy, _recipe_name(one), one.seed))),
    )


def _refuse_twins(groups: Sequence[Sequence[Run]]) -> None:
    for group in groups:
        for one, other in pairwise(group):
            if one.seed == other.seed:
                raise UserError(
                    f"there are two results of {one.strategy}, {one.lang}, {one.budget}, seed {one.seed} "
                    f"(recipe {one.recipe.get('name')}): remove one"
                )


def _resampled(groups: Sequence[Sequence[Run]], leader: int) -> tuple[list[npt.NDArray[np.float64]], dict[int, float]]:
    """Resample every group, and test each against the leader on the seeds both have: adjusted p-values by index."""
    hits = [{run.seed: run.test[0].hits() for run in group} for group in groups]
    pairs = {}
    for i, own in enumerate(hits):
        shared = sorted(own.keys() & hits[leader].keys())
        if shared and i != leader:
            pairs[i] = [[own[seed] for seed in shared], [hits[leader][seed] for seed in shared]]
    wanted = [list(own.values()) for own in hits] + [seeds for pair in pairs.values() for seeds in pair]
    samples = metrics.resample(wanted, resamples=RESAMPLES)
    tested = [drawn[:, _MEAN_RECALL] for drawn in samples[len(groups) :]]
    raw = [metrics.paired_p_value(ours, theirs) for ours, theirs in zip(tested[::2], tested[1::2], strict=True)]
    return samples[: len(groups)], dict(zip(pairs, metrics.holm(raw), strict=True))


def _settings(run: Run) -> Hashable:
    """Give all settings but the seed."""
    return run.strategy, run.towers, json.dumps(_without_seed(run.recipe), sort_keys=True)


def _without_seed(recipe: dict[str, Any]) -> dict[str, Any]:
    return {
        key: {k: v for k, v in value.items() if k != "seed"} if key == "train" and isinstance(value, dict) else value
        for key, value in recipe.items()
    }


def _options(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Name what sets groups of the same strategy and towers apart, and the recipe where there are several."""
    flat = [dict(_flatten(_without_seed(group[0].recipe))) for group in groups]
    kinds = [(group[0].strategy, group[0].towers, _recipe_name(group[0])) for group in groups]
    several = len({recipe for _, _, recipe in kinds}) > 1
    labels = []
    for kind, own in zip(kinds, flat, strict=True):
        alike = [other for rival, other in zip(kinds, flat, strict=True) if rival == kind]
        keys = sorted({key for other in alike for key in other if any(o.get(key) != other[key] for o in alike)})
        differing = [f"{key}={own.get(key)}" for key in keys]
        labels.append(", ".join([f"recipe {kind[2]}"] * several + differing))
    return labels


def _recipe_name(run: Run | LeftOut) -> str:
    return str(run.recipe.get("name"))


def _flatten(table: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _average(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _group(items: Iterable[T], key: Callable[[T], Hashable]) -> dict[Hashable, list[T]]:
    groups: dict[Hashable, list[T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups
