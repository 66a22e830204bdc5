"""Formats of numbers, and tables for the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table

from polyalign.data.pairs import captions_by
from polyalign.evaluation import ranking
from polyalign.evaluation.results import Direction, Retrieval, Run, Score
from polyalign.utils.plain_table import PlainTable
from polyalign.utils.text import binary_size

RECALL_NAMES = [f"{way} R@{k}" for way in ("t→i", "i→t") for k in ranking.RECALL_AT] + ["mean recall"]


def table(title: str, first: str, numbers: Iterable[str], caption: str = "") -> PlainTable:
    """Return an empty table with a column of names and columns of numbers."""
    made = PlainTable(title=title, caption=caption, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    made.add_column(first, overflow="fold", min_width=12)
    for name in numbers:
        made.add_column(name, justify="right", no_wrap=True)
    return made


def percent(score: Score | float | None) -> str:
    """Show a fraction as percent, with its interval if it has one: ``31.2 [28.4, 34.0]``; nothing for None."""
    if score is None:
        return ""
    if isinstance(score, Score):
        return f"{100 * score.value:.1f} [{100 * score.low:.1f}, {100 * score.high:.1f}]"
    return f"{100 * score:.1f}"


def plus_minus(score: Score) -> str:
    """Show a fraction as percent, with half the width of its interval: ``31.2 ±2.8``."""
    return f"{100 * score.value:.1f} ±{50 * (score.high - score.low):.1f}"


def counted(number: int, what: str) -> str:
    """Show ``1 thread``, ``2 threads``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Show seconds as ``45 s``, ``12 min 05 s`` or ``3 h 20 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def share(trainable: int, total: int) -> str:
    """Show a parameter count with its share of all: ``211,204 (6.93 %)``."""
    return f"{trainable:,} ({100 * trainable / total:.2f} %)"


def gallery_line(*results: Retrieval) -> str:
    """Describe in one line the gallery, the rule for ties, and the number of ties in all results."""
    result = results[0]
    ties = sum(direction.ties for one in results for direction in (one.text_to_image, one.image_to_text))
    counts = result.captions_per_image()
    each = f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
    return (
        f"{result.gallery} ({result.lang}, {captions_by(result.origin)}): {searched(result)} images, "
        f"{result.captions:,} captions, {each} an image; ties rank ahead ({ties:,} tied queries)"
    )


def searched(result: Retrieval) -> str:
    """Show the number of images searched; folds, which are searched separately, as ``5×1,000``."""
    sizes = result.fold_sizes()
    low, high = min(sizes), max(sizes)
    each = f"{low:,}" if low == high else f"{low:,}-{high:,}"
    return each if len(sizes) == 1 else f"{len(sizes)}×{each}"


def retrieval_table(
    trained: Retrieval,
    untrained: Retrieval | None = None,
    *,
    label: str = "trained",
    before: str = "untrained",
) -> PlainTable:
    """Compare a result with chance and, if given, that before training: both directions, with intervals."""
    title = f"Retrieval, {trained.gallery}, {trained.lang}: percent found, with 95 % intervals"
    columns = [*(f"R@{k}" for k in ranking.RECALL_AT), "median\nrank"]
    shown = table(title, "", columns, gallery_line(trained))
    chance = trained.chance()
    results = [(label, trained)] if untrained is None else [(before, untrained), (label, trained)]
    for way, values in (("text_to_image", chance[:3]), ("image_to_text", chance[3:])):
        shown.add_row(way.replace("_", " "), style="bold")
        shown.add_row("  chance", *map(percent, values))
        for row, result in results:
            found: Direction = getattr(result, way)
            shown.add_row(f"  {row}", *map(percent, found.recall.values()), f"{found.median_rank:,g}")
    shown.add_section()
    shown.add_row("mean recall", style="bold")
    shown.add_row("  chance", percent(float(chance.mean())))
    for row, result in results:
        shown.add_row(f"  {row}", percent(result.mean_recall))
    return shown


def run_facts(run: Run) -> Table:
    """Show what a run trained and its cost."""
    shown = PlainTable.grid(padding=(0, 2))
    shown.add_column(style="bold")
    shown.add_column()
    langs = f"language{'s' * (len(run.langs) > 1)}: {', '.join(run.langs)}"
    early = ", stopped early" if run.stopped_early else ""
    parallel = f"{run.parallel_rows:,} parallel sentences in {', '.join(run.parallel_langs)}"
    facts = {
        "strategy": f"{run.strategy}, towers: {run.towers}, {langs}, seed {run.seed}",
        "trainable": f"{share(run.trainable, run.total)} of {run.total:,} parameters",
        "pairs": f"{run.pairs:,} on {run.images:,} images ({captions_by(run.caption_origin)}); {run.pairs_seen:,} seen"
        f" in {counted(run.steps, 'step')}, {run.epochs:g} epoch{'' if run.epochs == 1 else 's'}{early}",
        "time": f"{duration(run.seconds)} on {run.device}, {counted(run.threads, 'thread')}; "
        f"{duration(run.cpu_seconds)} of processor time",
        "peak memory": binary_size(run.peak_memory_bytes),
        "checkpoint": binary_size(run.checkpoint_bytes),
    }
    if run.parallel_rows:
        facts["parallel text"] = parallel
    if not run.pairs:
        facts["pairs"] = f"none; {run.pairs_seen:,} sentences seen in {counted(run.steps, 'step')}{early}"
    for name, value in facts.items():
        shown.add_row(name, value)
    return shown


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of Markdown cells: the first column is left-aligned, the others are right-aligned."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
