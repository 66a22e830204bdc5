"""Folders of runs: their names, and training into them."""

from __future__ import annotations

import hashlib
import logging
import shutil
from pathlib import Path
from typing import Any

import polyalign
from polyalign.config.resolve import budget_overrides, resolve
from polyalign.config.schema import Recipe, merge
from polyalign.evaluation.results import Run
from polyalign.experiments.workers import LOG, RECIPE, RESTARTS
from polyalign.models import checkpoint
from polyalign.training import train
from polyalign.utils import storage
from polyalign.utils.errors import UserError
from polyalign.utils.process import from_main_process, processes
from polyalign.utils.progress import progress_bars

logger = logging.getLogger(__name__)


def default_folder(recipe: Recipe, recipe_file: str) -> Path:
    """Return the default folder of a run, in ``./runs`` (see ``run_name``)."""
    return Path("runs") / run_name(recipe, recipe_file)


def run_name(recipe: Recipe, recipe_file: str, usual: dict[str, Any] | None = None) -> str:
    """Name a run after recipe, language, strategy, budget and seed.

    If other settings differ from the recipe file, the name ends with a digest of the resolved recipe without its seed,
    so that runs with different settings have different names.

    Args:
        recipe: resolved recipe of the run.
        recipe_file: the name or path that it was resolved from.
        usual: settings that differ from the recipe file without being part of the name.
    """
    strategy = recipe.strategy
    _, config = recipe.plugin("strategy")
    plain = type(config)()
    parts = [recipe.name, recipe.lang, strategy["name"]]
    parts += [str(strategy[key]) for key in ("towers", "layers") if strategy[key] != getattr(plain, key)]
    parts += [recipe.budget, f"s{recipe.train.seed}"]
    if _plain(recipe, recipe_file, usual or {}) != recipe:
        unseeded = recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": 0})})
        parts.append(hashlib.sha256(unseeded.to_toml().encode()).hexdigest()[:6])
    return "-".join(parts).replace(":", "")


def _plain(recipe: Recipe, recipe_file: str, usual: dict[str, Any]) -> Recipe | None:
    """Resolve the recipe file with only the settings in the name of a run; None if it needs others."""
    named: dict[str, Any] = {
        "strategy": {key: recipe.strategy[key] for key in ("towers", "layers")},
        "data": {"budget": None},
        "train": {"seed": recipe.train.seed, "max_seconds": None, "max_memory_bytes": None},
    }
    if recipe.budget != "all":
        named = merge(named, budget_overrides(recipe.budget))
    try:
        return resolve(recipe_file, recipe.lang, recipe.strategy["name"], merge(named, usual))
    except UserError:  # e.g. a source without its root: the names of all runs have a digest
        return None


def versioned_digest(recipe: Recipe) -> str:
    """Return a hash of the recipe and the version of polyalign, for the name of a folder that only this run uses."""
    return hashlib.sha256(f"{polyalign.__version__}\n{recipe.to_toml()}".encode()).hexdigest()[:8]


def train_into(folder: Path, recipe: Recipe, *, resume: bool, overwrite: bool) -> Run | None:
    """Train into a folder and return the run, or the finished run of the same recipe that the folder holds.

    With ``overwrite`` an existing run is deleted first; other files in the folder are kept. In all but the main process
    the result is None.

    Raises:
        UserError: the folder holds a run with other settings, an unfinished run (without ``resume`` and ``overwrite``),
            or a ``result.json`` that is not of a run; or it is not writable.
    """
    storage.check_writable(folder)
    main = processes().is_main_process
    if main:
        _refuse_foreign(folder)
    if overwrite and main:
        _delete_run(folder)
    if not main:
        logging.getLogger("polyalign").setLevel(logging.ERROR)
    # Only the main process reads the folder, which other machines may not share.
    finished = from_main_process((folder / train.RESULT).exists())
    begun = from_main_process((folder / train.STATE).exists())
    if finished:
        if not main:
            return None
        run = Run.load_json(folder / train.RESULT)
        if not recipe.is_of(run.recipe):
            raise UserError(f"{folder} holds a run with other settings: use another --out, or --overwrite")
        logger.info(f"the run in {folder} is already finished; train it again with --overwrite")
        return run
    if begun and not resume:
        raise UserError(f"{folder} holds an unfinished run: continue it with --resume, or start over with --overwrite")
    if resume and not begun:
        logger.info(f"nothing to resume in {folder}: starting a new run")
    with progress_bars(enabled=main):
        return train.train(recipe, folder, resume=resume)


def _refuse_foreign(folder: Path) -> None:
    """Check that a folder is new, is empty, or holds a run, so that the files of a run are not mixed with others."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if names - {RECIPE, LOG, RESTARTS} and not names & {train.RESULT, train.STATE}:
        raise UserError(f"{folder} contains other files and no run: use a new folder for --out")


def _delete_run(folder: Path) -> None:
    """Delete only the files of a run in its folder; symbolic links are removed, not followed."""
    owned: tuple[str, ...] = (train.STATE,)  # the only file of an unfinished run
    if (folder / checkpoint.TOWERS).is_file():
        owned = train.FILES
    elif (folder / train.RESULT).is_file():
        Run.load_json(folder / train.RESULT)  # refuses a file of another kind
        owned += (train.RESULT,)
    for path in [folder / name for name in owned]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def next_commands(folder: Path, run: Run) -> list[str]:
    """Return commands to try after training."""
    other = next((strategy for strategy in ("lilt", "projection", "lit") if strategy != run.strategy), "full")
    return [
        f"polyalign eval {folder} --lang {run.lang},en",
        f"polyalign train --lang {run.lang} --strategy {other} --recipe {run.recipe['name']}",
        f"polyalign strategies --recipe {run.recipe['name']}",
    ]
