"""The report: per-language tables, an index and figures, made from the JSON of the runs alone.

The same runs give the same text to the byte, so a test can prove that every committed table is what its JSON gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from polyalign.config import language as languages
from polyalign.config import recipe as recipes
from polyalign.evaluation import tables
from polyalign.evaluation.metrics import RECALL_AT
from polyalign.evaluation.results import LeftOut, Retrieval, Run, Score
from polyalign.experiments import figures, quotes
from polyalign.experiments.significance import RESAMPLES, Comparison, Method, comparisons
from polyalign.utils import storage
from polyalign.utils.errors import UserError

RUNS, LEFT_OUT = "runs", "left-out"
INDEX = "README.md"

_NAMES = [f"{way} R@{k}" for way in ("t→i", "i→t") for k in RECALL_AT] + ["mean recall"]
_COLUMNS = [f"{way}_r{k}" for way in ("text_to_image", "image_to_text") for k in RECALL_AT] + ["mean_recall"]
_RULES = (
    "Percent found, mean over seeds, with 95 % bootstrap intervals over test images and seeds. **Bold** is the best "
    "mean recall; = marks what is not significantly different from it (paired bootstrap over images and seeds, "
    f"{RESAMPLES:,} draws, Holm-corrected, 5 %)."
)
_MADE_BY = "Made by `polyalign report` from the JSON in [`runs/`](runs/); not to be edited by hand.\n"


def load(folder: Path) -> list[Comparison]:
    """Sort what is in ``folder/runs`` into comparisons, with what ``folder/left-out`` says could not be made.

    Raises:
        UserError: there are no runs, or a file cannot be read.
    """
    runs = load_runs(folder)
    return comparisons(runs, [LeftOut.load_json(path) for path in sorted((folder / LEFT_OUT).glob("*.json"))])


def load_runs(folder: Path) -> list[Run]:
    """Read every run in ``folder/runs``, in the order of the file names.

    Raises:
        UserError: there is none, or one cannot be read.
    """
    paths = sorted((folder / RUNS).glob("*.json"))
    if not paths:
        raise UserError(f"there are no results in {folder / RUNS}: make some with polyalign compare")
    runs = [Run.load_json(path) for path in paths]
    # Seeds of one setting stay together when some were trained before an option was added, and some after.
    return [run.model_copy(update={"recipe": recipes.complete(run.recipe)}) for run in runs]


def write(folder: Path) -> list[Path]:
    """Make every table and figure of ``folder`` from its runs, and list what was written.

    Other pages of the folder are somebody's own: only the figures that they quote are renewed.

    Raises:
        UserError: there are no runs, one cannot be read, or a page quotes what there is not.
    """
    found = load(folder)
    made = {folder / name: text for name, text in texts(found).items()}
    for path, text in made.items():
        storage.write_text(path, text)
    drawn = figures.draw(found, folder / "figures")
    own = sorted(set(folder.glob("*.md")) - made.keys())
    for page in own:
        quotes.renew(page, found)
    return [*made, *own, *drawn]


def texts(found: Sequence[Comparison]) -> dict[str, str]:
    """Give every text file by its name: the index, and ``<lang>.md`` and ``<lang>.csv`` for each language."""
    files = {INDEX: _index(found)}
    for lang in dict.fromkeys(comparison.lang for comparison in found):
        own = [comparison for comparison in found if comparison.lang == lang]
        files[f"{lang}.md"] = _page(lang, own)
        files[f"{lang}.csv"] = _csv(own)
    return files


def language_name(code: str) -> str:
    """Name a language in English with its code; a language that has no file here keeps its code."""
    return f"{languages.load(code).english_name} ({code})" if code in languages.names() else code


def _index(found: Sequence[Comparison]) -> str:
    header = ["language", "gallery", "recipe", "budget", "best", "mean recall", "not significantly different from it"]
    rows = []
    for comparison in found:
        best = next(method for method in comparison.methods if method.best)
        level = "; ".join(method.name for method in comparison.methods if method.level and not method.best)
        link = f"[{language_name(comparison.lang)}]({comparison.lang}.md)"
        gallery = f"{comparison.gallery.gallery}, {comparison.gallery.images:,} images"
        score = tables.percent(best.scores[-1])
        rows.append([link, gallery, comparison.recipe, comparison.budget, best.name, score, level or "none"])
    return (
        "# Which way of training is worth it, by language\n\n"
        f"{_MADE_BY}\n{tables.markdown(header, rows)}\n"
        "Mean recall is the mean of R@1, R@5 and R@10 in both directions, in percent, with its 95 % interval.\n"
    )


def _page(lang: str, found: Sequence[Comparison]) -> str:
    parts = [f"# {language_name(lang)}\n", _MADE_BY]
    for own in figures.together(found):
        first = own[0]
        given = "the same time or memory, " if first.of_compute else ""
        parts.append(f"## {first.gallery.gallery}, {given}recipe{'s' * (len(first.recipes) > 1)} {first.recipe}\n")
        parts += [_section(comparison) for comparison in own]
        names = figures.names(first)
        parts.append("\n".join(f"![{what}](figures/{name})" for what, name in names.items()) + "\n")
    return "\n".join(parts)


def _section(comparison: Comparison) -> str:
    header = [
        "strategy",
        "towers",
        "trainable",
        *_NAMES,
        "time",
        "peak memory",
        "checkpoint",
        "knowledge kept",
        "other languages",
    ]
    rows = [_row(method) for method in comparison.methods]
    blank = [""] * 5
    chance = comparison.gallery.chance()
    rows.append(["untrained projection", "", "", *map(tables.percent, _untrained(comparison)), *blank])
    rows.append(["chance", "", "", *map(tables.percent, [*chance.tolist(), float(chance.mean())]), *blank])
    parts = [f"### {comparison.budget}\n", tables.markdown(header, rows), _footer(comparison)]
    if any(len(run.test) > 1 for method in comparison.methods for run in method.runs):
        parts.append(_transfer(comparison))
    return "\n".join(parts)


def _row(method: Method) -> list[str]:
    first = method.runs[0]
    scores = [tables.percent(score) for score in method.scores]
    kept, carried = method.retention, method.carried_over
    label = method.strategy + (f" ({method.options})" if method.options else "")
    return [
        f"**{label}**" if method.best else f"{label} =" if method.level else label,
        method.towers,
        tables.share(first.trainable, first.total),
        *scores,
        tables.duration(method.mean(lambda run: run.cost_seconds)),
        tables.size(method.mean(lambda run: run.peak_memory_bytes)),
        tables.size(method.mean(lambda run: run.checkpoint_bytes)),
        "" if kept is None else tables.percent(kept),
        "" if carried is None else tables.percent(carried),
    ]


def _kept_rule(comparison: Comparison) -> str:
    said = []
    if any(method.retention is not None for method in comparison.methods):
        said.append(
            "Knowledge kept: of what the towers could do before, sentence retrieval across languages and the vision "
            "probe, the percentage that is left."
        )
    if any(method.carried_over is not None for method in comparison.methods):
        said.append("Other languages: mean recall in those never trained on, averaged; below one by one.")
    return " ".join(said)


def _untrained(comparison: Comparison) -> list[float]:
    """Average the untrained projection over every run of the comparison."""
    runs = [run for method in comparison.methods for run in method.runs]
    columns = zip(*(_values(run.untrained) for run in runs), strict=True)
    return [sum(column) / len(runs) for column in columns]


def _values(result: Retrieval) -> list[float]:
    both = (*result.text_to_image.recall.values(), *result.image_to_text.recall.values(), result.mean_recall)
    return [score.value for score in both]


def _footer(comparison: Comparison) -> str:
    runs = [run for method in comparison.methods for run in method.runs]
    first = runs[0]
    seeds, steps = _each(comparison, lambda run: run.seed), _each(comparison, lambda run: run.steps)
    seen = _each(comparison, lambda run: round(run.pairs_seen / 1000))
    machines = _listed(f"{run.device} with {tables.counted(run.threads, 'thread')}" for run in runs)
    versions = _listed(f"{name} {version}" for run in runs for name, version in sorted(run.versions.items()))
    lines = (
        f"Test: {tables.gallery_line(*(run.test[0] for run in runs))}.",
        f"Training: {first.pairs:,} pairs, {first.caption_origin} captions, {first.images:,} images. Seeds: {seeds}.",
        _RULES,
        _kept_rule(comparison),
        f"Pairs seen, in thousands: {seen}. Optimiser steps: {steps}.",
        _tuning(comparison),
        _compute(comparison),
        f"Time ({figures.clock(comparison)}) covers training and, once, computing the frozen part; on {machines}.",
        _retries(comparison),
        _left_out(comparison),
        f"Versions: {versions}.",
    )
    return "".join(f"- {line}\n" for line in lines if line)


def _compute(comparison: Comparison) -> str:
    """Say what a budget of time or memory leaves to the reader's guess: the towers, and how memory was kept to."""
    if not comparison.of_compute:
        return ""
    models = _each(comparison, lambda run: f"{_setting(run, 'vision.model')} and {_setting(run, 'text.model')}")
    said = [f"Towers: {models}."]
    if any(_setting(run, "train.max_memory_bytes") for method in comparison.methods for run in method.runs):
        said.append(f"Pairs in the towers at a time: {_each(comparison, _at_a_time)}; the loss is of the whole batch.")
    return " ".join(said)


