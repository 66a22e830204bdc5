from __future__ import annotations

import io
import itertools

import pytest
from rich.console import Console

from polyalign.utils import progress as module
from polyalign.utils.progress import progress, progress_bars


@pytest.fixture
def told(monkeypatch, capsys):
    """Give a function that reports 1 to ``total``, ``pause`` seconds apart, and returns the lines that were printed."""

    def run(total: int, pause: float) -> list[str]:
        clock = itertools.count()
        monkeypatch.setattr(module.time, "monotonic", lambda: pause * next(clock))
        with progress_bars():
            for done in range(1, total + 1):
                progress("training", done, total)
        return capsys.readouterr().err.splitlines()

    return run


def test_without_a_terminal_there_is_a_line_a_tenth_with_the_time_left(told):
    lines = told(1000, 2)
    assert len(lines) == 11
    assert lines[1] == "training: 100 of 1,000, about 0:30:00 left"
    assert lines[-1] == "training: 1,000 of 1,000"


def test_what_goes_fast_is_told_at_its_beginning_and_its_end(told):
    assert told(20, 0.01) == ["training: 1 of 20", "training: 20 of 20"]


def test_a_task_of_one_step_is_one_line(told):
    assert told(1, 5) == ["training: 1 of 1"]


@pytest.mark.parametrize("width", [60, 80, 110, 120])
def test_bars_show_every_number_at_the_width_of_the_terminal(width):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    bars = module._bars(console)
    bars.add_task("computing features of the text tower", total=12_000, completed=4_321, note="loss 3.456, dev 23.4 %")
    console.print(bars.get_renderable())
    [line] = [line for line in console.file.getvalue().splitlines() if line.strip()]
    assert len(line) <= width
    assert line.startswith("comp")
    for part in ("4321/12000", "loss 3.456, dev 23.4 %", "-:--:--"):
        assert part in line
