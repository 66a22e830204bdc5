"""Compare: a grid of runs on the same pairs, each in a process of its own, resumable, into one folder of results."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polyalign
from polyalign.config import recipe as recipes
from polyalign.config.recipe import Recipe
from polyalign.evaluation import tables
from polyalign.evaluation.results import LeftOut, Run
from polyalign.experiments import micro_batch as fitting
from polyalign.experiments import report
from polyalign.experiments import run_folders as runs
from polyalign.experiments import workers as pool
from polyalign.experiments.workers import Outcome, Pool
from polyalign.training import train
from polyalign.utils import storage
from polyalign.utils.errors import UserError

logger = logging.getLogger(__name__)

STRATEGIES = ("projection", "layernorm", "lilt", "lilt-deep", "lit", "full")
"""Those that answer the question: few parameters, some, one tower, everything."""

LR_FACTORS = (0.3, 1.0, 3.0)
"""Tuning tries each strategy's own learning rate times these."""


@dataclass(frozen=True, eq=False)
class Job:
    """One run of the grid: where it trains, where its result goes, and which values its recipe was tuned over.

    ``left_out`` is the file that says why there is no result.
    """

    recipe: Recipe
    folder: Path
    result: Path
    left_out: Path
    tuned: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def command(self) -> tuple[str, ...]:
        """Train, or go on where an earlier process stopped."""
        return ("repeat", str(self.folder / pool.RECIPE), "--out", str(self.folder), "--resume")

    def is_done(self) -> bool:
        """Whether the result is there, of this very recipe and this version of the code, and tells what was tuned."""
        if not self.result.is_file():
            return False
        run = Run.load_json(self.result)
        same = self.recipe.is_of(run.recipe)
        told = not self.tuned or run.tuned == self.tuned
        return same and told and run.versions.get("polyalign") == polyalign.__version__

    def is_trained(self) -> bool:
        """Whether the run is finished in its own folder, which is of this recipe and this version alone."""
        return (self.folder / train.RESULT).is_file()

    def collect(self) -> str:
        """Copy the result to where the report finds it, with what only the comparison knows, and tell it in a line."""
        run = Run.load_json(self.folder / train.RESULT)
        retries = pool.restarts(self.folder)
        run.model_copy(update={"retries": retries, "tuned": self.tuned}).save_json(self.result)
        self.left_out.unlink(missing_ok=True)
        found = tables.percent(run.test[0].mean_recall)
        return f"{self.result.stem}: mean recall {found}, {tables.duration(run.seconds)}"

    def leave_out(self, why: str) -> None:
        """Note for the report that there is no result, and why."""
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

    def dev(self) -> float:
        """Give the best mean recall on dev; minus one where the run could not be made."""
        return (
            max(look.dev_mean_recall for look in Run.load_json(self.result).dev_evaluations) if self.is_done() else -1.0
        )


@dataclass(frozen=True)
class Cell:
    """A place in the grid: what is trained on what, before the seed is chosen.

    ``micro_batch`` is what keeps it within a budget of memory; the recipe's own where it is none.
    """

    recipe: str
    lang: str
    budget: str | None
    strategy: str
    micro_batch: int | None = None


@dataclass(frozen=True)
class Grid:
    """What is compared: everything named here with everything else named here, on the same pairs.

    ``overrides`` are keys of the recipe that hold for all. Results go to ``out``, trained folders to ``work``.
    """

    recipes: tuple[str, ...]
    langs: tuple[str, ...]
    budgets: tuple[str, ...]
    strategies: tuple[str, ...]
    seeds: int
    overrides: dict[str, Any]
    out: Path
    work: Path

    def cells(self) -> list[Cell]:
        """List the cells; without languages those of each recipe, without strategies those that answer the question.

        Raises:
            UserError: two recipes have one name, by which their results could not be told apart.
        """
        twins = [name for name, count in Counter(Path(recipe).stem for recipe in self.recipes).items() if count > 1]
        if twins:
            raise UserError(f'two recipes are called "{twins[0]}": rename one')
        return [
            Cell(recipe, lang, budget, strategy)
            for recipe in self.recipes
            for lang in self.langs or recipes.recipe_languages(recipe)
            for budget in self.budgets or (None,)
            for strategy in self.strategies or STRATEGIES
        ]

    def job(self, cell: Cell, seed: int, lr: float | None = None) -> Job:
        """Resolve one run, which also measures what carries over to other languages and what knowledge is kept.

        Raises:
            UserError: an unknown name, or a setting that does not fit.
        """
        own: dict[str, Any] = {"train": {"seed": seed}, "optim": {"lr": lr, "micro_batch": cell.micro_batch}}
        own["optim"] = {key: value for key, value in own["optim"].items() if value is not None}
        if cell.budget is not None:
            own = recipes.merge(own, recipes.within(cell.budget))
        table = recipes.merge({"test": self._asked(cell)}, self.overrides)
        recipe = recipes.resolve(cell.recipe, cell.lang, cell.strategy, recipes.merge(table, own))
        name = "-".join([runs.default_folder(recipe).name, *self._source()])
        return Job(
            recipe,
            (self.work / f"{name}-{_digest(recipe)}").resolve(),
            self.out / report.RUNS / f"{name}.json",
            self.out / report.LEFT_OUT / f"{name}.json",
        )

    def _asked(self, cell: Cell) -> dict[str, Any]:
        """Ask for what was known; for other languages only in the recipe's own data, which is known to speak them."""
        own_data = "source" not in self.overrides
        return {"knowledge": True} | (
            {"languages": recipes.transfer_languages(cell.recipe, cell.lang)} if own_data else {}
        )

    def _source(self) -> Iterator[str]:
        """Name the data where it is not the recipe's own, so that results on other data stay apart."""
        source = self.overrides.get("source", {})
        if "name" in source:
            yield Path(source["root"]).resolve().stem if "root" in source else source["name"]


