"""The command line in processes of their own that start at once: forked from a server that has imported the package.

For tests that stop or kill a process. The import of PyTorch and transformers, some seconds, is paid once a session.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    ["polyalign.api", "polyalign.training.pretrain", "polyalign.serving.search", "tests.stopped"]
)


def start(*arguments: object, said: Path, stop: tuple[str, int] | None = None) -> BaseProcess:
    """Start ``polyalign ARGUMENTS`` in this working folder and environment, in a process group of its own.

    Args:
        arguments: those of the command line.
        said: a file for standard output and error.
        stop: the name of a signal that the process sends to itself, and the step of training; see ``tests.stopped``.
    """
    process = _SERVER.Process(
        target=_run, args=([str(argument) for argument in arguments], Path.cwd(), dict(os.environ), said, stop)
    )
    process.start()
    return process


def killed_at(write: int, function: Callable[..., object], *arguments: object) -> BaseProcess:
    """Start a function of the package; the process is killed before its n-th call that can write to a disk."""
    process = _SERVER.Process(target=_until, args=(write, dict(os.environ), function, arguments))
    process.start()
    return process


_WRITES = {"execute", "executemany", "executescript", "truncate", "write", "flush", "fsync", "replace", "close"}


def _until(
    write: int, environment: Mapping[str, str], function: Callable[..., object], arguments: tuple[object, ...]
) -> None:
    left = itertools.count(write, -1)

    def watch(_: object, event: str, called: object) -> None:
        if event == "c_call" and getattr(called, "__name__", "") in _WRITES and next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    os.environ.update(environment)
    sys.setprofile(watch)
    function(*arguments)


def _run(
    arguments: list[str], folder: Path, environment: Mapping[str, str], said: Path, stop: tuple[str, int] | None
) -> None:
    from polyalign import cli
    from tests import stopped

    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    with said.open("wb", buffering=0) as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.stdout, sys.stderr = (open(stream, "w", buffering=1, encoding="utf-8") for stream in (1, 2))  # noqa: PTH123, SIM115
    sys.argv = ["polyalign", *arguments]
    if stop is None:
        cli.main()
    else:
        stopped.main(*stop, arguments)
