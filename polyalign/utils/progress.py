"""Progress of long work: what is told, and a display for the terminal."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol


class Progress(Protocol):
    """Called now and then with what is being done, how many are done, how many there are, and a word on how it goes."""

    def __call__(self, task: str, done: int, total: int, note: str = "") -> None:
        """Take the news."""


@contextmanager
def display() -> Iterator[Progress]:
    """Show each task's progress and time left on standard error: a bar; where that is no terminal, a line a tenth."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    note_column = TextColumn("{task.fields[note]}")
    # A run of a comparison takes minutes: the time left is told from a day's speed, not from the last half-minute's.
    with Bars(*columns, note_column, console=Console(stderr=True), speed_estimate_period=86_400) as bars:
        tasks: dict[str, int] = {}

        def report(task: str, done: int, total: int, note: str = "") -> None:
            if task not in tasks:
                tasks[task] = bars.add_task(task, total=total, note=note)
            bars.update(tasks[task], completed=done, total=total, note=note)  # type: ignore[arg-type]

        yield report


class _Lines:
    """A line at each tenth, but not two in a second, with the time that is left if the rest goes as fast; for logs."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[int, float]] = {}
        self._first: dict[str, tuple[float, int]] = {}

    def __call__(self, task: str, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        began, before = self._first.setdefault(task, (now, done))
        tenth = 10 * done // max(total, 1)
        last, when = self._told.get(task, (-1, -math.inf))
        if tenth == last or (now - when < 1 and done < total):
            return
        self._told[task] = (tenth, now)
        seconds = (now - began) / max(1, done - before) * (total - done)
        left = f", about {timedelta(seconds=round(seconds))} left" if done > before and seconds >= 1 else ""
        print(f"{task}: {done:,} of {total:,}{left} {note}".rstrip(), file=sys.stderr, flush=True)
