"""Compare training strategies: a resumable grid of runs on the same pairs, each in its own process."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any

import polyalign
from polyalign.config.resolve import budget_overrides, recipe_languages, resolve, transfer_languages
from polyalign.config.schema import Recipe, merge
from polyalign.evaluation import tables
from polyalign.evaluation.results import LeftOut, Run
from polyalign.experiments import report, tuning
from polyalign.experiments.micro_batch import fit
from polyalign.experiments.run_folders import distillation, run_name, versioned_digest
from polyalign.experiments.workers import RECIPE, Outcome, Pool, restarts
from polyalign.training import train
from polyalign.utils import storage
from polyalign.utils.errors import UserError
from polyalign.utils.lock import locked
from polyalign.utils.text import safe_stem

logger = logging.getLogger(__name__)

STRATEGIES = ("projection", "layernorm", "lilt", "lilt-deep", "lit", "full")
"""Strategies compared by default: few trainable parameters, some, one tower, everything."""

_AXES = {"lang": "--lang", "data.budget": "--budget", "strategy.name": "--strategies", "train.seed": "--seeds"}
"""Keys of a recipe that the grid sets, and their options."""


@dataclass(frozen=True, eq=False)
class Job:
    """One run of the grid, trained in ``folder``.

    ``result`` is the file of the result, ``left_out`` the file with the reason if the run failed. ``tuned`` are the
    values tried on dev, by key of the recipe.
    """

    recipe: Recipe
    folder: Path
    result: Path
    left_out: Path
    tuned: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def command(self) -> tuple[str, ...]:
        """Arguments of polyalign: train, or resume an interrupted run."""
        return ("repeat", str(self.folder / RECIPE), "--out", str(self.folder), "--resume")

    def is_done(self) -> bool:
        """Return whether there is a result of the same recipe, version of polyalign and tuning."""
        if not self.result.is_file():
            return False
        run = Run.load_json(self.result)
        same = self.recipe.is_of(run.recipe)
        same_tuning = not self.tuned or run.tuned == self.tuned
        return same and same_tuning and run.versions.get("polyalign") == polyalign.__version__

    def collect(self) -> str:
        """Copy the result to the report, with its restarts and tuning, and return it as a line of text."""
        run = Run.load_json(self.folder / train.RESULT)
        retries = restarts(self.folder)
        run.model_copy(update={"retries": retries, "tuned": self.tuned}).save_json(self.result)
        self.left_out.unlink(missing_ok=True)
        found = tables.percent(run.test[0].mean_recall)
        return f"{self.result.stem}: mean recall {found}, {tables.duration(run.seconds)}"

    def leave_out(self, why: str) -> None:
        """Record for the report why the run failed."""
        recipe = self.recipe.table()
        LeftOut(
            recipe=recipe,
            lang=self.recipe.lang,
            strategy=recipe["strategy"]["name"],
            towers=recipe["strategy"]["towers"],
            budget=self.recipe.budget,
            seed=self.recipe.train.seed,
            why=why,
        ).save_json(self.left_out)

    def dev(self) -> float | None:
        """Return the best mean recall on dev; None if the run failed."""
        if not self.is_done():
            return None
        return max(one.dev_mean_recall for one in Run.load_json(self.result).dev_evaluations)


@dataclass(frozen=True)
class Cell:
    """Runs of the grid that differ only in their seed; ``micro_batch`` is the size that fits a memory budget."""

    recipe: str
    lang: str
    budget: str | None
    strategy: str
    micro_batch: int | None = None


@dataclass(frozen=True)
class Grid:
    """The product of recipes (names or paths), languages, budgets, strategies and seeds, trained on the same pairs.

    By default, languages and budgets are those of each recipe, and strategies are ``STRATEGIES``. ``overrides`` are
    keys of the recipe to change in all runs, ``out`` is the folder of the results, ``work`` that of the trained runs. A
    language may be several that are trained on together (``qu+es``). With ``teacher``, a finished run or an external
    model, the text tower is distilled from it.
    """

    recipes: tuple[str, ...]
    langs: tuple[str, ...]
    budgets: tuple[str, ...]
    strategies: tuple[str, ...]
    seeds: int
    overrides: dict[str, Any]
    out: Path
    work: Path
    teacher: str | None = None

    def cells(self) -> list[Cell]:
        """Return all cells.

        Raises:
            UserError: two recipes have the same name, or an override is one of the axes.
        """
        for key, option in _AXES.items():
            section, _, name = key.partition(".")
            if section in self.overrides and (not name or name in self.overrides[section]):
                raise UserError(f"a comparison sets {key} itself: use {option} instead of --set {key}")
        twins = [name for name, count in Counter(Path(recipe).stem for recipe in self.recipes).items() if count > 1]
        if twins:
            raise UserError(f'two recipes are called "{twins[0]}": rename one')
        return [
            Cell(recipe, lang, budget, strategy)
            for recipe in self.recipes
            for lang in self.langs or recipe_languages(recipe)
            for budget in self.budgets or (None,)
            for strategy in self.strategies or STRATEGIES
        ]

    def job(self, cell: Cell, seed: int, *changes: dict[str, Any]) -> Job:
        """Return the run of a cell with a seed; it also measures retention and recall in other languages.

        ``changes`` are laid over all other settings.

        Raises:
            UserError: an unknown name, or an invalid setting.
        """
        test: dict[str, Any] = {"knowledge": True}
        if "source" not in self.overrides and self.teacher is None:
            test["languages"] = transfer_languages(cell.recipe, cell.lang)
        usual: dict[str, Any] = {"test": test}
        own: dict[str, Any] = {"train": {"seed": seed}}
        if cell.budget is not None:
            own = merge(own, budget_overrides(cell.budget))
        if cell.micro_batch is not None:  # follows from the budget
            usual["optim"] = own["optim"] = {"micro_batch": cell.micro_batch}
        table = reduce(merge, ({"test": test}, self.overrides, own, *changes))
        if self.teacher is None:
            recipe = resolve(cell.recipe, cell.lang, cell.strategy, table)
        else:
            table["data"] = {**table.get("data", {}), "budget": None}
            own_recipe = None if cell.recipe == "starter" else cell.recipe
            recipe = distillation(self.teacher, cell.lang, cell.strategy, table, own_recipe)
        name = run_name(recipe, cell.recipe, usual)
        source = self.overrides.get("source", {})
        if source.get("name", "folder") != "folder":  # other data than the recipe's; a folder is in the name of the run
            data = Path(source["root"]).resolve().stem if "root" in source else source["name"]
            name = safe_stem(f"{name}-{data}")
        return Job(
            recipe,
            (self.work / f"{name}-{versioned_digest(recipe)}").resolve(),
            self.out / report.RUNS / f"{name}.json",
            self.out / report.LEFT_OUT / f"{name}.json",
        )


def run_grid(grid: Grid, workers: Pool, *, tune: bool) -> list[Path]:
    """Train all runs without a result, write tables and figures of all results in ``grid.out``, return the paths.

    With ``tune`` the learning rates of each strategy are first chosen on dev by successive halving, with the same share
    of the training for each. Runs that do not fit a memory budget are skipped and listed in the tables.

    Raises:
        UserError: invalid settings; or, once the others are trained and reported, some runs failed.
    """
    wanted = grid.cells()
    report.check(grid.out)
    storage.check_writable(grid.work)
    with locked(grid.out):
        return _run_grid(grid, wanted, workers, tune=tune)


def _run_grid(grid: Grid, wanted: Sequence[Cell], workers: Pool, *, tune: bool) -> list[Path]:
    cells = _fitted(grid, wanted, workers)
    if not cells:
        raise UserError(f"none of the {len(wanted)} settings fits the memory budget: increase it")
    # The first seed of all cells comes first, so that an interrupted comparison has complete tables.
    jobs = _tuned(grid, cells, workers) if tune else [grid.job(c, s) for s in range(grid.seeds) for c in cells]
    failed = _run(jobs, "runs", workers)
    for job, outcome in failed.items():
        job.leave_out(outcome.problem)
    if len(failed) == len(jobs):
        raise UserError(f"all {len(jobs)} runs failed: {next(iter(failed.values())).problem}")
    written = report.write(grid.out)
    if failed:
        names = "; ".join(f"{job.result.stem}: {outcome.problem}" for job, outcome in failed.items())
        raise UserError(f"the tables are written, but {tables.counted(len(failed), 'run')} failed: {names}")
    return written


def _fitted(grid: Grid, cells: Sequence[Cell], workers: Pool) -> list[Cell]:
    """Return the cells, with the largest micro-batch that fits a memory budget; record those that do not fit."""
    fits = fit({cell: grid.job(cell, seed=0).recipe for cell in cells}, grid.work / "memory", workers)
    kept = []
    for cell in cells:
        found = fits.get(cell)
        if found is not None and found.micro_batch is None and not found.bad_input:
            for seed in range(grid.seeds):
                grid.job(cell, seed).leave_out(found.problem)
            logger.info(f"skipped: {grid.job(cell, seed=0).result.stem} {found.problem}")
        else:
            kept.append(cell if found is None else replace(cell, micro_batch=found.micro_batch))
    return kept


def _tuned(grid: Grid, cells: Sequence[Cell], workers: Pool) -> list[Job]:
    """Choose the learning rates of each cell on dev with the first seed, and return the jobs that use them."""
    searches = {cell: search for cell in cells if (search := _search(grid, cell)) is not None}
    most = max((search.most() for search in searches.values()), default=0)
    logger.info(f"tuning takes at most the pairs of {most:.1f} trainings for each of {len(searches)} settings")
    for rung, share in enumerate(tuning.SHARES, 1):
        trials = {
            cell: {one: _trial(grid, cell, search, one, share) for one in search.left}
            for cell, search in searches.items()
        }
        jobs = [job for of_cell in trials.values() for job in of_cell.values()]
        _run(jobs, f"tuning on dev, rung {rung} of {len(tuning.SHARES)}", workers)
        for cell, search in searches.items():
            search.learn({one: job.dev() for one, job in trials[cell].items()}, share)
    chosen = {cell: search.changes(search.left[0]) for cell, search in searches.items()}
    tried = {cell: search.record() for cell, search in searches.items()}
    return [
        replace(grid.job(cell, seed, chosen.get(cell, {})), tuned=tried.get(cell, {}))
        for seed in range(grid.seeds)
        for cell in cells
    ]


def _search(grid: Grid, cell: Cell) -> tuning.Search | None:
    """Return the search for the learning rates of a cell; None if its towers do not support the strategy."""
    job = grid.job(cell, seed=0)
    try:
        return tuning.Search(job.recipe)
    except UserError as error:  # its runs will fail, and be listed in the tables
        logger.info(f"{job.result.stem} is not tuned: {error}")
        return None


def _trial(grid: Grid, cell: Cell, search: tuning.Search, candidate: int, share: float) -> Job:
    """Return a short run of a candidate, whose result is kept out of the tables."""
    job = grid.job(cell, 0, search.changes(candidate), tuning.shortened(search.recipe, share))
    return replace(job, result=grid.work / "tuning" / f"{job.folder.name}.json")


def _run(jobs: Sequence[Job], task: str, workers: Pool) -> dict[Job, Outcome]:
    """Run the jobs that have no result; finished runs are collected without a process. Return the failed jobs."""
    for job in jobs:
        if not job.is_done() and (job.folder / train.RESULT).is_file():  # the folder's name has recipe and version
            job.collect()
    open_jobs = [job for job in jobs if not job.is_done()]
    return workers.run(open_jobs, task, already=len(jobs) - len(open_jobs), done=Job.collect)
