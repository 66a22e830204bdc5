"""Compare: a grid of runs on the same pairs, each in a process of its own, resumable, into one folder of results."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import polyalign
from polyalign import recipe as recipes
from polyalign import report, runs
from polyalign.errors import UserError
from polyalign.pool import Pool
from polyalign.recipe import Recipe
from polyalign.results import Run

STRATEGIES = ("projection", "layernorm", "lilt", "lilt-deep", "lit", "full")
"""Those that answer the question: few parameters, some, one tower, everything."""

LR_FACTORS = (0.3, 1.0, 3.0)
"""Tuning tries each strategy's own learning rate times these."""


@dataclass(frozen=True, eq=False)
class Job:
    """One run of the grid: where it trains, where its result goes, and which values its recipe was tuned over."""

    recipe: Recipe
    folder: Path
    result: Path
    tuned: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    def is_done(self) -> bool:
        """Whether the result is there, of this very recipe and this version of the code."""
        if not self.result.is_file():
            return False
        run = Run.load_json(self.result)
        same = run.recipe == self.recipe.model_dump(mode="json", exclude_none=True)
        return same and run.versions.get("polyalign") == polyalign.__version__

    def dev(self) -> float:
        """Give the best mean recall on dev; minus one where the run could not be made."""
        return max(look.dev_mean_recall for look in Run.load_json(self.result).looks) if self.is_done() else -1.0


@dataclass(frozen=True)
class Cell:
    """A place in the grid: what is trained on what, before the seed is chosen."""

    lang: str
    budget: str | None
    strategy: str


@dataclass(frozen=True)
class Grid:
    """What is compared: everything named here with everything else named here, on the same pairs.

    ``overrides`` are keys of the recipe that hold for all. Results go to ``out / "runs"``, trained folders to ``work``.
    """

    recipe: str
    langs: tuple[str, ...]
    budgets: tuple[str, ...]
    strategies: tuple[str, ...]
    seeds: int
    overrides: dict[str, Any]
    out: Path
    work: Path

    def cells(self) -> list[Cell]:
        """List the cells; without languages those of the recipe, without strategies those that answer the question."""
        langs = self.langs or tuple(recipes.recipe_languages(self.recipe))
        return [Cell(*cell) for cell in product(langs, self.budgets or (None,), self.strategies or STRATEGIES)]

    def job(self, cell: Cell, seed: int, lr: float | None = None) -> Job:
        """Resolve one run.

        Raises:
            UserError: an unknown name, or a setting that does not fit.
        """
        own: dict[str, Any] = {"train": {"seed": seed}}
        if cell.budget is not None:
            own["data"] = {"budget": cell.budget}
        if lr is not None:
            own["optim"] = {"lr": lr}
        recipe = recipes.resolve(self.recipe, cell.lang, cell.strategy, recipes.merge(self.overrides, own))
        name = runs.default_folder(recipe).name
        return Job(recipe, self.work / f"{name}-{_digest(recipe)}", self.out / report.RUNS / f"{name}.json")


def compare(grid: Grid, pool: Pool, *, tune: bool) -> list[Path]:
    """Train what is not there yet, then write the tables and figures of all results in ``grid.out``.

    With ``tune`` each strategy's learning rate is first chosen on dev, from an equal grid.

    Raises:
        UserError: bad settings; or, when all else is done and reported, that some runs could not be made.
    """
    cells = grid.cells()
    jobs = [grid.job(cell, seed) for cell in cells for seed in range(grid.seeds)]
    if tune:
        jobs = _tuned(grid, cells, pool)
    failed = pool.run([job for job in jobs if not job.is_done()], "runs", already=sum(job.is_done() for job in jobs))
    if len(failed) == len(jobs):
        raise UserError(f"none of the {len(jobs)} runs could be made: {next(iter(failed.values()))}")
    written = report.write(grid.out)
    if failed:
        names = "; ".join(f"{job.folder.name}: {why}" for job, why in failed.items())
        raise UserError(f"the tables are written, but {len(failed)} runs could not be made: {names}")
    return written


def _tuned(grid: Grid, cells: Sequence[Cell], pool: Pool) -> list[Job]:
    """Choose the learning rate of every cell on dev with the first seed, and give the jobs that use it."""
    trials = {cell: _trials(grid, cell) for cell in cells}
    every = [trial for tried in trials.values() for trial in tried]
    pool.run([trial for trial in every if not trial.is_done()], "tuning on dev", already=0)
    jobs = []
    for cell, tried in trials.items():
        lr = max(tried, key=Job.dev).recipe.optim.lr
        values = {"optim.lr": tuple(trial.recipe.optim.lr for trial in tried)}
        jobs += [replace(grid.job(cell, seed, lr), tuned=values) for seed in range(grid.seeds)]
    return jobs


def _trials(grid: Grid, cell: Cell) -> list[Job]:
    """Give the runs that a cell's learning rate is chosen from; their results stay out of the tables."""
    preset = grid.job(cell, seed=0).recipe.optim.lr
    rates = [float(f"{preset * factor:.2g}") for factor in LR_FACTORS]
    jobs = [grid.job(cell, seed=0, lr=rate) for rate in rates]
    tuning = grid.work / "tuning"
    return [replace(job, result=tuning / f"{job.folder.name}.json") for job in jobs]


def _digest(recipe: Recipe) -> str:
    """Name what decides a run, so that a folder never holds a run of other settings or of another version."""
    return hashlib.sha256(f"{polyalign.__version__}\n{recipe.to_toml()}".encode()).hexdigest()[:8]
