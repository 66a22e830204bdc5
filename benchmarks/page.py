"""``benchmarks/README.md``, written from ``results.json`` alone."""

from __future__ import annotations

from typing import Any

from benchmarks.targets import EPOCHS, seconds_with_filling, share_of_memory, targets

_HEAD = """# Benchmarks

Written by `python -m benchmarks` (or `make bench`) from `results.json`; nothing here is typed by hand. open_clip comes
with `pip install 'polyalign[peers]'`. Every measurement is a process of its own, offline, on all cores, float32 on a
processor and bf16 on a GPU. A ratio above 1 is in polyalign's favour.
"""

_TRAINING = """## A training step

polyalign and open_clip have the same two towers with the same random weights, the same projection to 256 and batch.
open_clip runs its own `train_one_epoch`, loss and AdamW on image tensors and token ids that lie ready in memory: no
loading and no decoding of its own is counted. Its captions are padded to the longest there are (32 tokens), which is
its best case (its default is 77). polyalign runs `train.Loop` on its cache, dropout where a tower trains.
Seconds a pair are medians over steps, then over the turns; in each turn every case runs once. "With filling" counts
all that is computed or decoded before the first step as well, over {epochs} epochs. "Collating" is the share of a step
that goes into putting its batch together. Memory is the peak of the process above what it holds when everything is
imported; in brackets the peak while the cache is filled, where that is more.
"""


def page(results: dict[str, Any]) -> str:
    """Write the page."""
    parts = [_HEAD, _targets(results)] if targets(results) else [_HEAD]
    if sizes := results.get("training"):
        parts += [_TRAINING.format(epochs=EPOCHS), *(training(one) for one in sizes.values())]
    sections = (
        *(("recall", recall), ("inference", inference), ("evaluation", evaluation)),
        *(("search", search), ("startup", startup)),
    )
    for key, section in sections:
        if key in results:
            parts.append(section(results[key]))
    return "\n".join(parts)


def _targets(results: dict[str, Any]) -> str:
    rows = [[one.what, one.wanted, one.measured, "met" if one.is_met else "**not met**"] for one in targets(results)]
    return "\n".join(["## Targets\n", _table(["", "target", "measured", ""], rows), ""])


def training(found: dict[str, Any]) -> str:
    """Show a step of every case beside open_clip's, at one size of the towers."""
    base = next((row for row in found["rows"] if row["case"] == "open_clip"), None)
    full = next((row for row in found["rows"] if row["case"] == "full"), None)
    rows = []
    for row in found["rows"]:
        seconds = row["seconds_per_pair"]
        memory = _mib(row["memory"])
        if row["fill_memory"] > row["memory"]:
            memory += f" ({_mib(row['fill_memory'])})"
        rows.append(
            [
                row["case"] if row["is_peer"] else f"`{row['case']}`",
                f"{row['trainable']:,}",
                f"{1 / seconds:,.1f}",
                _ratio(base and base["seconds_per_pair"] / seconds),
                "" if row["is_peer"] else _ratio(base and base["seconds_per_pair"] / seconds_with_filling(row)),
                "" if row["is_peer"] else f"{100 * row['collating']:.1f} %",
                memory,
                _ratio(full and share_of_memory(row, full)),
            ]
        )
    head = ["", "trains", "pairs a second", "times open_clip", "with filling", "collating", "MiB", "of `full`"]
    turns = "1 turn" if found["repeats"] == 1 else f"{found['repeats']} turns"
    what = f"batch {found['batch']}, {turns} of {found['steps']} steps or more"
    return "\n".join([f"### {found['towers']}\n", f"{_machine(found)}; {what}.\n", _table(head, rows), ""])


def recall(found: dict[str, Any]) -> str:
    """Show the time to a recall with and without the cache."""
    by = {(row["strategy"]["name"], row["cached"]): row for row in found["rows"]}
    rows = []
    for name in dict.fromkeys(name for name, _ in by):
        with_, without = by[name, True], by.get((name, False))
        layers = with_["strategy"].get("layers")
        rows.append(
            [
                f"`{name}{'' if layers is None else f', layers {layers}'}`",
                f"{with_['seconds']:.1f}",
                f"{with_['fill_seconds']:.1f}",
                "the same" if without is None else f"{without['seconds']:.1f}",
                _ratio(without and without["seconds"] / with_["seconds"]),
            ]
        )
    head = ["", "seconds with the cache", "of them filling", "without", "times"]
    text = (
        f"Seconds until the mean recall on dev is {100 * found['target']:.1f} %, which every one reaches, from an "
        f"empty cache: recipe `starter`, Swahili, {found['images']:,} pairs, batch {found['batch']}, looks at dev all "
        "along. Without the cache decoded pixels are still kept. `full` has nothing frozen below what trains."
    )
    return "\n".join(["## Time to a recall\n", text + "\n", f"{_machine(found)}.\n", _table(head, rows), ""])


