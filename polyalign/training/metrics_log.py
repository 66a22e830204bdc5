"""Metrics of a run while it trains: lines of JSON in its folder, and the same in a tracker such as TensorBoard."""

from __future__ import annotations

import atexit
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from polyalign.config.schema import Recipe
from polyalign.utils import storage
from polyalign.utils.errors import UserError, first_line

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
TRACKING = "tracking"
"""Folder, in that of the run, of the files of a tracker; ``--overwrite`` does not delete it."""

Tracker = Literal["tensorboard", "wandb", "trackio", "mlflow"]


def tracking_accelerator(track: Tracker | None, out: Path | None) -> Accelerator:
    """Return the accelerator of a run, with a tracker if one is named.

    Raises:
        UserError: the library of the tracker is not installed.
    """
    if track is not None and track not in map(str, get_available_trackers()):
        raise UserError(f"--track {track} needs a library that is not installed: pip install {track}")
    return Accelerator(mixed_precision="no", log_with=track, project_dir=None if out is None else out / TRACKING)


class MetricsLog:
    """Appends metrics to ``metrics.jsonl`` and sends them to the tracker, in the main process only."""

    def __init__(self, path: Path, recipe: Recipe, accelerator: Accelerator, resumed: int | None) -> None:
        """Start the file anew, or, for a run that is ``resumed`` after a step, keep its lines up to this step.

        Raises:
            UserError: the file cannot be written, or the tracker cannot be started.
        """
        self._path = path
        self._accelerator = accelerator
        if not accelerator.is_main_process:
            return
        storage.write_text(path, "" if resumed is None else _lines_until(resumed, path))
        if accelerator.log_with:
            self._start_tracker(str(accelerator.log_with[0]), recipe)

    def _start_tracker(self, name: str, recipe: Recipe) -> None:
        folder = self._path.parent
        kwargs: dict[str, dict[str, Any]] = {
            "wandb": {"name": folder.name, "dir": str(folder / TRACKING)},
            "trackio": {"name": folder.name},
            "mlflow": {"run_name": folder.name},
        }
        # TensorBoard would show settings as a run of their own.
        config = None if name == "tensorboard" else _settings(recipe)
        try:
            if name == "wandb":
                (folder / TRACKING).mkdir(parents=True, exist_ok=True)
            with redirect_stdout(sys.stderr):  # standard output is for results
                self._accelerator.init_trackers("polyalign", config, kwargs)
        except Exception as error:
            raise UserError(f"--track {name} cannot be started: {first_line(error)}") from error
        atexit.register(_end_output)  # runs before what trackers have registered until now

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append the metrics of a step.

        If the tracker fails, a warning says so, and the run goes on without it.

        Raises:
            UserError: the disk is full.
        """
        if not self._accelerator.is_main_process:
            return
        line = json.dumps({"step": step, **metrics}) + "\n"
        try:
            with self._path.open("ab", buffering=0) as file:
                file.write(line.encode())
        except OSError as error:
            raise storage.cannot_write(self._path, error) from error
        with _tracking(self._accelerator):
            self._accelerator.log(dict(metrics), step=step)


def end_training(accelerator: Accelerator) -> None:
    """End the run of the tracker, and of the process among several."""
    with _tracking(accelerator):
        accelerator.end_training()


@contextmanager
def _tracking(accelerator: Accelerator) -> Iterator[None]:
    """Send what a tracker prints to standard error; if it fails, say so and go on without it."""
    try:
        with redirect_stdout(sys.stderr):
            yield
    except Exception as error:
        if not accelerator.trackers:
            raise
        name = accelerator.trackers[0].name
        logger.warning(f"warning: {name} failed ({first_line(error)}); the run goes on without it")
        accelerator.trackers.clear()


def _end_output() -> None:
    """Send to standard error what a tracker prints while Python exits."""
    sys.stdout.flush()
    sys.stdout = sys.stderr


def learning_rates(optimiser: torch.optim.Optimizer) -> dict[str, float]:
    """Return the highest rate of all groups of parameters, and the lowest if they differ."""
    rates = [float(group["lr"]) for group in optimiser.param_groups]
    return {"lr": max(rates)} | ({"lr_lowest": min(rates)} if min(rates) < max(rates) else {})


def _settings(recipe: Recipe) -> dict[str, str | float]:
    return {
        "recipe": recipe.name,
        "lang": "+".join(recipe.langs),
        "strategy": recipe.strategy["name"],
        "towers": recipe.strategy["towers"],
        "budget": recipe.budget,
        "seed": recipe.train.seed,
        "lr": recipe.optim.lr,
        "batch_size": recipe.optim.batch_size,
    }


def _lines_until(step: int, path: Path) -> str:
    """Return the lines of the file up to a step; a killed process may have left a last line that is not whole."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return "".join(f"{line}\n" for line in lines if _step_of(line) <= step)


def _step_of(line: str) -> float:
    """Return the step of a line, infinity if it is not one that was written here."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
        return float("inf")
