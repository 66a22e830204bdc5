"""Results as tables: for the terminal (100 columns) and as Markdown. Percent with one decimal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from polyalign.evaluation import ranking
from polyalign.evaluation.results import Direction, Retention, Retrieval, Run, Score, TextByRetrieval, ZeroShot

_DIRECTIONS = ("text to image", "image to text")
_RECALL_NAMES = (*(f"{way}\nR@{k}" for way in ("t→i", "i→t") for k in ranking.RECALL_AT), "mean\nrecall")


def percent(score: Score | float) -> str:
    """Show a fraction as percent, with its interval if it has one: ``31.2 [28.4, 34.0]``."""
    if isinstance(score, Score):
        return f"{100 * score.value:.1f} [{100 * score.low:.1f}, {100 * score.high:.1f}]"
    return f"{100 * score:.1f}"


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


def size(count: float) -> str:
    """Show bytes in the binary unit that fits: ``9.4 MiB``."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def share(trainable: int, total: int) -> str:
    """Show a parameter count with its share of all: ``211,204 (6.93 %)``."""
    return f"{trainable:,} ({100 * trainable / total:.2f} %)"


def gallery_line(*results: Retrieval) -> str:
    """Describe in one line what was searched and by which rules, with ties counted over all the results."""
    result = results[0]
    ties = sum(direction.ties for one in results for direction in (one.text_to_image, one.image_to_text))
    counts = result.captions_per_image()
    each = f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
    return (
        f"{result.gallery} ({result.lang}, {result.origin} captions): {searched(result)} images, "
        f"{result.captions:,} captions, {each} an image; ties rank ahead ({ties:,} tied queries)"
    )


def searched(result: Retrieval) -> str:
    """Show the number of images searched, with folds as ``5×1,000``: each was searched alone."""
    sizes = result.fold_sizes()
    low, high = min(sizes), max(sizes)
    each = f"{low:,}" if low == high else f"{low:,}-{high:,}"
    return each if len(sizes) == 1 else f"{len(sizes)}×{each}"


