"""A finished run as one page: what was trained on what, how well it does, examples, and warnings."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from polyalign.config.language import language_codes, load_language
from polyalign.config.resolve import read_recipe
from polyalign.config.run_files import RECIPE, check_finished
from polyalign.config.schema import Recipe
from polyalign.data import check
from polyalign.data.check import DataReport
from polyalign.data.load import load_table, load_tests
from polyalign.data.pairs import PairTable
from polyalign.evaluation import html, ranking, tables
from polyalign.evaluation.evaluate import open_model
from polyalign.evaluation.results import Change, Retrieval, Run
from polyalign.evaluation.tasks import retrieval
from polyalign.evaluation.verdict import verdict
from polyalign.models import checkpoint
from polyalign.models.towers.text_loading import load_tokenizer
from polyalign.serving import show_photos
from polyalign.training.inherit import trained_images
from polyalign.training.train import RESULT
from polyalign.utils.errors import UserError
from polyalign.utils.text import clean

logger = logging.getLogger(__name__)

_WITH_PHOTOS = 4  # languages, which keeps a page below 5 MB
_MOST_ROWS = 40
_LENGTHS = 4
_MANY_PIECES, _MANY_UNKNOWN = 3.0, 0.01
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 600, 14, 250  # of the learning curve, in units of its picture


@dataclass
class _Found:
    """What of the data and the model behind a run is there, and what is ``absent``."""

    galleries: dict[str, PairTable] = field(default_factory=dict)
    reports: dict[str, DataReport] = field(default_factory=dict)
    examples: dict[str, show_photos.Examples] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)


def page(folder: Path) -> str:
    """Return the page of a run; what needs data or towers that are not there is named on it and left out.

    Raises:
        UserError: there is no finished run in the folder, or its result is not one.
    """
    check_finished(folder)
    run = Run.load_json(folder / RESULT)
    tested = {result.lang for result in run.test}
    if untested := [lang for lang in run.langs[1:] if {lang, run.lang} - tested]:
        raise UserError(f"{folder / RESULT} has no test in {clean(', '.join(untested), 100)}: train again")
    by_lang = {lang: run.in_language(lang) for lang in run.langs}
    found = _find(folder, by_lang)
    names = " and ".join(map(_name, by_lang))
    return html.render(
        "show.html",
        title=f"Finding photos in {names}",
        lead=_lead(run, names),
        verdict=[sentence for lang, own in by_lang.items() for sentence in _verdict(lang, own)],
        facts=_facts(run),
        before="before" if run.recipe.get("parent") or run.recipe.get("teacher") else "before training",
        languages=[_language(lang, own, found) for lang, own in by_lang.items()],
        curve=_curve(run),
        absent=found.absent,
        tokens=[_tokens(report) for report in found.reports.values() if report.tokens],
        warnings=list(dict.fromkeys(one for lang, own in by_lang.items() for one in _warnings(lang, own, found))),
        others=_others(run)[:_MOST_ROWS],
        transfer=[_transfer(one) for one in by_lang[run.lang].test[1:]][:_MOST_ROWS],
        versions=", ".join(f"{name} {version}" for name, version in sorted(run.versions.items())),
        percent=tables.percent,
    )


def _find(folder: Path, by_lang: dict[str, Run]) -> _Found:
    """Load what is there: the test set, then what its captions and photos say, then the model."""
    found = _Found()
    what = "what a search finds, failures and captions, as the test set is not where it was"
    try:
        recipe = read_recipe(folder / RECIPE)
        found.galleries = load_tests(recipe, trained_images(recipe))
        what = "tokens a word and warnings about captions, as the tokenizer or the test set is not where it was"
        found.reports = {report.lang: report for report in _reports(folder, recipe)}
        what = "what a search finds and failures, as the towers are not where they were"
        encoder = open_model(folder)
    except UserError as error:
        logger.warning(f"warning: {error}; the page does not show {what}")
        found.absent.append(f"{what} when this page was made.")
        return found
    for lang, gallery in list(found.galleries.items())[:_WITH_PHOTOS]:
        images, captions = encoder.encode_image(gallery.images), encoder.encode_text(gallery.captions, lang)
        ranks = retrieval.measure(images, captions, gallery).text_to_image.ranks
        found.examples[lang] = show_photos.examples(gallery, images, captions, ranks)
    if len(by_lang) > _WITH_PHOTOS:
        found.absent.append(f"photos for more than the first {_WITH_PHOTOS} languages.")
    return found


def _reports(folder: Path, recipe: Recipe) -> Iterator[DataReport]:
    tokenizer = load_tokenizer(recipe.text, folder / checkpoint.TOKENIZER)
    for lang in (*recipe.langs, *recipe.transfer):
        table = load_table(recipe, "test", lang)
        yield check.check(table, load_language(lang), tokenizer, recipe.text.max_tokens)


def _name(code: str) -> str:
    return load_language(code).english_name if code in language_codes() else code


def _setting(run: Run, section: str, key: str) -> str:
    """Return a setting; of a path only the last part, since the page is for others."""
    table = run.recipe.get(section)
    value = str(table.get(key, "unknown")) if isinstance(table, dict) else "unknown"
    return Path(value).name if value.startswith(("/", ".", "~")) else value


def _pictures(run: Run) -> str:
    return "drawn scenes" if _setting(run, "source", "name") == "starter" else "photos"


def _lead(run: Run, names: str) -> str:
    test, what = run.test[0], _pictures(run)
    trained = f"{run.pairs:,} captions of {run.images:,} {what}, and tested on {test.images:,} others"
    if not run.pairs:
        trained = f"sentences and their translations, without {what}, and tested on {test.images:,} {what}"
    return f"A model that finds {what} by sentences in {names}. It was trained on {trained}."


def _verdict(lang: str, run: Run) -> Iterator[str]:
    test, chance = run.test[0], run.test[0].chance()
    first, ten = test.text_to_image.recall[1].value, test.text_to_image.recall[10].value
    yield (
        f"In {_name(lang)}, for {tables.percent(first)} % of the sentences the right one of {tables.searched(test)} "
        f"{_pictures(run)} came first, and for {tables.percent(ten)} % it was among the first ten. Guessing would "
        f"give {tables.percent(float(chance[0]))} and {tables.percent(float(chance[2]))} %."
    )
    yield from verdict(run)


def _facts(run: Run) -> dict[str, str]:
    others = f", {run.parallel_rows:,} parallel sentences" if run.parallel_rows else ""
    early = ", stopped early" if run.stopped_early else ""
    return {
        "image tower": _setting(run, "vision", "model"),
        "text tower": _setting(run, "text", "model"),
        "strategy": f"{run.strategy}, towers: {run.towers}",
        "trained": f"{tables.share(run.trainable, run.total)} of {run.total:,} parameters",
        "language": ", ".join(map(_name, run.langs)),
        "budget": f"{run.budget}: {run.pairs:,} pairs, {run.images:,} images{others}",
        "captions": run.caption_origin,
        "seen": f"{run.pairs_seen:,} pairs in {tables.counted(run.steps, 'step')}, {run.epochs:g} epochs{early}",
        "time": f"{tables.duration(run.seconds)} on {run.device}",
        "recipe and seed": f"{run.recipe['name']}, {run.seed}",
    }


def _language(lang: str, run: Run, found: _Found) -> dict[str, Any]:
    test, examples = run.test[0], found.examples.get(lang)
    names = [f"{way}, R@{k}" for way in ("text to photo", "photo to text") for k in ranking.RECALL_AT]
    scores = zip(test.scores, run.untrained.scores, ranking.with_mean(test.chance()).tolist(), strict=True)
    excused = "No photo above a right one looks the same or has the very same caption."
    if examples is not None and examples.excused:
        excused = (
            f"Of {tables.counted(examples.missed, 'caption')} whose right photo did not come first, "
            f"{examples.excused:,} came after photos that look the same or have the very same caption."
        )
    return {
        "name": _name(lang),
        "rows": [
            {"name": name, "trained": trained, "untrained": untrained, "chance": chance}
            for name, (trained, untrained, chance) in zip([*names, "mean recall"], scores, strict=True)
        ],
        "gallery": f"Test: {tables.gallery_line(test)}.",
        "shown": show_photos.SHOWN,
        "samples": () if examples is None else examples.samples,
        "failures": None if examples is None else examples.failures,
        "lookalikes": () if examples is None else examples.lookalikes,
        "excused": excused,
        "unit": "words" if _has_spaces(lang) else "characters",
        "lengths": _lengths(lang, test, found.galleries.get(lang)),
    }


def _has_spaces(lang: str) -> bool:
    return lang not in language_codes() or load_language(lang).has_spaces


def _lengths(lang: str, test: Retrieval, gallery: PairTable | None) -> list[dict[str, Any]]:
    """Return R@10 of captions of about the same length, in up to four groups of about the same size."""
    ranks = np.array(test.text_to_image.ranks)
    if gallery is None or not len(ranks) or retrieval.fingerprint(gallery) != test.fingerprint:
        return []
    words = _has_spaces(lang)
    lengths = np.array([len(text.split()) if words else len("".join(text.split())) for text in gallery.captions])
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, _LENGTHS + 1)[1:], method="inverted_cdf"))
    group = np.searchsorted(edges, lengths)
    rows = []
    for number in np.unique(group):
        own = lengths[group == number]
        name = f"{own.min()}" if own.min() == own.max() else f"{own.min()} to {own.max()}"
        share = float((ranks[group == number] <= 10).mean())
        rows.append({"name": name, "captions": f"{len(own):,}", "share": share})
    return rows


def _curve(run: Run) -> dict[str, Any] | None:
    """Return the coordinates of the learning curve on dev, None without dev evaluations."""
    looks = run.dev_evaluations
    if not looks:
        return None
    recalls = [min(max(one.dev_mean_recall, 0.0), 1.0) for one in looks]
    best, last = recalls.index(max(recalls)), max(1, *(one.step for one in looks))
    each = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2) if max(recalls) <= 5 * step or step == 0.2)
    top = each * max(1, math.ceil(round(max(recalls) / each, 6)))

    def x(step: float) -> float:
        return round(_LEFT + (_RIGHT - _LEFT) * min(max(step / last, 0.0), 1.0), 1)

    def y(recall: float) -> float:
        return round(_BOTTOM - (_BOTTOM - _TOP) * recall / top, 1)

    marks = [each * i for i in range(round(top / each) + 1)]
    return {
        "points": [(x(one.step), y(recall)) for one, recall in zip(looks, recalls, strict=True)],
        "rows": [(y(mark), f"{100 * mark:g} %") for mark in marks],
        "columns": [(x(step), f"{step:,}") for step in sorted({0, last // 2, last})],
        "best": best,
        "told": f"Mean recall on dev in {tables.counted(len(looks), 'evaluation')}; the best, "
        f"{tables.percent(recalls[best])} % after {tables.counted(looks[best].step, 'step')}, was kept.",
    }


def _tokens(report: DataReport) -> dict[str, str]:
    tokens = report.tokens
    assert tokens is not None
    told = []
    if tokens.subwords_per_word is not None and tokens.subwords_per_word > _MANY_PIECES:
        told.append("many pieces")
    if tokens.unknown_rate > _MANY_UNKNOWN:
        told.append("unknown pieces")
    return {
        "name": _name(report.lang),
        "per_word": "-" if tokens.subwords_per_word is None else f"{tokens.subwords_per_word:.2f}",
        "per_character": f"{tokens.subwords_per_character:.2f}",
        "unknown": f"{tokens.unknown_rate:.1%}",
        "told": "; ".join(told),
    }


def _warnings(lang: str, run: Run, found: _Found) -> Iterator[str]:
    name, test = _name(lang), run.test[0]
    if _pictures(run) != "photos":
        yield "These are drawn scenes with generated captions, to try things out: they say little about photos."
    elif run.caption_origin != "human" or test.origin != "human":
        yield f"{name}: captions are {run.caption_origin} in training and {test.origin} in the test."
    gallery, report = found.galleries.get(lang), found.reports.get(lang)
    if gallery is not None and retrieval.fingerprint(gallery) != test.fingerprint:
        yield f"{name}: the test data is not what it was when the run was tested; examples show it as it is now."
    if report is None:
        return
    if report.tokens is not None and report.tokens.unknown_rate > _MANY_UNKNOWN:
        share = f"{report.tokens.unknown_rate:.0%}"
        yield f"{name}: the text tower does not know {share} of the pieces of words; another tower may read them."
    for count, what in (
        (len(report.images.missing), "photos are missing"),
        (len(report.images.corrupt), "photos cannot be opened"),
        (report.empty.count, "captions are empty"),
        (report.repeated.count, "captions repeat another one of the same photo"),
        (report.shared.count, "captions also belong to another photo, which a search cannot tell apart"),
        (
            0 if report.other_script is None else report.other_script.count,
            f"captions are not in {report.script} script",
        ),
        (0 if report.tokens is None else report.tokens.too_long.count, "captions are too long and are cut"),
    ):
        if count:
            yield f"{name}, test set: {count:,} of {report.captions:,} {what}."


def _others(run: Run) -> list[dict[str, Any]]:
    """Return what the towers could do before and after training, in languages that were not trained on too."""
    kept = run.retention
    if kept is None:
        return []

    def row(name: str, change: Change) -> dict[str, Any]:
        return {
            "name": name,
            "before": change.before,
            "after": change.after,
            "change": f"{100 * (change.after - change.before):+.1f}",
        }

    languages = {" and ".join(map(_name, pair.split("-"))): one for pair, one in kept.sentences.items()}
    translations = [row(f"translations found, {names}", one) for names, one in languages.items()]
    return translations + [row(f"objects recognised in images, {name}", one) for name, one in kept.probe.items()]


def _transfer(test: Retrieval) -> dict[str, Any]:
    return {"name": _name(test.lang), "trained": test.mean_recall, "chance": float(test.chance().mean())}
