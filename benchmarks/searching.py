"""Searching an index: a query among vectors on disk, beside numpy on float32 vectors in memory; on one core."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import machine

PHOTOS, DIMS = (10_000, 100_000, 1_000_000), (128, 512)
TOP = 10
_ONE_CORE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_QUERIES = 25
_BLOCK = 20_000
_FACTS = {"model": "", "identity": "", "root": "/", "columns": "[]", "captions": ""}

Array = npt.NDArray[Any]


def run(photos: tuple[int, ...] = PHOTOS, dims: tuple[int, ...] = DIMS) -> dict[str, Any]:
    """Search each size; the vectors are random, so that no photo is an easy one."""
    facts, rows = machine.facts(), []
    for dim in dims:
        for count in photos:
            row: dict[str, Any] = {"photos": count, "dim": dim}
            needed = count * dim * (2 + 4) * 1.2
            print(f"{count:,} photos, {dim} dimensions", flush=True)
            if needed > machine.available_memory():
                rows.append({**row, "needed": needed})
            else:
                rows.append({**row, **machine.measure("benchmarks.searching", row, _ONE_CORE)})
    return {"top": TOP, "machine": facts, "rows": rows}


def _measure(photos: int, dim: int) -> dict[str, Any]:
    from polyalign.serving.index import Index
    from polyalign.serving.index_store import Entry, Store

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(Path(folder) / "index", {**_FACTS, "dim": str(dim)})
        for start in range(0, photos, _BLOCK):
            numbers = range(start, min(start + _BLOCK, photos))
            vectors = _unit(rng.standard_normal((len(numbers), dim), np.float32))
            entries = [Entry(0, b"%08d.jpg" % number, 1, 1, start - 1 - number) for number in numbers]
            store.append(vectors, [b"%016d" % number for number in numbers], entries)
        began = time.perf_counter()
        index = Index.open(Path(folder) / "index")
        opened = time.perf_counter() - began
        queries = _unit(rng.standard_normal((_QUERIES, dim), np.float32))
        whole = index.vectors(index.ids.tolist())
        found = [[hit.photo.id for hit in index.search(query, TOP)] for query in queries]
        wanted = [(_plain(whole, query) + 1).tolist() for query in queries]
        return {
            "seconds": _shortest(lambda query: index.search(query, TOP), queries),
            "plain_seconds": _shortest(lambda query: _plain(whole, query), queries),
            "open_seconds": opened,
            "agree": float(np.mean([len({*one} & {*other}) / TOP for one, other in zip(found, wanted, strict=True)])),
        }


def _plain(vectors: Array, query: Array) -> Array:
    """Find the best with numpy alone."""
    scores = vectors @ query
    best = np.argpartition(-scores, TOP)[:TOP]
    found: Array = best[np.argsort(-scores[best])]
    return found


def _shortest(search: Callable[[Array], object], queries: Array) -> float:
    def once(query: Array) -> float:
        began = time.perf_counter()
        search(query)
        return time.perf_counter() - began

    return min(once(query) for query in queries)


def _unit(vectors: Array) -> Array:
    found: Array = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return found


if __name__ == "__main__":
    print(json.dumps(_measure(**json.loads(sys.argv[1]))))
