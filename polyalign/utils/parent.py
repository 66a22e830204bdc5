"""Processes that end with their parent, also if the parent is killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

ENDS_WITH_STDIN = "POLYALIGN_ENDS_WITH_STDIN"
"""Environment variable of a process whose parent holds its standard input open for as long as it lives."""

GRACE_SECONDS = 10
"""Time that a process has to save its state after an interrupt, before it is killed."""


def end_with_parent() -> None:
    """If ``ENDS_WITH_STDIN`` is set, interrupt this process when its standard input ends."""
    if os.environ.pop(ENDS_WITH_STDIN, None) is not None:
        pipe = os.dup(0)
        with Path(os.devnull).open("rb") as nothing:
            os.dup2(nothing.fileno(), 0)  # nobody else waits for input
        threading.Thread(target=_watch, args=(pipe,), daemon=True).start()


def _watch(pipe: int) -> None:
    while os.read(pipe, 1):
        pass
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