def _at_a_time(run: Run) -> Any:
    return _setting(run, "optim.micro_batch") or _setting(run, "optim.batch_size")


def _left_out(comparison: Comparison) -> str:
    """Say what could not be made and why, once for all its seeds."""
    reasons: dict[str, list[int]] = {}
    for one in comparison.left_out:
        towers = "" if one.towers == "both" else f", {one.towers} tower"
        recipe = f", recipe {one.recipe['name']}" if comparison.of_compute else ""
        reasons.setdefault(f"{one.strategy}{towers}{recipe}: {one.why}", []).append(one.seed)
    listed = "; ".join(f"{why} (seed {', '.join(map(str, seeds))})" for why, seeds in reasons.items())
    return f"Left out: {listed}." if listed else ""


def _retries(comparison: Comparison) -> str:
    again = {method.name: sum(run.retries for run in method.runs) for method in comparison.methods}
    listed = ", ".join(f"{name} {count}" for name, count in again.items() if count)
    return f"Begun again because a worker died: {listed}." if listed else ""


def _tuning(comparison: Comparison) -> str:
    """Say what was tuned on dev, over which values, and what was chosen."""
    tuned = {key: run.tuned[key] for method in comparison.methods for run in method.runs for key in sorted(run.tuned)}
    if not tuned:
        rates = _each(comparison, lambda run: _setting(run, "optim.lr"))
        return f"Nothing was tuned for this table; the recipe's learning rates: {rates}."
    said = []
    for key, values in tuned.items():
        chosen = _each(comparison, partial(_setting, key=key))
        said.append(f"Tuned on dev, never on test: `{key}` from {', '.join(map(str, values))}; chosen: {chosen}.")
    return " ".join(said)


