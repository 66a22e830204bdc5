"""Folders of runs: where one goes, what may be written there, and evaluating one again."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from polyalign.config.recipe import Recipe
from polyalign.evaluation.results import Run
from polyalign.training import train
from polyalign.utils import storage
from polyalign.utils.errors import UserError
from polyalign.utils.process import processes
from polyalign.utils.progress import progress_bars

logger = logging.getLogger(__name__)


def default_folder(recipe: Recipe) -> Path:
    """Name a run after what it is: recipe, language, strategy, what differs from the default, budget, seed."""
    strategy = recipe.strategy
    _, config = recipe.plugin("strategy")
    plain = type(config)()
    parts = [recipe.name, recipe.lang, strategy["name"]]
    parts += [str(strategy[key]) for key in ("towers", "layers") if strategy[key] != getattr(plain, key)]
    parts += [recipe.budget, f"s{recipe.train.seed}"]
    return Path("runs") / "-".join(parts).replace(":", "")


def train_into(folder: Path, recipe: Recipe, *, resume: bool, overwrite: bool) -> Run | None:
    """Train into a folder; a finished run of the same recipe is given back as it is. None in all but the main process.

    Raises:
        UserError: the folder holds another run, or an unfinished one and neither ``resume`` nor ``overwrite`` is given;
            or it cannot be written to.
    """
    storage.check_writable(folder)
    every = processes()
    main = every.is_main_process
    finished, begun = folder / train.RESULT, folder / train.STATE
    if overwrite and main and (finished.exists() or begun.exists()):
        shutil.rmtree(folder)
    every.wait_for_everyone()  # none may look into a folder that is being emptied
    if not main:
        logging.getLogger("polyalign").setLevel(logging.ERROR)
    if finished.exists():
        run = Run.load_json(finished)
        if not recipe.is_of(run.recipe):
            raise UserError(f"{folder} holds a run with other settings: give another --out, or --overwrite")
        logger.info(f"{folder} is finished already; --overwrite trains it again")
        return run if main else None
    if begun.exists() and not resume:
        raise UserError(f"{folder} holds an unfinished run: go on with --resume, or begin again with --overwrite")
    if resume and not begun.exists():
        logger.info(f"nothing to resume in {folder}: beginning anew")
    with progress_bars(enabled=main):
        return train.train(recipe, folder, resume=resume)


def next_commands(folder: Path, run: Run) -> list[str]:
    """Suggest what to try after training."""
    other = next((strategy for strategy in ("lilt", "projection", "lit") if strategy != run.strategy), "full")
    return [
        f"polyalign eval {folder} --lang {run.lang},en",
        f"polyalign train --lang {run.lang} --strategy {other} --recipe {run.recipe['name']}",
        f"polyalign strategies --recipe {run.recipe['name']}",
    ]
