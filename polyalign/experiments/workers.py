"""Run jobs in parallel, on this machine or a Ray cluster, each in its own process, which is restarted if it dies."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from filelock import FileLock, Timeout

from polyalign.config.schema import Recipe
from polyalign.utils import parent, storage
from polyalign.utils.errors import UserError
from polyalign.utils.progress import progress

logger = logging.getLogger(__name__)

MAX_RETRIES = 2
BAD_INPUT, INTERRUPTED = 2, 130
RECIPE, LOG, RESTARTS = "job.toml", "log.txt", "restarts.txt"
RUNNING = ".polyalign.job.lock"
"""File in the folder of a job that is locked while it runs."""

# Environment variables that jobs on a cluster need.
_PASSED_ON = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HOME", "POLYALIGN_CACHE")


class _Job(Protocol):
    """A job: its recipe, written to ``folder / RECIPE``, its folder, and the arguments of polyalign."""

    @property
    def recipe(self) -> Recipe: ...
    @property
    def folder(self) -> Path: ...
    @property
    def command(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Outcome:
    """How a job ended: the problem (empty on success), and whether it was bad input."""

    problem: str = ""
    bad_input: bool = False


J = TypeVar("J", bound=_Job)
Submit = Callable[[_Job], "Future[Outcome]"]


@dataclass(frozen=True)
class Pool:
    """Runs ``workers`` jobs at a time on each machine, which share its threads (unless ``OMP_NUM_THREADS`` is set).

    With ``on="ray"`` jobs run on the Ray cluster at ``RAY_ADDRESS``, or on a local one if that is not set. The machines
    of a cluster must share the folders of the jobs.
    """

    workers: int
    on: Literal["local", "ray"]

    def run(self, jobs: Sequence[J], task: str, *, already: int, done: Callable[[J], str]) -> dict[J, Outcome]:
        """Run the jobs and return those that failed.

        When interrupted, waits until the running jobs have saved their state.

        Args:
            jobs: jobs to run.
            task: name of the progress bar.
            already: number of jobs finished before, counted in the bar.
            done: called for each finished job; returns a line to log.

        Raises:
            UserError: Ray is not installed.
        """
        total = already + len(jobs)
        progress(task, already, total)
        if not jobs:
            return {}
        failed: dict[J, Outcome] = {}
        with (_on_ray if self.on == "ray" else _here)(self.workers) as submit:
            submitted = {submit(job): job for job in jobs}
            for count, future in enumerate(as_completed(submitted), already + 1):
                job, outcome = submitted[future], future.result()
                if outcome.problem:
                    failed[job] = outcome
                    logger.info(f"{job.folder.name}: {outcome.problem} (log: {job.folder / LOG})")
                else:
                    logger.info(done(job))
                progress(task, count, total, job.folder.name)
        return failed


def run_job(
    command: Sequence[str],
    recipe_toml: str,
    folder: Path,
    environment: Mapping[str, str],
    cwd: Path,
    stop: threading.Event | None = None,
    pool: str = "",
) -> Outcome:
    """Run a command in a new process, and restart it up to twice unless it ends with bad input.

    If another comparison runs a job in the same folder, its end is awaited first. The number of restarts is kept in
    ``folder / RESTARTS``. While the command runs, the identifier of the ``pool`` is beside it: if this process dies and
    the same pool starts the job again, as Ray does, that counts as a restart; if the pool died, it does not.
    """
    stop = stop or threading.Event()
    storage.write_text(folder / RECIPE, recipe_toml)
    lock = FileLock(folder / RUNNING, blocking=False)
    if not _acquire(lock, stop, folder.name):
        return Outcome("interrupted")
    try:
        environment = {**os.environ, **environment, parent.ENDS_WITH_STDIN: "1"}
        code, died = 0, restarts(folder, pool)
        for _ in range(MAX_RETRIES + 1):
            storage.write_text(folder / RESTARTS, f"{died} {pool}")
            with (
                (folder / LOG).open("ab") as log,
                subprocess.Popen(
                    [sys.executable, "-m", "polyalign", *command],
                    stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, cwd=cwd,
                ) as process,
            ):  # fmt: skip
                code = _end(process, stop)
            stopped = stop.is_set() or code == INTERRUPTED
            died += not stopped and code not in (0, BAD_INPUT)
            storage.write_text(folder / RESTARTS, str(died))
            if code == 0:
                return Outcome()
            if stopped:
                return Outcome("interrupted")
            if code == BAD_INPUT:
                return Outcome(_last_line(folder / LOG, "error: "), bad_input=True)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return Outcome(f"its process {how}: {_last_line(folder / LOG)}")
    finally:
        lock.release()


def _acquire(lock: FileLock, stop: threading.Event, name: str) -> bool:
    """Wait until no other comparison holds the lock of a job; return False if ``stop`` is set before."""
    has_told = False
    while True:
        try:
            lock.acquire()
            return True
        except Timeout:
            if not has_told:
                logger.info(f"{name}: another comparison runs it; waiting")
            has_told = True
        if stop.wait(1):
            return False


def restarts(folder: Path, pool: str = "") -> int:
    """Return how many times the job of this folder died, including a start by the same ``pool`` that has no end."""
    path = folder / RESTARTS
    died, _, started_by = (path.read_text(encoding="utf-8") if path.is_file() else "0").partition(" ")
    if not died.isdecimal():
        raise UserError(f"{path} is not a number of restarts: delete it")
    return int(died) + (pool != "" and started_by == pool)


def _end(process: subprocess.Popen[bytes], stop: threading.Event) -> int:
    """Wait for a process and return its exit code; after ``stop``, give it time to save its state, then end it."""
    while process.poll() is None:
        if stop.wait(0.1):
            try:
                process.wait(parent.GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.terminate()
                process.wait()
    return process.returncode


def _last_line(log: Path, prefix: str = "") -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    found = [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]
    return found[-1] if found else "no output"


@contextmanager
def _here(workers: int) -> Iterator[Submit]:
    allowed = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(allowed) if allowed.isdecimal() else (os.cpu_count() or 1) // workers
    environment = {"OMP_NUM_THREADS": str(max(1, threads))}
    stop, pool = threading.Event(), uuid.uuid4().hex
    executor = ThreadPoolExecutor(workers)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # or the processes would continue without this one
    try:
        yield lambda job: executor.submit(
            run_job, job.command, job.recipe.to_toml(), job.folder, environment, Path.cwd(), stop, pool
        )
    finally:
        stop.set()
        executor.shutdown(cancel_futures=True)


@contextmanager
def _on_ray(workers: int) -> Iterator[Submit]:
    """Run jobs on Ray: ``workers`` on its smallest machine, and as many as fit on the others."""
    try:
        import ray
    except ImportError as error:
        raise UserError('--on ray needs the extra: pip install "polyalign[ray]"') from error
    ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=False)
    processors = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    threads = max(1, int(min(filter(None, processors), default=1)) // workers)
    passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    environment = {**passed_on, "OMP_NUM_THREADS": str(threads)}
    pool = uuid.uuid4().hex
    remote = ray.remote(num_cpus=threads, max_retries=MAX_RETRIES)(run_job)

    def submit(job: _Job) -> Future[Outcome]:
        outcome: Future[Outcome] = Future()

        def pass_on(future: Future[Outcome]) -> None:
            lost = future.exception()
            outcome.set_result(future.result() if lost is None else Outcome(f"Ray lost it: {lost}"))

        reference = remote.remote(job.command, job.recipe.to_toml(), job.folder, environment, Path.cwd(), None, pool)
        reference.future().add_done_callback(pass_on)
        return outcome

    try:
        yield submit
    finally:
        ray.shutdown()
