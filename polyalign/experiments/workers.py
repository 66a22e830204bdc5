"""Running jobs side by side, here or on a Ray cluster: each in a process of its own, begun again when it dies."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from polyalign.config.recipe import Recipe
from polyalign.utils import storage
from polyalign.utils.errors import UserError
from polyalign.utils.progress import progress

logger = logging.getLogger(__name__)

MAX_RETRIES = 2
BAD_INPUT, INTERRUPTED = 2, 130
RECIPE, LOG, RESTARTS = "job.toml", "log.txt", "restarts.txt"
_GRACE_SECONDS = 10
# What a machine of a cluster must be told, for it shares folders with this one and not the environment.
_TOLD = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HOME", "POLYALIGN_CACHE")

Say = Callable[[str], None]


class Job(Protocol):
    """What the pool needs to know of a run."""

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe, to be written into ``folder / RECIPE``."""

    @property
    def folder(self) -> Path:
        """Where it works."""

    @property
    def command(self) -> tuple[str, ...]:
        """The command of polyalign with its arguments."""


@dataclass(frozen=True)
class Outcome:
    """How a job outcome: what was wrong, nothing where it was done, and whether that was bad input."""

    problem: str = ""
    bad_input: bool = False


J = TypeVar("J", bound=Job)
Submit = Callable[[Job], "Future[Outcome]"]


class Pool:
    """Runs jobs, ``workers`` at a time on a machine, its threads shared among them.

    ``on="ray"`` hands them to the Ray cluster that ``RAY_ADDRESS`` names (one on this machine where it names
    none); its machines must share the folders.
    """

    def __init__(self, workers: int, on: Literal["local", "ray"]) -> None:
        """Only remember; nothing starts yet."""
        self._workers = workers
        self._on = on

    def run(self, jobs: Sequence[J], task: str, *, already: int, done: Callable[[J], str]) -> dict[J, Outcome]:
        """Run the jobs to their end, say what ``done`` tells of each that was, and give those that could not be made.

        ``already`` more are done and counted. Interrupted, it waits until the running ones have saved where they are.

        Raises:
            UserError: Ray is asked for and not installed.
        """
        total = already + len(jobs)
        progress(task, already, total)
        if not jobs:
            return {}
        failed: dict[J, Outcome] = {}
        with self._submitter() as submit:
            waiting = {submit(job): job for job in jobs}
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    job, outcome = waiting.pop(future), future.result()
                    if outcome.problem:
                        failed[job] = outcome
                        logger.info(f"{job.folder.name}: {outcome.problem} (log: {job.folder / LOG})")
                    else:
                        logger.info(done(job))
                    progress(task, total - len(waiting), total, job.folder.name)
        return failed

    def _submitter(self) -> AbstractContextManager[Submit]:
        return _on_ray(self._workers) if self._on == "ray" else _here(self._workers)


def run_job(
    command: Sequence[str],
    recipe_toml: str,
    folder: Path,
    environment: Mapping[str, str],
    cwd: Path,
    stop: threading.Event | None = None,
) -> Outcome:
    """Run a command in a fresh process, and begin it again, twice at the most, where it dies of anything but bad input.

    How often that was is kept in ``folder / RESTARTS``, for also the one who would count may die.
    """
    storage.write_text(folder / RECIPE, recipe_toml)
    stop = stop or threading.Event()
    code = 0
    for _ in range(MAX_RETRIES + 1):
        died = restarts(folder)
        storage.write_text(folder / RESTARTS, str(died + 1))
        with (folder / LOG).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "polyalign", *command],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **environment}, cwd=cwd,
            )  # fmt: skip
            code = _end(process, stop)
        stopped = stop.is_set() or code == INTERRUPTED
        if stopped or code in (0, BAD_INPUT):
            storage.write_text(folder / RESTARTS, str(died))
        if code == 0:
            return Outcome()
        if stopped:
            return Outcome("interrupted")
        if code == BAD_INPUT:
            return Outcome(_last_line(folder / LOG, "error: "), bad_input=True)
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"outcome with code {code}"
    return Outcome(f"its process {how}: {_last_line(folder / LOG)}")


def restarts(folder: Path) -> int:
    """Count how often the job of this folder was begun and came to no end."""
    path = folder / RESTARTS
    return int(path.read_text(encoding="utf-8")) if path.is_file() else 0


def _end(process: subprocess.Popen[bytes], stop: threading.Event) -> int:
    """Wait for a process; told to stop, give it time to save where it is, as Ctrl-C in a terminal has told it too."""
    while process.poll() is None:
        if stop.wait(0.1):
            try:
                process.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.terminate()
                process.wait()
    return process.returncode


def _last_line(log: Path, prefix: str = "") -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    found = [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]
    return found[-1] if found else "it said nothing"


@contextmanager
def _here(workers: int) -> Iterator[Submit]:
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers))}
    stop = threading.Event()
    executor = ThreadPoolExecutor(workers)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # or the processes would train on alone
    try:
        yield lambda job: executor.submit(
            run_job, job.command, job.recipe.to_toml(), job.folder, environment, Path.cwd(), stop
        )
    finally:
        stop.set()
        executor.shutdown(cancel_futures=True)


@contextmanager
def _on_ray(workers: int) -> Iterator[Submit]:
    """Let Ray place the jobs; with ``workers`` on the smallest of its machines, and as many as fit on the others."""
    try:
        import ray
    except ImportError as error:
        raise UserError('--on ray needs the extra: pip install "polyalign[ray]"') from error
    ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=False)
    processors = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    threads = max(1, int(min(filter(None, processors), default=1)) // workers)
    told = {name: os.environ[name] for name in _TOLD if name in os.environ}
    environment = {**told, "OMP_NUM_THREADS": str(threads)}
    remote = ray.remote(num_cpus=threads, max_retries=MAX_RETRIES)(run_job)

    def submit(job: Job) -> Future[Outcome]:
        outcome: Future[Outcome] = Future()

        def hand_on(future: Future[Outcome]) -> None:
            lost = future.exception()
            outcome.set_result(future.result() if lost is None else Outcome(f"Ray lost it: {lost}"))

        reference = remote.remote(job.command, job.recipe.to_toml(), job.folder, environment, Path.cwd())
        reference.future().add_done_callback(hand_on)
        return outcome

    try:
        yield submit
    finally:
        ray.shutdown()
