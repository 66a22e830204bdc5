"""Progress of long work: functions report it, and a context manager shows it as bars on the terminal."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from polyalign.utils.text import clean

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

_WIDE = 110  # columns that a terminal needs for the whole display

Display = Callable[[str, int, int, str], object]
"""Shows progress; it is called with the arguments of ``progress``."""

_displays: list[Display] = []


def progress(task: str, done: int, total: int, note: str = "") -> None:
    """Report that ``done`` of ``total`` items of a task are done, with a short ``note`` such as the current loss.

    It is shown only inside ``progress_bars`` or ``shown_by``.
    """
    if _displays:
        _displays[-1](clean(task), done, total, clean(note))


@contextmanager
def shown_by(display: Display) -> Iterator[None]:
    """Show all progress reported inside the context with ``display``."""
    _displays.append(display)
    try:
        yield
    finally:
        _displays.pop()


@contextmanager
def progress_bars(*, enabled: bool = True) -> Iterator[None]:
    """Show progress reported inside the context on standard error.

    On a terminal each task has a bar with the remaining time; otherwise, as in a log, a line is printed at each tenth.
    A nested context does nothing. ``enabled=False`` shows nothing, for all but the main of several processes.
    """
    if not enabled or _displays:
        yield
        return
    if not sys.stderr.isatty():
        with shown_by(_Lines()):
            yield
        return
    from rich import progress as rich
    from rich.console import Console
    from rich.markup import escape

    with _bars(Console(stderr=True)) as bars:
        tasks: dict[str, rich.TaskID] = {}

        def show(task: str, done: int, total: int, note: str) -> None:
            if task not in tasks:
                tasks[task] = bars.add_task(escape(task), total=total, note="")
            bars.update(tasks[task], completed=done, total=total, note=escape(note))

        with shown_by(show):
            yield


def _bars(console: Console) -> Progress:
    """Return an empty display of bars; on a narrow terminal, long descriptions are cut, never numbers."""
    from rich import progress as rich
    from rich.table import Column

    narrow = console.width < _WIDE
    columns = (
        rich.TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        rich.BarColumn(bar_width=10 if narrow else 40),
        rich.MofNCompleteColumn(table_column=Column(no_wrap=True)),
        *(() if narrow else (rich.TimeElapsedColumn(),)),
        rich.TimeRemainingColumn(),
        rich.TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True)),
    )
    # The runs of a comparison take minutes: estimate the remaining time from the speed of a day, not of 30 seconds.
    return rich.Progress(*columns, console=console, speed_estimate_period=86_400, expand=narrow)


class _Lines:
    """Print a line at each tenth, at most one per second, with an estimate of the remaining time; for logs."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[int, float]] = {}
        self._first: dict[str, tuple[float, int]] = {}

    def __call__(self, task: str, done: int, total: int, note: str) -> None:
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
