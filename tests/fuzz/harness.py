"""Run one command in this process, in a folder of its own, and hold it to what holds for every input.

``check`` states the rules: an exit code of a documented kind, one line for an error, no traceback, nothing that a
terminal would obey, no file changed but where the command was told to write, no network, no pickle, and an end.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import logging
import os
import shlex
import shutil
import signal
import sys
import tempfile
import traceback
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import HealthCheck, Phase, settings

from polyalign import cli
from polyalign.data import image_prints
from polyalign.utils.errors import UserError

SECONDS = 30
"""What no case may take; most take some hundredths of a second, and on a busy machine more."""

_LONGER = int(os.environ.get("POLYALIGN_FUZZ", "1"))


def cases(number: int) -> Callable[[Any], Any]:
    """Run a test on this number of generated cases, the same ones each time.

    ``POLYALIGN_FUZZ=20 pytest tests/fuzz`` runs twenty times as many, and others each time.
    """

    def wrap(test: Any) -> Any:
        run = settings(
            max_examples=number * _LONGER,
            derandomize=_LONGER == 1,
            deadline=None,  # see SECONDS
            database=None,
            phases=(Phase.explicit, Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )(test)
        run.cases = number
        return run

    return wrap


@dataclass
class Outcome:
    """What a command did."""

    arguments: tuple[str, ...]
    code: int
    out: str
    err: str
    changed: list[str]
    events: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        told = f"exit code {self.code}\n{self.out[-3000:]}{self.err[-6000:]}"
        return f"polyalign {shlex.join(self.arguments)}\n{told}\nchanged: {self.changed}\nevents: {self.events}"


@dataclass(frozen=True)
class Sandbox:
    """A folder with all that a command may see: its working folder, its home and its cache."""

    root: Path

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    def run(self, *arguments: object, may_write: tuple[str, ...] = (), idle: bool = False) -> Outcome:
        """Run a command in ``work`` and check what holds for all.

        Args:
            arguments: those of the command line.
            may_write: files and folders below ``work`` that the command was told to write.
            idle: stop the command where training, a measurement or a download would begin.
        """
        before = _files(self.root)
        outcome = run_cli([str(argument) for argument in arguments], self, idle=idle)
        after = _files(self.root)
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        allowed = ("cache", *(os.path.normpath(f"work/{name}") for name in may_write))
        outcome.changed = [name for name in changed if not any(_within(name, place) for place in allowed)]
        check(outcome)
        return outcome


def check(outcome: Outcome) -> None:
    """Hold the outcome of a command to the rules."""
    answers_no = (
        outcome.arguments[:1] == ("leakage",) or outcome.arguments[:2] == ("data", "check")
    ) and outcome.code == 1
    assert outcome.code in {0, 2, 130} or answers_no, f"exit code\n{outcome}"
    assert "Traceback" not in outcome.out + outcome.err, f"traceback\n{outcome}"
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    only_help = outcome.code == 2 and outcome.out and not outcome.err  # of a group of commands without a command
    assert len(errors) == (outcome.code == 2 and not only_help), f"error lines\n{outcome}"
    obeyed = {char for char in outcome.out + outcome.err if unicodedata.category(char) == "Cc"} - {"\n"}
    assert not obeyed, f"control characters {sorted(obeyed)}\n{outcome}"
    assert not outcome.changed, f"files changed\n{outcome}"
    assert not outcome.events, f"forbidden\n{outcome}"


def run_cli(arguments: list[str], sandbox: Sandbox, *, idle: bool = False) -> Outcome:
    """Run the command line as ``polyalign.cli.main`` does, with its own streams, folders and environment."""
    # As of a process: UTF-8, and on standard error whatever cannot be encoded is escaped.
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", newline="")
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace", newline="", write_through=True)
    folders = {"HOME": str(sandbox.root / "home"), "POLYALIGN_CACHE": str(sandbox.cache)}
    here = Path.cwd()
    image_prints._KNOWN.clear()
    _events.clear()
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, folders))
        stack.enter_context(mock.patch.multiple(sys, argv=["polyalign", *arguments], stdout=out, stderr=err))
        stack.enter_context(_warnings_as_usual(err))
        stack.enter_context(_level(logging.getLogger("polyalign")))
        for name in _WORK if idle else ():
            stack.enter_context(mock.patch(name, side_effect=UserError("this is where work would begin")))
        stack.callback(os.chdir, here)
        os.chdir(sandbox.work)
        stack.enter_context(_time_limit())
        try:
            with _watched():
                cli.main()
            code = 0
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else int(left.code is not None)
        except (KeyboardInterrupt, TooLongError):
            raise
        except BaseException:  # noqa: BLE001 - what the program would end with
            code = 1
            traceback.print_exc(file=err)
    out.flush()
    shown = [stream.buffer.getvalue().decode() for stream in (out, err)]
    return Outcome(tuple(arguments), code, *shown, changed=[], events=sorted(set(_events)))


# Where a command that was given good settings begins to compute for minutes, or to download.
_WORK = (
    "polyalign.training.train.train",
    "polyalign.experiments.workers.Pool.run",
    "polyalign.experiments.micro_batch.peak_of",
    "polyalign.training.pretrain.load",
    "polyalign.models.vocabulary.trim_tower",
    "polyalign.data.download.fetch",
    "polyalign.models.parameter_count.build_aligner",
    "polyalign.experiments.figures.draw",
)


class TooLongError(BaseException):
    """A case took too long; not an ``Exception``, so that nothing handles it."""


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TooLongError(f"the command did not end within {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    faulthandler.dump_traceback_later(
        6 * SECONDS, exit=True, file=sys.__stderr__
    )  # where no Python code runs, no signal is handled
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def _warnings_as_usual(err: io.TextIOWrapper) -> Iterator[None]:
    """Show warnings as Python does for a program; pytest would raise them."""
    with warnings.catch_warnings():
        warnings.resetwarnings()
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)

        def show(message: Any, category: Any, filename: str, line: int, *_: object) -> None:
            err.write(warnings.formatwarning(message, category, filename, line))

        with mock.patch.object(warnings, "showwarning", show):
            yield


@contextlib.contextmanager
def _level(logger: logging.Logger) -> Iterator[None]:
    before = logger.level, list(logger.handlers)
    yield
    logger.level, logger.handlers = before


# Events that Python reports (PEP 578): the network, code in a pickle, and other programs.
_FORBIDDEN = {
    "socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname",
    "pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen",
}  # fmt: skip
_events: list[str] = []
_watching = False


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    own = event == "subprocess.Popen" and list(arguments[1][:3]) == [sys.executable, "-m", "polyalign"]  # of `compare`
    if _watching and event in _FORBIDDEN and not own:
        _events.append(f"{event} {arguments!r}"[:300])


sys.addaudithook(_note)


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    global _watching  # noqa: PLW0603 - an audit hook cannot be removed
    _watching = True
    try:
        yield
    finally:
        _watching = False


def _files(root: Path) -> dict[str, tuple[int, ...]]:
    """Return what tells whether a file is the same, by its path below ``root``."""
    found = {}
    for folder, folders, names in os.walk(root):
        for name in (*folders, *names):
            path = os.path.join(folder, name)  # noqa: PTH118 - for speed
            facts = os.lstat(path)
            is_folder = name in folders and not os.path.islink(path)  # noqa: PTH114
            # A folder's own time changes with its contents, which are compared themselves.
            found[os.path.relpath(path, root)] = (0,) if is_folder else (facts.st_size, facts.st_mtime_ns, facts.st_ino)
    return found


def _within(name: str, place: str) -> bool:
    return name == place or name.startswith(f"{place}/") or place.startswith(f"{name}/")


@contextlib.contextmanager
def sandbox(template: Path | None = None) -> Iterator[Sandbox]:
    """Make a sandbox whose working folder starts as a copy of ``template``."""
    root = Path(tempfile.mkdtemp(prefix="polyalign-fuzz-"))
    try:
        for name in ("home", "cache"):
            (root / name).mkdir()
        if template is None:
            (root / "work").mkdir()
        else:
            shutil.copytree(template, root / "work", symlinks=True)
        yield Sandbox(root)
    finally:
        shutil.rmtree(root)