def _setting(run: Run, key: str) -> Any:
    value: Any = run.recipe
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _each(comparison: Comparison, of: Callable[[Run], object]) -> str:
    """List a figure by method, or once where all have the same."""
    by_entry = {method.name: _listed(str(of(run)) for run in method.runs) for method in comparison.methods}
    if len(set(by_entry.values())) == 1:
        return next(iter(by_entry.values()))
    return "; ".join(f"{name} {values}" for name, values in sorted(by_entry.items()))


def _listed(items: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(items))


def _transfer(comparison: Comparison) -> str:
    """Set out the mean recall in languages never trained on, averaged over the seeds."""
    langs = list(dict.fromkeys(r.lang for method in comparison.methods for run in method.runs for r in run.test[1:]))
    rows = []
    for method in comparison.methods:
        by_lang = {
            lang: [r.mean_recall.value for run in method.runs for r in run.test[1:] if r.lang == lang] for lang in langs
        }
        rows.append([method.name, *(tables.percent(sum(v) / len(v)) if v else "" for v in by_lang.values())])
    return f"Mean recall in languages never trained on:\n\n{tables.markdown(['strategy', *langs], rows)}"


def _csv(found: Sequence[Comparison]) -> str:
    header = ["lang", "gallery", "gallery_images", "gallery_captions", "recipe", "budget", "pairs", "caption_origin"]
    header += ["strategy", "towers", "options", "seeds", "trainable", "total"]
    header += [f"{name}{end}" for name in _COLUMNS for end in ("", "_low", "_high")]
    header += ["seconds", "cpu_seconds", "peak_memory_bytes", "checkpoint_bytes", "retention"]
    header += ["other_languages_mean_recall", "best", "p_value"]
    return tables.csv_text(
        header, [_csv_row(comparison, method) for comparison in found for method in comparison.methods]
    )


def _csv_row(comparison: Comparison, method: Method) -> list[object]:
    first = method.runs[0]
    kept, carried = method.retention, method.carried_over
    gallery = comparison.gallery
    return [
        *(comparison.lang, gallery.gallery, gallery.images, gallery.captions),
        *(comparison.recipe, comparison.budget, first.pairs, first.caption_origin),
        *(method.strategy, method.towers, method.options, " ".join(str(run.seed) for run in method.runs)),
        *(first.trainable, first.total),
        *(fraction for score in method.scores for fraction in _fractions(score)),
        round(method.mean(lambda run: run.seconds), 1),
        round(method.mean(lambda run: run.cpu_seconds), 1),
        round(method.mean(lambda run: run.peak_memory_bytes)),
        round(method.mean(lambda run: run.checkpoint_bytes)),
        *("" if share is None else f"{share:.4f}" for share in (kept, carried)),
        int(method.best),
        "" if method.p_value is None else f"{method.p_value:.4f}",
    ]


def _fractions(score: Score) -> list[str]:
    return [f"{score.value:.4f}", f"{score.low:.4f}", f"{score.high:.4f}"]
