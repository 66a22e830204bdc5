"""How long each strategy takes to a given recall on the starter recipe's dev split, with the cache and without."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import machine

STRATEGIES: dict[str, dict[str, Any]] = {
    "projection": {},
    "lit": {},
    "lilt-deep": {"layers": "last:1"},
    "lilt": {},
    "full": {},
}
"""And their options."""
BATCH, EVALS, DEV_IMAGES = 64, 12, 200
SHARE = 0.9
"""The recall to reach is this share of the least of the strategies' best."""


def run(images: int, steps: int) -> dict[str, Any]:
    """Train each strategy with the cache and, where that is another thing, without; each from an empty one."""
    facts, rows = machine.facts(), list[dict[str, Any]]()
    for strategy, options in STRATEGIES.items():
        for cached in (True, False):
            if not cached and rows[-1]["cuts"] == [0, 0]:
                continue
            print(f"{strategy}, {'with' if cached else 'without'} the cache", flush=True)
            task = {"strategy": {"name": strategy, **options}, "images": images, "steps": steps, "cached": cached}
            with tempfile.TemporaryDirectory() as folder:
                rows.append({**task, **machine.measure("benchmarks.recall", task, {"POLYALIGN_CACHE": folder})})
    target = SHARE * min(max(recall for _, recall in row["dev_evaluations"]) for row in rows)
    for row in rows:
        row["seconds"] = row["fill_seconds"] + next(at for at, recall in row["dev_evaluations"] if recall >= target)
    return {"images": images, "steps": steps, "batch": BATCH, "target": target, "machine": facts, "rows": rows}


def _train(strategy: dict[str, Any], images: int, steps: int, *, cached: bool) -> dict[str, Any]:
    from polyalign.config.resolve import resolve
    from polyalign.training import train

    changes = {
        "strategy": strategy,
        "source": {"train_images": images, "dev_images": DEV_IMAGES, "test_images": 10},
        "data": {"budget": f"{images}-pairs"},
        "optim": {"batch_size": BATCH, "epochs": 1, "min_steps": steps},
        "train": {"evals": EVALS, "patience": EVALS},
        "cache": {"prefix": cached},
    }
    loop = train.set_up(resolve("starter", "sw", overrides=changes)).loop
    with tempfile.TemporaryDirectory() as folder:
        state = loop.run(Path(folder) / train.STATE, resume=False)
    return {
        "fill_seconds": loop.prepared.seconds,
        "dev_evaluations": [(look.seconds, look.dev_mean_recall) for look in state.dev_evaluations],
        "cuts": loop.aligner.cuts(),
    }


def _quiet(*_: object, **__: object) -> None:
    """Say nothing."""


if __name__ == "__main__":
    print(json.dumps(_train(**json.loads(sys.argv[1]))))
