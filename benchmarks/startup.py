"""How long ``polyalign --help`` takes."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks import machine

_REPEATS = 7


def run() -> dict[str, Any]:
    """Take the median of several runs, and of Python with nothing to do."""
    facts = machine.facts()
    return {
        "help_seconds": _median([sys.executable, "-m", "polyalign", "--help"]),
        "python_seconds": _median([sys.executable, "-c", ""]),
        "machine": facts,
    }


def _median(command: list[str]) -> float:
    def once() -> float:
        began = time.perf_counter()
        subprocess.run(command, cwd=machine.REPO, stdout=subprocess.DEVNULL, check=True)
        return time.perf_counter() - began

    once()
    return statistics.median(once() for _ in range(_REPEATS))
