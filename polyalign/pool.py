"""Running jobs side by side, here or on a Ray cluster: each in a process of its own, begun again when it dies."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from polyalign import storage, train
from polyalign.data import Say
from polyalign.errors import UserError
from polyalign.progress import Progress
from polyalign.recipe import Recipe
from polyalign.results import Run

MAX_RETRIES = 2
BAD_INPUT = 2
LOG = "log.txt"


class Job(Protocol):
    """What the pool needs to know of a run."""

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe."""

    @property
    def folder(self) -> Path:
        """Where it trains."""

    @property
    def result(self) -> Path:
        """Where its result goes."""

    @property
    def tuned(self) -> dict[str, tuple[Any, ...]]:
        """The values that the recipe's were chosen from, to be told in the result."""


J = TypeVar("J", bound=Job)
Submit = Callable[..., "Future[tuple[int, str]]"]


class Pool:
    """Runs jobs, ``workers`` at a time, the processor's threads shared among them.

    ``on="ray"`` hands them to the Ray cluster that ``RAY_ADDRESS`` names (one on this machine where it names
    none); its machines must share the folders.
    """

    def __init__(self, workers: int, on: Literal["local", "ray"], progress: Progress, say: Say) -> None:
        """Only remember; nothing starts yet."""
        self._workers = workers
        self._on = on
        self._progress = progress
        self._say = say

    def run(self, jobs: Sequence[J], task: str, already: int) -> dict[J, str]:
        """Run the jobs to their end and say of each that could not be made why; ``already`` are done and counted.

        Raises:
            UserError: Ray is asked for and not installed.
        """
        total = already + len(jobs)
        self._progress(task, already, total)
        failed: dict[J, str] = {}
        threads = max(1, (os.cpu_count() or 1) // self._workers)
        with _submitter(self._workers, self._on) as submit:
            waiting = {submit(train_job, job.recipe.to_toml(), job.folder, threads): job for job in jobs}
            while waiting:
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    job = waiting.pop(future)
                    retries, problem = future.result()
                    if problem:
                        failed[job] = problem
                        self._say(f"{job.folder.name}: {problem} (log: {job.folder / LOG})")
                    else:
                        _collect(job, retries)
                    self._progress(task, total - len(waiting), total, job.folder.name)
        return failed


def train_job(recipe_toml: str, folder: Path, threads: int) -> tuple[int, str]:
    """Train a resolved recipe into a folder in a fresh process, going on where an earlier one stopped.

    A process that dies of anything but bad input is begun again, twice at the most. Returns how often that was, and
    what was wrong in the end: nothing when the result is there.
    """
    recipe = folder / "job.toml"
    storage.write_text(recipe, recipe_toml)
    command = [sys.executable, "-m", "polyalign", "repeat", str(recipe), "--out", str(folder), "--resume"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    code = 0
    for retries in range(MAX_RETRIES + 1):
        with (folder / LOG).open("ab") as log:
            code = subprocess.run(command, stdout=log, stderr=log, env=environment, check=False).returncode
        if code == 0:
            return retries, ""
        if code == BAD_INPUT:
            break
    return MAX_RETRIES, _last_error(folder / LOG, code)


def _last_error(log: Path, code: int) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if code == BAD_INPUT and errors:
        return errors[-1]
    return f"the process ended with code {code}: {lines[-1] if lines else 'it said nothing'}"


def _collect(job: Job, retries: int) -> None:
    """Copy a result to where the report finds it, with what only the pool knows."""
    run = Run.load_json(job.folder / train.RESULT)
    run.model_copy(update={"retries": retries, "tuned": job.tuned}).save_json(job.result)


@contextmanager
def _submitter(workers: int, on: str) -> Iterator[Submit]:
    if on == "local":
        with ThreadPoolExecutor(workers) as executor:
            yield executor.submit
        return
    try:
        import ray
    except ImportError as error:
        raise UserError('--on ray needs the extra: pip install "polyalign[ray]"') from error
    ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=False)
    remote = ray.remote(max_retries=MAX_RETRIES)(train_job)
    try:
        yield lambda _, *job: remote.remote(*job).future()
    finally:
        ray.shutdown()
