"""The report: tables by language, an index and figures, made only from the JSON files of the runs.

The same runs give the same text, byte for byte; a test compares committed tables with their JSON files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyalign.config.schema import complete
from polyalign.evaluation import html
from polyalign.evaluation.ranking import COLUMNS
from polyalign.evaluation.results import LeftOut, Retrieval, Run, Score, recall_scores
from polyalign.experiments import figures, html_report, pages, quotes, which
from polyalign.experiments.significance import Comparison, Method, comparisons, flatten
from polyalign.utils import storage
from polyalign.utils.errors import UserError
from polyalign.utils.text import for_spreadsheet, safe_stem

if TYPE_CHECKING:
    from pandas import DataFrame

RUNS, LEFT_OUT, FIGURES = "runs", "left-out", "figures"
INDEX = "README.md"

_NOT_IN_ROWS = {
    *("recipe", "versions", "tuned", "trained_on", "untrained", "untrained_in", "test", "dev_evaluations", "retention"),
}


def load(folder: Path) -> list[Comparison]:
    """Group the runs in ``folder/runs`` into comparisons, with the failed runs in ``folder/left-out``.

    Raises:
        UserError: there are no runs, or a file cannot be read.
    """
    runs = load_runs(folder)
    runs = [run.in_language(lang) for run in runs for lang in run.langs]
    left_out = [LeftOut.load_json(path) for path in sorted((folder / LEFT_OUT).glob("*.json"))]
    return comparisons(runs, [one.in_language(lang) for one in left_out for lang in one.langs])


def load_runs(folder: Path) -> list[Run]:
    """Read all runs in ``folder/runs``, in the order of the file names.

    Raises:
        UserError: there are none, or a file cannot be read.
    """
    paths = sorted((folder / RUNS).glob("*.json"))
    if not paths:
        raise UserError(f"there are no results in {folder / RUNS}: run polyalign compare first")
    runs = [Run.load_json(path) for path in paths]
    # Runs made before an option was added are grouped with later ones that have its default.
    return [run.model_copy(update={"recipe": complete(run.recipe)}) for run in runs]


def write(folder: Path, *, as_html: bool = False) -> list[Path]:
    """Write all tables and figures of ``folder`` from its runs, and return the paths.

    In other Markdown pages of the folder only the quoted results are updated (see ``quotes``). With ``as_html`` all of
    it is also written into one HTML file.

    Raises:
        UserError: there are no runs, a file cannot be read, or a page quotes a result that does not exist.
    """
    found = load(folder)
    made = {folder / name: text for name, text in texts(found).items()}
    for path in made:
        _refuse_foreign(path)
    if as_html:
        html.refuse_foreign(folder / html_report.NAME)
    if any((folder / FIGURES).glob("[!.]*")) and not (folder / INDEX).exists():
        raise UserError(f"{folder / FIGURES} was not made by polyalign report: move it away, or use another --out")
    for name in (RUNS, LEFT_OUT, FIGURES):
        storage.remove_abandoned(folder / name)
    for path, text in made.items():
        storage.write_text(path, text)
    drawn = figures.draw(found, folder / FIGURES)
    own = sorted(path for path in set(folder.glob("*.md")) - made.keys() if path.is_file())
    for page in own:
        quotes.renew(page, found)
    if as_html:
        html.save(folder / html_report.NAME, html_report.page(found, drawn))
    return [*made, *own, *drawn, *([folder / html_report.NAME] if as_html else [])]


def _refuse_foreign(path: Path) -> None:
    """Check that a file that would be replaced was written by ``write``."""
    page = path.with_suffix(".md")  # of a CSV file: the page beside it
    ours = page.is_file() and f"\n{pages.MADE_BY}" in page.read_text(encoding="utf-8", errors="replace")
    if (path.exists() or path.is_symlink()) and not ours:
        raise UserError(f"{path} was not written by polyalign report: move it away, or use another --out")


def check(folder: Path) -> None:
    """Check that ``write`` can write into a folder, before anything is computed for it.

    Raises:
        UserError: it is not writable, or has an index that ``write`` did not write.
    """
    _refuse_foreign(folder / INDEX)
    storage.check_writable(folder)


def texts(found: Sequence[Comparison]) -> dict[str, str]:
    """Return all text files by name: the index, which strategy to use, and two files for each language."""
    files = {INDEX: pages.index(found)}
    if which_to_use := which.page(found):
        files[which.NAME] = which_to_use
        files[INDEX] += f"\n[Which strategy to use]({which.NAME}), by language, number of pairs and time.\n"
    for lang in dict.fromkeys(comparison.lang for comparison in found):
        own = [comparison for comparison in found if comparison.lang == lang]
        files[f"{safe_stem(lang)}.md"] = pages.page(lang, own)
        files[f"{safe_stem(lang)}.csv"] = _csv(own)
    return files


def _by_column(scores: Sequence[Score]) -> dict[str, float]:
    """Return the six recalls and the mean recall, with their limits, by column of CSV files and data frames."""
    return {
        f"{name}{end}": value
        for name, score in zip(COLUMNS, scores, strict=True)
        for end, value in (("", score.value), ("_low", score.low), ("_high", score.high))
    }


def results(folder: Path) -> DataFrame:
    """Return all runs in ``folder/runs`` as rows, in the order of the file names.

    Columns: the facts of each run (``lang``, ``strategy``, ``seed``, ``trainable``, ``seconds``, ...); its recalls as
    fractions (``text_to_image_r1`` to ``mean_recall``), each with ``_low`` and ``_high`` over test images only; those
    of the untrained projection (``untrained_mean_recall``, ...); ``retention``; the best ``dev_mean_recall``; the mean
    recall in its other languages and in languages without pairs (``mean_recall.de``); all settings
    (``recipe.optim.lr``); ``versions.torch`` and the like; and the values tried for a tuned setting
    (``tuned.optim.lr``). A value that a run does not have is missing.

    Raises:
        UserError: there are no runs, or a file cannot be read.
    """
    from pandas import DataFrame

    return DataFrame([_run_row(run) for run in load_runs(folder)])


def _run_row(run: Run) -> dict[str, Any]:
    test, *others = run.test
    return {
        **run.model_dump(exclude=_NOT_IN_ROWS),
        "cost_seconds": run.cost_seconds,
        "gallery": test.gallery,
        "gallery_images": test.images,
        "gallery_captions": test.captions,
        **_recalls(test),
        **{f"untrained_{name}": value for name, value in _recalls(run.untrained).items()},
        "retention": None if run.retention is None else run.retention.kept,
        "dev_mean_recall": max((one.dev_mean_recall for one in run.dev_evaluations), default=None),
        **{f"mean_recall.{other.lang}": other.mean_recall.value for other in others},
        **dict(flatten(run.recipe, "recipe.")),
        **dict(flatten(run.versions, "versions.")),
        **{f"tuned.{key}": values for key, values in run.tuned.items()},
    }


def _recalls(result: Retrieval) -> dict[str, float]:
    """Return the recalls by column; intervals are computed from the ranks if saved, as those of older files differ."""
    return _by_column(recall_scores([result.hits()]) if result.text_to_image.ranks else result.scores)


def _csv(found: Sequence[Comparison]) -> str:
    from pandas import DataFrame

    rows = [_csv_row(comparison, method) for comparison in found for method in comparison.methods]
    return DataFrame(rows).map(for_spreadsheet).to_csv(index=False, lineterminator="\n")


def _csv_row(comparison: Comparison, method: Method) -> dict[str, object]:
    first, gallery, tested = method.runs[0], comparison.gallery, method.against_best
    differences = (None,) * 3 if tested is None else (tested.difference, tested.low, tested.high)
    fractions = {
        "retention": method.retention,
        "other_languages_mean_recall": method.carried_over,
        "p_value": method.p_value,
        **{f"difference_to_best{end}": one for end, one in zip(("", "_low", "_high"), differences, strict=True)},
    }
    return {
        "lang": comparison.lang,
        "gallery": gallery.gallery,
        "gallery_images": gallery.images,
        "gallery_captions": gallery.captions,
        "recipe": comparison.recipe,
        "budget": comparison.budget,
        "pairs": first.pairs,
        "caption_origin": first.caption_origin,
        "parallel_rows": first.parallel_rows,
        "strategy": method.strategy,
        "towers": method.towers,
        "options": method.options,
        "seeds": " ".join(str(run.seed) for run in method.runs),
        "trainable": first.trainable,
        "total": first.total,
        **{name: f"{value:.4f}" for name, value in _by_column(method.scores).items()},
        "intervals_over": method.covers,
        "seconds": round(method.mean(lambda run: run.seconds), 1),
        "cpu_seconds": round(method.mean(lambda run: run.cpu_seconds), 1),
        "peak_memory_bytes": round(method.mean(lambda run: run.peak_memory_bytes)),
        "checkpoint_bytes": round(method.mean(lambda run: run.checkpoint_bytes)),
        "best": int(method.best),
        "standing": method.standing,
        **{name: "" if value is None else f"{value:.4f}" for name, value in fractions.items()},
    }
