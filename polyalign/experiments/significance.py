"""Comparisons of methods: which has the highest mean recall, and which are significantly worse.

Runs that differ only in the seed are one method. Methods are compared if language, gallery, recipe and budget are the
same; under a budget of time or memory, recipes are compared as well.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, Literal, TypeVar

import numpy as np

from polyalign.evaluation.intervals import image_covariance, mean_recalls
from polyalign.evaluation.ranking import Hits
from polyalign.evaluation.results import LeftOut, Retrieval, Run, Score, recall_scores
from polyalign.experiments.multiple_comparisons import AgainstBest, compare_with_best
from polyalign.utils.errors import UserError

SIGNIFICANCE = 0.05
_MEAN_RECALL = -1
# A key of each optional section of a recipe, and what a run that has it is called.
_OPTIONAL = {
    "parallel": ("parallel.text", "parallel text"),
    "parent": ("parent.run", "continued"),
    "teacher": ("teacher.run", "distilled"),
}

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
Standing = Literal["best", "level", "worse", "untested"]


@dataclass(frozen=True)
class Method:
    """One way of training, over its seeds.

    Attributes:
        strategy: name of the strategy.
        towers: which towers it adapts.
        options: the settings that differ from those of other methods with the same strategy and towers.
        runs: one run per seed, in the order of the seeds.
        scores: the six recalls and the mean recall, averaged over the seeds, with intervals over ``covers``.
        other_langs: languages without pairs in which all methods were tested that were tested in any.
        best: whether it has the highest mean recall.
        against_best: the difference in mean recall to the best of the other methods; None if it is not tested.
    """

    strategy: str
    towers: str
    options: str
    runs: tuple[Run, ...]
    scores: tuple[Score, ...]
    other_langs: tuple[str, ...]
    best: bool
    against_best: AgainstBest | None

    @property
    def standing(self) -> Standing:
        """Whether it is the best, level with it, significantly worse, or untested, as one of the two has one seed."""
        if self.best:
            return "best"
        if self.p_value is None:
            return "untested"
        return "worse" if self.p_value < SIGNIFICANCE else "level"

    @property
    def p_value(self) -> float | None:
        """The p-value of the test against the best, adjusted for all pairs; None for the best and if not tested."""
        return None if self.best or self.against_best is None else self.against_best.p_value

    @property
    def covers(self) -> str:
        """The sources of variation that the intervals of ``scores`` account for."""
        return "test images and seeds" if len(self.runs) > 1 else "test images only"

    @property
    def name(self) -> str:
        """The strategy, with the towers and options that distinguish the method."""
        towers = "" if self.towers == "both" else f", {self.towers} tower"
        return self.strategy + towers + (f", {self.options}" if self.options else "")

    @property
    def retention(self) -> float | None:
        """The retained share of the towers' knowledge, averaged over the seeds; None if it was not measured."""
        return _average(run.retention.kept for run in self.runs if run.retention is not None)

    @property
    def carried_over(self) -> float | None:
        """The mean recall in ``other_langs``, averaged over them and the seeds; None if not measured."""
        return _average(self.recall_in(lang) for lang in self.other_langs)

    def recall_in(self, lang: str) -> float | None:
        """Return the mean recall in a language without pairs, averaged over the seeds; None if not measured."""
        return _average(other.mean_recall.value for run in self.runs for other in run.test[1:] if other.lang == lang)

    def mean(self, of: Callable[[Run], float]) -> float:
        """Return the mean of a property of the runs over the seeds."""
        return float(np.mean([of(run) for run in self.runs]))


@dataclass(frozen=True)
class Comparison:
    """Methods that can be compared, the best first.

    There are several ``recipes`` only under a budget of time or memory (``of_compute``). ``left_out`` are the runs that
    belong here and failed.
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
        """The names of the recipes, separated by commas."""
        return ", ".join(self.recipes)

    @property
    def has_pairs(self) -> bool:
        """Whether the methods were trained on image-caption pairs, and not distilled."""
        return self.methods[0].runs[0].pairs > 0

    @property
    def runs(self) -> list[Run]:
        """The runs of all methods."""
        return [run for method in self.methods for run in method.runs]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of all methods."""
        return tuple(sorted({run.seed for run in self.runs}))


def comparisons(runs: Iterable[Run], left_out: Iterable[LeftOut] = ()) -> list[Comparison]:
    """Group runs into comparisons, in the order of language, gallery, recipe and pairs.

    Raises:
        UserError: two runs have the same settings and the same seed.
    """
    missing = list(left_out)
    found = []
    for group in grouped(runs, _terms).values():
        conditions = {_conditions(run) for run in group}
        found.append(_comparison(group, [one for one in missing if _conditions(one) in conditions]))
    return sorted(found, key=lambda c: (c.lang, c.gallery.gallery, c.recipe, c.methods[0].runs[0].pairs, c.budget))


def of_compute(run: Run | LeftOut) -> bool:
    """Return whether the run has a budget of time or memory."""
    train = run.recipe.get("train", {})
    return any(train.get(key) is not None for key in ("max_seconds", "max_memory_bytes"))


def _terms(run: Run) -> Hashable:
    """Return what must be equal for two runs to be comparable."""
    return run.lang, run.test[0].gallery, run.test[0].fingerprint, run.budget, _rival_recipe(run)


