"""What polyalign set out to reach, beside what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

EPOCHS = 10
"""Over which the filling of the cache is spread."""

_CACHED = {"lilt-deep, layers last:1": 5, "lit": 5, "projection": 50}
_WITH_FILLING = 2
_FEW_PARAMETERS = (
    "layernorm",
    "bitfit",
    "lora",
    "lilt",
    "lilt-deep",
    "lilt, recomputed",
    "lora, recomputed",
    "lilt, layers last:1",
    "lilt-deep, layers last:1",
)
_GALLERY = (100_000, 20_000)
_GIB = 2**30
_SEARCH_MS = {10_000: 0.9, 100_000: 9.5, 1_000_000: 91}


@dataclass(frozen=True)
class Target:
    """One target: of what, how much, and what was measured."""

    what: str
    wanted: str
    measured: str
    is_met: bool


def targets(results: dict[str, Any]) -> list[Target]:
    """Hold the results against the targets; those of parts that were not measured are left out."""
    found: list[Target] = []
    for one in results.get("training", {}).values():
        found += _training(one)
    for row in results.get("evaluation", {}).get("rows", []):
        if row["method"].startswith("polyalign") and (row["captions"], row["images"]) == _GALLERY:
            memory = row["memory"] / _GIB
            what = "scoring 100,000 captions by 20,000 images, memory beyond the embeddings"
            found.append(Target(what, "at most 2 GiB", f"{memory:.2f} GiB", memory <= 2))
    for row in results.get("search", {}).get("rows", []):
        if "seconds" in row and row["photos"] in _SEARCH_MS:
            what = f"searching {row['photos']:,} photos, {row['dim']} dimensions, one core"
            wanted, measured = _SEARCH_MS[row["photos"]], 1000 * row["seconds"]
            found.append(Target(what, f"{wanted:g} ms", f"{measured:.2f} ms", measured <= wanted))
    if "startup" in results:
        seconds = results["startup"]["help_seconds"]
        found.append(Target("`polyalign --help`", "under 0.5 s", f"{seconds:.2f} s", seconds < 0.5))
    return found


def seconds_with_filling(row: dict[str, Any]) -> float:
    """Give what a pair costs when filling the cache is spread over the epochs."""
    return float(row["seconds_per_pair"] + row["fill_seconds_per_pair"] / EPOCHS)


def share_of_memory(row: dict[str, Any], full: dict[str, Any]) -> float:
    """Give the higher of both peaks, of training and of filling, as a share of what ``full`` trains in."""
    return float(max(row["memory"], row["fill_memory"]) / full["memory"])


def _training(found: dict[str, Any]) -> Iterator[Target]:
    rows = {row["case"]: row for row in found["rows"]}
    if "open_clip" not in rows or "full" not in rows:
        return
    peer, full = rows["open_clip"]["seconds_per_pair"], rows["full"]
    where = f"({found['size']}, {found['device']})"
    for name, times in _CACHED.items():
        if name in rows:
            what = f"`{name}` {where}, pairs a second, cache filled"
            yield _faster(what, times, peer / rows[name]["seconds_per_pair"])
            what = f"`{name}` {where}, filling included, over {EPOCHS} epochs"
            yield _faster(what, _WITH_FILLING, peer / seconds_with_filling(rows[name]))
    yield _faster(f"`full` {where}, pairs a second", 1, peer / full["seconds_per_pair"])
    for name in _FEW_PARAMETERS:
        if name in rows:
            share = share_of_memory(rows[name], full)
            what = f"`{name}` {where}, peak memory"
            yield Target(what, "at most half of `full`", f"{share:.2f} of it", share <= 0.5)


def _faster(what: str, wanted: float, measured: float) -> Target:
    return Target(what, f"at least {wanted:g} times open_clip's full step", f"{measured:.2f} times", measured >= wanted)