def retrieval_table(trained: Retrieval, untrained: Retrieval | None = None, *, label: str = "trained") -> Table:
    """Compare a result with chance and, if given, the untrained projection: both directions, with intervals."""
    table = Table(
        title=f"Retrieval, {trained.gallery}, {trained.lang}: percent found, with 95 % intervals",
        caption=gallery_line(trained),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("", no_wrap=True)
    for name in (*(f"R@{k}" for k in ranking.RECALL_AT), "median\nrank"):
        table.add_column(name, justify="right", no_wrap=True)
    chance = trained.chance()
    results = [(label, trained)] if untrained is None else [("untrained projection", untrained), (label, trained)]
    for name, values, pick in zip(_DIRECTIONS, (chance[:3], chance[3:]), (_text_to_image, _image_to_text), strict=True):
        table.add_row(f"[bold]{name}[/]")
        table.add_row("  chance", *map(percent, values), "")
        for row, result in results:
            found = pick(result)
            table.add_row(f"  {row}", *map(percent, found.recall.values()), f"{found.median_rank:,g}")
    table.add_section()
    table.add_row("[bold]mean recall[/]")
    table.add_row("  chance", percent(float(chance.mean())))
    for row, result in results:
        table.add_row(f"  {row}", percent(result.mean_recall))
    return table


def retrieval_overview(results: Sequence[Retrieval]) -> Table:
    """List several galleries or languages, one a row; ``±`` is half of the 95 % interval."""
    table = Table(
        title="Retrieval: percent found, ± half of the 95 % interval",
        caption="\n".join(dict.fromkeys(map(gallery_line, results))),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("gallery", overflow="fold")
    table.add_column("images", justify="right", no_wrap=True)
    for name in _RECALL_NAMES:
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        scores = (*result.text_to_image.recall.values(), *result.image_to_text.recall.values(), result.mean_recall)
        cells = (f"{100 * s.value:.1f} ±{50 * (s.high - s.low):.1f}" for s in scores)
        table.add_row(f"{result.lang} {result.gallery}", searched(result), *cells)
    return table


def zeroshot_table(results: Sequence[ZeroShot]) -> Table:
    """List zero-shot accuracies. Languages with different numbers of classes are not comparable."""
    table = Table(
        title="Zero-shot classification: percent right, with 95 % intervals",
        caption="\n".join(dict.fromkeys(_prompted(r) for r in results)),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("dataset", overflow="fold")
    for name in ("images", "classes", "chance", "top-1", "top-5", "mean per class"):
        table.add_column(name, justify="right", no_wrap=True)
    for r in results:
        counts = (f"{r.images:,}", f"{r.classes:,}", percent(1 / r.classes))
        table.add_row(f"{r.lang} {r.dataset}", *counts, *map(percent, (r.top1, r.top5, r.mean_per_class)))
    return table


def _prompted(result: ZeroShot) -> str:
    shown = " | ".join(result.templates[:3]) + f" | ... ({len(result.templates)})" * (len(result.templates) > 3)
    return f"{result.lang} prompts: {shown}; names: {result.named_by}"


def text_by_retrieval_table(results: Sequence[TextByRetrieval]) -> Table:
    """List the chrF of retrieved captions, between that of a random caption and that of the image's own."""
    table = Table(
        title="Text by retrieval: chrF of the retrieved caption against the image's others",
        caption="; ".join(dict.fromkeys(r.signature for r in results)),
        box=box.SIMPLE_HEAD,
    )
    table.add_column("gallery", overflow="fold")
    for name in ("images", "captions", "random caption", "retrieved", "own caption"):
        table.add_column(name, justify="right", no_wrap=True)
    for r in results:
        scores = (f"{score:.1f}" for score in (r.random, r.chrf, r.own))
        table.add_row(f"{r.lang} {r.gallery}", f"{r.images:,}", f"{r.captions:,}", *scores)
    return table


def retention_table(result: Retention) -> Table:
    """Show what the towers could do before alignment and still can."""
    kept = "" if result.kept is None else f": {percent(result.kept)} percent"
    table = Table(title=f"Retention{kept}", box=box.SIMPLE_HEAD)
    table.add_column("")
    for name in ("before", "after"):
        table.add_column(name, justify="right")
    for what, changes in (("sentence retrieval", result.sentences), ("probe", result.probe)):
        for key, change in changes.items():
            table.add_row(f"{what}, {key}", percent(change.before), percent(change.after))
    for lang, change in result.perplexity.items():
        table.add_row(f"pseudo-perplexity, {lang}", f"{change.before:.1f}", f"{change.after:.1f}")
    for tower, layers in result.cka.items():
        table.add_row(f"CKA of the {tower} tower's layers, lowest first", "", "  ".join(f"{v:.2f}" for v in layers))
    for tower, distance in result.moved.items():
        table.add_row(f"distance moved, {tower} output", "", f"{distance:.3f}")
    return table


def run_facts(run: Run) -> Table:
    """List what a run trained and what it cost, one fact a line."""
    table = Table.grid(padding=(0, 2))
    early = ", stopped early" if run.stopped_early else ""
    facts = {
        "strategy": f"{run.strategy}, towers: {run.towers}, language: {run.lang}, seed {run.seed}",
        "trainable": f"{share(run.trainable, run.total)} of {run.total:,} parameters",
        "pairs": f"{run.pairs:,} on {run.images:,} images ({run.caption_origin}); {run.pairs_seen:,} seen"
        f" in {counted(run.steps, 'step')}, {run.epochs:g} epoch{'' if run.epochs == 1 else 's'}{early}",
        "time": f"{duration(run.seconds)} on {run.device}, {counted(run.threads, 'thread')}; "
        f"{duration(run.cpu_seconds)} of processor time",
        "peak memory": size(run.peak_memory_bytes),
        "checkpoint": size(run.checkpoint_bytes),
    }
    for name, value in facts.items():
        table.add_row(f"[bold]{name}[/]", value)
    return table


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table: the first column to the left, the others to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _text_to_image(result: Retrieval) -> Direction:
    return result.text_to_image


def _image_to_text(result: Retrieval) -> Direction:
    return result.image_to_text
