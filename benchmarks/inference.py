"""Both towers without gradients, in float32 and in bf16, which is what ``cache.precision`` chooses between."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.material import SIZES, pairs, write_towers

_ITEMS, _REPEATS = 16, 7


def run(size: str) -> dict[str, Any]:
    """Measure the starter's towers and those of this size."""
    facts, rows = machine.facts(), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as folder:
        write_towers(Path(folder), SIZES[size])
        for name, towers in (("starter", None), (SIZES[size].describe(), folder)):
            print(f"inference: {name}", flush=True)
            task = {"towers": towers, "size": size}
            rows += [{"towers": name, **row} for row in machine.measure("benchmarks.inference", task)]
    return {"machine": facts, "rows": rows}


def _measure(towers: str | None, size: str) -> list[dict[str, Any]]:
    import torch
    import torch.nn.functional as F

    from benchmarks.steps import CASES, recipe
    from polyalign.config.resolve import resolve
    from polyalign.models.build import build_aligner
    from polyalign.utils import precision

    case = next(case for case in CASES if case.name == "projection")
    asked = resolve("starter", "sw", "projection") if towers is None else recipe(case, Path(towers), 2, 1)
    aligner = build_aligner(asked)
    table = pairs(SIZES[size], _ITEMS)
    pixels = torch.stack([aligner.vision.transform(image.open()) for image in table.images])
    tokens = aligner.text.collate(aligner.text.tokenize(list(table.captions)))
    rows = []
    chosen = precision.infers_in_bf16("auto", torch.device("cpu"))
    for tower, run_tower in (("vision", lambda: aligner.vision(pixels)), ("text", lambda: aligner.text(tokens))):
        with torch.no_grad():
            plain, features = _timed(run_tower)
            with torch.autocast("cpu", torch.bfloat16):
                half, rounded = _timed(run_tower)
        cosine = float(F.cosine_similarity(features, rounded.float()).min())
        rows.append({"tower": tower, "fp32": plain, "bf16": half, "least_cosine": cosine, "auto_takes_bf16": chosen})
    return rows


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Give the median of the seconds an item takes, after one call to warm up, and what came of it."""
    found = call()
    seconds = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) / _ITEMS, found


if __name__ == "__main__":
    print(json.dumps(_measure(**json.loads(sys.argv[1]))))