def compare(grid: Grid, workers: Pool, *, tune: bool) -> list[Path]:
    """Train what is not there yet, then write the tables and figures of all results in ``grid.out``.

    With ``tune`` each strategy's learning rate is first chosen on dev, from an equal grid. What cannot keep to a
    budget of memory is left out, and the tables say so.

    Raises:
        UserError: bad settings; or, when all else is done and reported, that some runs could not be made.
    """
    wanted = grid.cells()
    for folder in (grid.out, grid.work):
        storage.check_writable(folder)
    cells = _fitted(grid, wanted, workers)
    if not cells:
        raise UserError(f"none of the {len(wanted)} settings can be trained within that memory: allow more")
    # The first seed of all comes before the second of any, so that an early end leaves whole tables.
    jobs = _tuned(grid, cells, workers) if tune else [grid.job(c, s) for s in range(grid.seeds) for c in cells]
    failed = _run(jobs, "runs", workers)
    for job, outcome in failed.items():
        job.leave_out(outcome.problem)
    if len(failed) == len(jobs):
        raise UserError(f"none of the {len(jobs)} runs could be made: {next(iter(failed.values())).problem}")
    written = report.write(grid.out)
    if failed:
        names = "; ".join(f"{job.result.stem}: {outcome.problem}" for job, outcome in failed.items())
        raise UserError(f"the tables are written, but {len(failed)} runs could not be made: {names}")
    return written


def _fitted(grid: Grid, cells: Sequence[Cell], workers: Pool) -> list[Cell]:
    """Give each cell of a bounded memory the micro-batch that keeps to it, and leave out those that none does."""
    fits = fitting.fit({cell: grid.job(cell, seed=0).recipe for cell in cells}, grid.work / "memory", workers)
    kept = []
    for cell in cells:
        found = fits.get(cell)
        if found is not None and found.micro_batch is None and not found.bad_input:
            for seed in range(grid.seeds):
                grid.job(cell, seed).leave_out(found.problem)
            logger.info(f"left out: {grid.job(cell, seed=0).result.stem} {found.problem}")
        else:
            kept.append(cell if found is None else replace(cell, micro_batch=found.micro_batch))
    return kept


def _tuned(grid: Grid, cells: Sequence[Cell], workers: Pool) -> list[Job]:
    """Choose the learning rate of every cell on dev with the first seed, and give the jobs that use it."""
    trials = {cell: _trials(grid, cell) for cell in cells}
    every = [trial for tried in trials.values() for trial in tried]
    _run(every, "tuning on dev", workers)
    best = {cell: max(tried, key=Job.dev).recipe.optim.lr for cell, tried in trials.items()}
    values = {cell: {"optim.lr": tuple(trial.recipe.optim.lr for trial in tried)} for cell, tried in trials.items()}
    return [
        replace(grid.job(cell, seed, best[cell]), tuned=values[cell]) for seed in range(grid.seeds) for cell in cells
    ]


def _trials(grid: Grid, cell: Cell) -> list[Job]:
    """Give the runs that a cell's learning rate is chosen from; their results stay out of the tables."""
    preset = grid.job(cell, seed=0).recipe.optim.lr
    rates = [float(f"{preset * factor:.2g}") for factor in LR_FACTORS]
    jobs = [grid.job(cell, seed=0, lr=rate) for rate in rates]
    tuning = grid.work / "tuning"
    return [replace(job, result=tuning / f"{job.folder.name}.json") for job in jobs]


def _run(jobs: Sequence[Job], task: str, workers: Pool) -> dict[Job, Outcome]:
    """Run what is not done yet; what only waits to be collected needs no process."""
    for job in jobs:
        if not job.is_done() and job.is_trained():
            job.collect()
    open_jobs = [job for job in jobs if not job.is_done()]
    return workers.run(open_jobs, task, already=len(jobs) - len(open_jobs), done=Job.collect)


def _digest(recipe: Recipe) -> str:
    """Name what decides a run, so that a folder never holds a run of other settings or of another version."""
    return hashlib.sha256(f"{polyalign.__version__}\n{recipe.to_toml()}".encode()).hexdigest()[:8]
