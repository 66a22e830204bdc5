"""A training step of every strategy beside open_clip's: pairs a second and memory, in turns, medians over the turns."""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from benchmarks.material import SIZES, write_towers
from benchmarks.steps import CASES, Case

MODULE = "benchmarks.steps"


def run(size: str, batch: int, steps: int, repeats: int, only: list[str] | None = None) -> dict[str, Any]:
    """Measure the cases (all, or those named) ``repeats`` times, each time one after the other."""
    facts = machine.facts()
    cases = [case for case in CASES if only is None or case.name in only]
    with tempfile.TemporaryDirectory() as folder:
        towers, cache = Path(folder) / "towers", Path(folder) / "cache"
        write_towers(towers, SIZES[size])
        work = {"size": size, "towers": str(towers), "batch": batch}
        turns = [[_measure(case, work, steps, cache / case.name) for case in cases] for _ in range(repeats)]
    rows = [_summary(case, [turn[index] for turn in turns], batch) for index, case in enumerate(cases)]
    return {
        "size": size,
        "towers": SIZES[size].describe(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "batch": batch,
        "steps": steps,
        "repeats": repeats,
        "machine": facts,
        "rows": rows,
    }


def _measure(case: Case, work: dict[str, Any], steps: int, cache: Path) -> dict[str, Any]:
    task = {**work, "case": asdict(case), "steps": 2 + steps * case.times, "fill": False}
    print(f"{case.name}: {steps * case.times} steps", flush=True)
    if case.is_peer:
        return {"train": machine.measure(MODULE, task), "fill": None}
    env = {"POLYALIGN_CACHE": str(cache)}
    # Filled in the first turn, and found in the others.
    fill = None if cache.is_dir() else machine.measure(MODULE, {**task, "fill": True}, env)
    return {"train": machine.measure(MODULE, task, env), "fill": fill}


def _summary(case: Case, turns: list[dict[str, Any]], batch: int) -> dict[str, Any]:
    """Take medians; memory is what is held above what the imports hold."""
    medians = [statistics.median(turn["train"]["seconds"]) for turn in turns]
    first = turns[0]["train"]
    fill = turns[0]["fill"]
    collating = [turn["train"].get("collating", 0.0) for turn in turns]
    return {
        "case": case.name,
        "is_peer": case.is_peer,
        "trainable": first["trainable"],
        "total": first["total"],
        "seconds_per_pair": statistics.median(medians) / batch,
        "turns": [seconds / batch for seconds in medians],
        "collating": statistics.median(collating) / statistics.median(medians),
        "fill_seconds_per_pair": 0.0 if fill is None else fill["seconds"][0] / fill["rows"],
        "memory": statistics.median(turn["train"]["peak"] - turn["train"]["floor"] for turn in turns),
        "fill_memory": 0 if fill is None else fill["peak"] - fill["floor"],
    }
