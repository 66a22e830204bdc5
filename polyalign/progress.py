"""Progress of long work: what is told, and a display for the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """Called now and then with what is being done, how many are done, how many there are, and a word on how it goes."""

    def __call__(self, task: str, done: int, total: int, note: str = "") -> None:
        """Take the news."""


@contextmanager
def display() -> Iterator[Progress]:
    """Show a bar for each task on standard error; where that is no terminal, a line at each tenth of a task."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Bars(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True)) as bars:
        tasks: dict[str, int] = {}

        def report(task: str, done: int, total: int, note: str = "") -> None:
            if task not in tasks:
                tasks[task] = bars.add_task(task, total=total, note=note)
            bars.update(tasks[task], completed=done, total=total, note=note)  # type: ignore[arg-type]

        yield report


class _Lines:
    """A line at each tenth, for logs."""

    def __init__(self) -> None:
        self._told: dict[str, int] = {}

    def __call__(self, task: str, done: int, total: int, note: str = "") -> None:
        tenth = 10 * done // max(total, 1)
        if self._told.get(task) != tenth:
            self._told[task] = tenth
            print(f"{task}: {done:,} of {total:,} {note}".rstrip(), file=sys.stderr, flush=True)