def evaluation(found: dict[str, Any]) -> str:
    """Show time and memory of scoring."""
    rows = []
    for row in found["rows"]:
        gallery = f"{row['captions']:,} × {row['images']:,}"
        if "seconds" in row:
            queries = row["captions"] + row["images"]
            rows.append([gallery, row["method"], f"{row['seconds']:.1f}", f"{queries / row['seconds']:,.0f}",
                         _mib(row["memory"])])  # fmt: skip
        else:
            rows.append([gallery, row["method"], "", "", f"needs {_mib(row['needed'])}, more than was free"])
    head = ["captions × images", "", "seconds", "queries a second", "MiB beyond the embeddings"]
    text = (
        f"Ranks in both directions of {found['dim']}-wide embeddings. polyalign sums in float64 on a grid, so that no "
        "rank depends on the machine, and holds one block of scores at a time."
    )
    return "\n".join(["## Scoring a gallery\n", text + "\n", f"{_machine(found)}.\n", _table(head, rows), ""])


def search(found: dict[str, Any]) -> str:
    """Show the time of a query."""
    rows = []
    for row in found["rows"]:
        size = [f"{row['photos']:,}", str(row["dim"])]
        if "seconds" in row:
            times = [f"{1000 * row[key]:.2f}" for key in ("seconds", "plain_seconds", "open_seconds")]
            rows.append([*size, *times, f"{100 * row['agree']:.1f} %"])
        else:
            rows.append([*size, f"needs {_mib(row['needed'])} MiB, more than was free", "", "", ""])
    head = ["photos", "dimensions", "ms a query", "numpy", "ms to open", "same photos"]
    text = (
        f"The best {found['top']} photos for a vector, on one core; the shortest of several queries. polyalign reads "
        "float16 vectors from a file and looks up paths and columns; numpy has float32 vectors in memory and gives "
        'numbers of rows. "Same photos" are those that both find. Opening checks all vectors; the operating system had '
        "the file in memory."
    )
    return "\n".join(["## Searching an index\n", text + "\n", f"{_machine(found)}.\n", _table(head, rows), ""])


def inference(found: dict[str, Any]) -> str:
    """Show what bf16 gains and costs where no gradients are needed."""
    rows = [
        [
            f"{row['towers']}: {row['tower']}",
            f"{1000 * row['fp32']:.2f}",
            f"{1000 * row['bf16']:.2f}",
            _ratio(row["fp32"] / row["bf16"]),
            f"{row['least_cosine']:.5f}",
            "bf16" if row["auto_takes_bf16"] else "fp32",
        ]
        for row in found["rows"]
    ]
    head = ["", "ms an item, fp32", "bf16", "times", "least cosine of features", "`auto` takes"]
    text = "Whole towers without gradients, as `cache.precision` has frozen layers and evaluation computed."
    return "\n".join(["## Inference in bf16\n", text + "\n", f"{_machine(found)}.\n", _table(head, rows), ""])


def startup(found: dict[str, Any]) -> str:
    """Show the time of ``polyalign --help``."""
    text = f"`polyalign --help`: {found['help_seconds']:.2f} s, of which Python {found['python_seconds']:.2f} s."
    return "\n".join(["## Starting\n", f"{text} {_machine(found)}.\n"])


def _machine(found: dict[str, Any]) -> str:
    facts = found["machine"]
    versions = facts["versions"]
    where = facts["gpu"] or f"{facts['processor']}, {facts['cores']} cores, {facts['memory_gib']} GiB"
    return f"{where}, load {facts['load_before']} before; torch {versions['torch']}"


def _ratio(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 20 else f"{value:.1f}" if value >= 2 else f"{value:.2f}"


def _mib(count: float) -> str:
    return f"{count / 2**20:,.0f}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