def _conditions(run: Run | LeftOut) -> Hashable:
    """Return the part of ``_terms`` that is known before a run."""
    return run.lang, run.budget, _rival_recipe(run), json.dumps(run.recipe.get("source"), sort_keys=True)


def _rival_recipe(run: Run | LeftOut) -> str | None:
    return None if of_compute(run) else _recipe_name(run)


def _comparison(runs: Sequence[Run], left_out: Sequence[LeftOut]) -> Comparison:
    groups = [sorted(group, key=lambda run: run.seed) for group in grouped(runs, _settings).values()]
    groups.sort(key=lambda group: str(_settings(group[0])))
    for one, other in chain.from_iterable(map(pairwise, groups)):
        if one.seed == other.seed:
            raise UserError(
                f"there are two results of {one.strategy}, {one.lang}, {one.budget}, seed {one.seed} "
                f"(recipe {one.recipe.get('name')}): remove one"
            )
    first = groups[0][0]
    for run in runs:
        if not run.test[0].text_to_image.ranks or _queries(run) != _queries(first):
            raise UserError(
                f"the test of {run.strategy}, {run.lang}, {run.budget}, seed {run.seed} has no ranks, or other queries "
                f"than that of {first.strategy} with the same fingerprint: remove one"
            )
    hits = [[run.test[0].hits() for run in group] for group in groups]
    scores = [recall_scores(seeds) for seeds in hits]
    leader = max(range(len(groups)), key=lambda i: scores[i][_MEAN_RECALL].value)
    tested, labels = _tested(hits, leader), _options(groups)
    others = [{other.lang for other in run.test[1:]} for run in runs if len(run.test) > 1]
    shared = tuple(sorted(set.intersection(*others))) if others else ()
    methods = [
        Method(
            strategy=group[0].strategy,
            towers=group[0].towers,
            options=labels[i],
            runs=tuple(group),
            scores=scores[i],
            other_langs=shared,
            best=i == leader,
            against_best=tested[i],
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


def _queries(run: Run) -> Hashable:
    test = run.test[0]
    return test.images, test.image_of, test.fold_of


def _tested(hits: Sequence[Sequence[Hits]], leader: int) -> Sequence[AgainstBest | None]:
    """Test each method against the best of the others; None for all if the leader cannot be tested."""
    untested = [None] * len(hits)
    if len(hits) < 2:
        return untested
    by_seed, queries = [[one.hits for one in seeds] for seeds in hits], hits[0][0].queries
    values = [mean_recalls(seeds, queries) for seeds in by_seed]
    found = compare_with_best(values, image_covariance(by_seed, queries), 1 - SIGNIFICANCE)
    if found[leader].p_value is None:
        return untested
    return [None if one.p_value is None else one for one in found]


def _settings(run: Run) -> Hashable:
    return run.strategy, run.towers, json.dumps(_without_seed(run), sort_keys=True)


def _without_seed(run: Run) -> dict[str, Any]:
    """Return the recipe by dotted keys, without the seed."""
    return {key: value for key, value in flatten(run.recipe) if key != "train.seed"}


def _options(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Return the settings in which groups of the same strategy and towers differ, with the recipe if it varies.

    What they are tested on is stated only if they differ in nothing else.
    """
    kinds = [(group[0].strategy, group[0].towers, _recipe_name(group[0])) for group in groups]
    whole = [_without_seed(group[0]) for group in groups]
    trained = [{key: value for key, value in one.items() if not key.startswith("test.")} for one in whole]
    labels = _labels(kinds, trained)
    return labels if len(set(zip(kinds, labels, strict=True))) == len(labels) else _labels(kinds, whole)


def _labels(kinds: Sequence[tuple[str, str, str]], settings: Sequence[dict[str, Any]]) -> list[str]:
    several = len({recipe for _, _, recipe in kinds}) > 1
    labels = []
    for kind, own in zip(kinds, settings, strict=True):
        alike = [other for rival, other in zip(kinds, settings, strict=True) if rival == kind]
        labels.append(", ".join([f"recipe {kind[2]}"] * several + _differing(own, alike)))
    return labels


def _differing(own: dict[str, Any], alike: Sequence[dict[str, Any]]) -> list[str]:
    """List the settings of a method that are not those of all methods alike, its optional sections by name."""
    labels = [f"with {', '.join(own['data.also_langs'])}"] if own.get("data.also_langs") else []
    for section, (key, label) in _OPTIONAL.items():
        have = [other for other in alike if key in other]
        if key in own and len(have) < len(alike):
            labels.append(label)
        named = {name for other in have for name in other if name.startswith(f"{section}.")}
        if key in own:
            varying = sorted(name for name in named if _varies(name, have) and own.get(name))
            labels += [f"{name.partition('.')[2]}={own[name]}" for name in varying]
    others = {name for other in alike for name in other if name.partition(".")[0] not in _OPTIONAL}
    usual = sorted(name for name in others - {"data.also_langs"} if _varies(name, alike))
    return labels + [f"{name}={own.get(name)}" for name in usual]


def _varies(name: str, settings: Sequence[dict[str, Any]]) -> bool:
    return any(other.get(name) != settings[0].get(name) for other in settings)


def _recipe_name(run: Run | LeftOut) -> str:
    return str(run.recipe.get("name"))


def flatten(table: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yield the values of a nested table by their dotted keys."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _average(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Return the items by key, in the order of their first occurrence."""
    groups: dict[K, list[T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups
