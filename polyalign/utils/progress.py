"""Progress of long work: any function reports it, and one context shows it as bars on the terminal."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol


class Display(Protocol):
    """Shows how far each task is."""

    def __call__(self, task: str, done: int, total: int, note: str = "") -> None:
        """Show that ``done`` of ``total`` items of a task are done; ``note`` is a word on how it goes."""


_displays: list[Display] = []


def progress(task: str, done: int, total: int, note: str = "") -> None:
    """Report that ``done`` of ``total`` items of a task are done; outside of ``progress_bars`` nothing is shown."""
    if _displays:
        _displays[-1](task, done, total, note)


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

    On a terminal each task has a bar with the time left; elsewhere, as in a log, a line at each tenth. Inside another
    such context nothing new is opened. ``enabled=False`` shows nothing, as in all but the main process of several.
    """
    if not enabled or _displays:
        yield
        return
    if not sys.stderr.isatty():
        with shown_by(_Lines()):
            yield
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    note_column = TextColumn("{task.fields[note]}")
    # A run of a comparison takes minutes: the time left is estimated from a day's speed, not the last half-minute's.
    with Progress(*columns, note_column, console=Console(stderr=True), speed_estimate_period=86_400) as bars:
        tasks: dict[str, int] = {}

        def show(task: str, done: int, total: int, note: str = "") -> None:
            if task not in tasks:
                tasks[task] = bars.add_task(task, total=total, note=note)
            bars.update(tasks[task], completed=done, total=total, note=note)  # type: ignore[arg-type]

        with shown_by(show):
            yield


class _Lines:
    """A line at each tenth, at most one a second, with the time left if the rest goes at the same speed; for logs."""

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
