"""Suites: a model measured on several benchmarks in several languages, in one table."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from rich import box
from rich.table import Table

from polyalign.config import source_spec
from polyalign.config.language import describe_error, load_language
from polyalign.config.plugins import load_plugin
from polyalign.config.shipped import find_shipped, read_toml
from polyalign.config.source_spec import SourceSpec
from polyalign.data import image_check, image_ids
from polyalign.data.load import load_source
from polyalign.data.pairs import PairTable
from polyalign.evaluation import bootstrap, ranking, tables
from polyalign.evaluation.encoders import Encoder, ImageMemory
from polyalign.evaluation.results import Record, Retrieval, Score, with_intervals
from polyalign.evaluation.tasks import retrieval
from polyalign.utils.errors import AbsentError, UserError, did_you_mean

logger = logging.getLogger(__name__)

ALL = ("all",)
"""In place of languages: every one that a benchmark has."""

_OWN = ("split", "languages")
_PATHS = ("root", "karpathy")
_MAX_CORRUPT = 0.01
_COLUMNS = ("t→i\nR@1", "t→i\nR@5", "t→i\nR@10", "i→t\nR@1", "i→t\nR@5", "i→t\nR@10", "mean\nrecall")


class Benchmark(BaseModel):
    """One source of a suite: its options, the split, and the languages if not all of them are wanted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    spec: SourceSpec
    split: str = "test"
    languages: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, raw: Any) -> Any:
        """Take the form of a suite's file, where a source's options stand beside its name."""
        if not isinstance(raw, Mapping) or "spec" in raw:
            return raw
        own = {key: raw[key] for key in _OWN if key in raw}
        options = {key: value for key, value in raw.items() if key not in (*_OWN, "name")}
        return {"spec": {"name": raw.get("name"), "options": options}, **own}


class Suite(BaseModel):
    """Benchmarks that are measured together; a file of them is TOML, its name the suite's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str = ""
    benchmarks: tuple[Benchmark, ...]

    @model_validator(mode="after")
    def _not_empty(self) -> Suite:
        if not self.benchmarks:
            raise ValueError("it names no [[benchmarks]]")
        return self

    def within(self, root: Path, images: Path | None, *, allow_missing: bool) -> Suite:
        """Look for relative paths below ``root``, and for photos in ``images`` where the suite names no folder."""
        placed = [_place(one, root, images, allow_missing=allow_missing) for one in self.benchmarks]
        return self.model_copy(update={"benchmarks": tuple(placed)})


class Average(Record):
    """Means over languages: the six recalls, text to image first, and their mean, as fractions.

    The intervals are of the mean over photos like these: a photo is drawn with what it answers for in all languages and
    galleries at once, so languages tested on the same photos are not taken for independent.
    """

    gallery: str
    over: str
    languages: tuple[str, ...]
    scores: tuple[Score, Score, Score, Score, Score, Score, Score]


class SuiteResult(Record):
    """A model on a suite: a result for each benchmark and language, their means, and what was left out and why."""

    suite: str
    model: str
    results: tuple[Retrieval, ...]
    averages: tuple[Average, ...]
    left_out: tuple[str, ...] = ()


def load(name: str) -> Suite:
    """Read a suite: a shipped one, one of the user's ``./suites``, or a path of a TOML file.

    Raises:
        UserError: there is no such suite, or it is malformed.
    """
    path = Path(name) if name.endswith(".toml") else find_shipped("suites", name)
    try:
        suite = Suite.model_validate({**read_toml(path), "name": path.stem})
    except ValidationError as error:
        raise UserError(f"{path} is not a suite: {describe_error(error)}") from error
    for one in suite.benchmarks:
        load_plugin("sources", one.spec.name)
    return suite


@dataclass(frozen=True)
class Ready:
    """The benchmarks of a suite that are at hand, each with its languages, and what was left out and why."""

    suite: Suite
    here: tuple[tuple[Benchmark, list[str]], ...]
    left_out: tuple[str, ...]


def find(suite: Suite, langs: Sequence[str], *, allow_absent: bool = False) -> Ready:
    """Find what is at hand of a suite in the languages asked for, before anything is computed.

    Raises:
        UserError: a benchmark's files are not at hand and ``allow_absent`` is false; nothing is at hand, or nothing in
            these languages; an unknown language.
    """
    for code in () if tuple(langs) == ALL else langs:
        load_language(code)
    here: list[tuple[Benchmark, list[str]]] = []
    absent: list[tuple[Benchmark, AbsentError]] = []
    for one in suite.benchmarks:
        try:
            codes = _languages(one, langs)
            if codes:
                load_source(one.spec, codes[0], one.split)
                here.append((one, codes))
            else:
                logger.info(f"{one.spec.name} has no captions in {', '.join(langs)}")
        except AbsentError as error:
            absent.append((one, error))
    if absent and not allow_absent:
        each = "; ".join(f"{one.spec.name}: {error} ({_way_out(one)})" for one, error in absent)
        raise UserError(
            f"{len(absent)} of the {len(suite.benchmarks)} benchmarks of {suite.name} are not at hand: {each}. "
            "--allow-absent leaves them out"
        )
    left_out = tuple(f"{one.spec.name}: {error}" for one, error in absent)
    for line in left_out:
        logger.info(f"left out {line}")
    if not here:
        raise UserError(f"nothing of the suite {suite.name} is at hand in {', '.join(langs)}")
    return Ready(suite, tuple(here), left_out)


def run(encoder: Encoder, ready: Ready) -> SuiteResult:
    """Measure retrieval on every benchmark in every language that was found.

    Raises:
        UserError: a benchmark cannot be read.
    """
    results, photos = [], []
    encoder = ImageMemory(encoder)
    for one, codes in ready.here:
        for table in _tables(one, codes):
            results.append(retrieval.score(encoder, table, retrieval.Config()))
            photos.append([image_ids.photo(name) or f"{one.spec.name} {name}" for name in table.image_ids])
    return SuiteResult(
        suite=ready.suite.name,
        model=encoder.name,
        results=tuple(result.without_ranks() for result in results),
        averages=tuple(averages(results, photos)),
        left_out=ready.left_out,
    )


def averages(results: Sequence[Retrieval], photos: Sequence[Sequence[str]]) -> Iterator[Average]:
    """Average each gallery over its languages, and over low-resource ones apart; then the same over all galleries.

    Over galleries a language counts once, with the mean of the galleries that have it. An average of one result alone
    is left out, but for low-resource languages.

    Args:
        results: with their ranks.
        photos: which photo each image of each result is; equal ones are drawn together for the intervals.
    """
    observed = [ranking.recalls([result.hits()]) for result in results]
    drawn = _resample(results, photos)
    galleries = list(dict.fromkeys(result.gallery for result in results))
    for gallery in [*galleries, *(["all galleries"] if len(galleries) > 1 else [])]:
        by_lang: dict[str, list[int]] = {}
        for index, result in enumerate(results):
            if gallery in (result.gallery, "all galleries"):
                by_lang.setdefault(result.lang, []).append(index)
        scarce = {code: found for code, found in by_lang.items() if load_language(code).low_resource}
        if sum(map(len, by_lang.values())) > 1:
            yield _average(gallery, "languages", by_lang, observed, drawn)
        if scarce:
            yield _average(gallery, "low-resource languages", scarce, observed, drawn)


def _resample(results: Sequence[Retrieval], photos: Sequence[Sequence[str]]) -> list[ranking.Floats]:
    number = {photo: index for index, photo in enumerate(dict.fromkeys(one for own in photos for one in own))}
    entries = [
        (result.hits(), np.array([number[photo] for photo in own])) for result, own in zip(results, photos, strict=True)
    ]
    return list(bootstrap.resample_together(entries, len(number)))


def _average(
    gallery: str,
    over: str,
    by_lang: Mapping[str, Sequence[int]],
    observed: Sequence[ranking.Floats],
    drawn: Sequence[ranking.Floats],
) -> Average:
    """Average the results of each language (their indices), then over languages, and every draw likewise."""

    def mean(rows: Sequence[ranking.Floats]) -> npt.NDArray[np.float64]:
        found: npt.NDArray[np.float64] = np.mean(
            [np.mean([rows[i] for i in own], axis=0) for own in by_lang.values()], axis=0
        )
        return found

    scores = with_intervals(mean(observed), mean(drawn))
    return Average(gallery=gallery, over=over, languages=tuple(by_lang), scores=scores)


def render(result: SuiteResult) -> Table:
    """Show a suite's results, one language and gallery a row, and their averages below."""
    notes = [
        "percent found, ± half of the 95 % interval; images is the number searched; ties rank ahead",
        "averages over galleries count a language once, with the mean of the galleries that have it",
        *(f"left out: {line}" for line in result.left_out),
    ]
    table = Table(
        title=f"{result.suite}: {result.model}",
        caption="\n".join(notes),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("gallery", overflow="fold")
    table.add_column("captions by", no_wrap=True)
    for name in ("images", "captions", *_COLUMNS):
        table.add_column(name, justify="right", no_wrap=True)
    last = None
    for one in result.results:
        if last not in (None, one.gallery):
            table.add_section()
        last = one.gallery
        sizes = (tables.searched(one), f"{one.captions:,}")
        table.add_row(f"{one.lang} {one.gallery}", one.origin, *sizes, *_percent(_scores(one)))
    table.add_section()
    for mean in result.averages:
        over = mean.over if len(mean.languages) > 1 else mean.over.removesuffix("s")
        row = f"[bold]mean of {len(mean.languages)} {over}[/], {mean.gallery}"
        table.add_row(row, "", "", "", *_percent(mean.scores))
    return table


def _place(one: Benchmark, root: Path, images: Path | None, *, allow_missing: bool) -> Benchmark:
    options = {key: str(root / value) if key in _PATHS else value for key, value in one.spec.options.items()}
    if source_spec.takes_images(one.spec.name):
        options = source_spec.photos(one.spec.name, images, allow_missing=allow_missing) | options
    return one.model_copy(update={"spec": one.spec.model_copy(update={"options": options})})


def _languages(one: Benchmark, langs: Sequence[str]) -> list[str]:
    _, config = one.spec.configure()
    root = getattr(config, "root", None)
    if root is not None and not root.is_dir():
        raise AbsentError(f"there is no folder {root}")
    if source_spec.takes_images(one.spec.name) and config.images is None:
        raise AbsentError("no folder of photos was given: --images FOLDER")
    known = one.spec.languages()
    if known is None:
        known = list(one.languages)
        if not known:
            raise UserError(f"the source {one.spec.name} cannot tell its languages: the suite must name them")
    if not known:
        raise AbsentError(f"there are no captions in {root}")
    wrong = sorted(set(one.languages) - set(known))
    if wrong:
        raise UserError(f'{one.spec.name} has no captions in "{wrong[0]}": {did_you_mean(wrong[0], known)}')
    offered = one.languages or known
    return list(offered) if tuple(langs) == ALL else [code for code in langs if code in offered]


def _way_out(one: Benchmark) -> str:
    """Describe how to get the missing files of a benchmark: its captions, or else its photos."""
    info = getattr(load_plugin("sources", one.spec.name), "INFO", None)
    if info is None:
        return "see its root"
    _, config = one.spec.configure()
    get = f"polyalign data get {one.spec.name} --root {config.root.parent}"
    if config.root.is_dir() and one.spec.languages():
        own = info.single or info.photos
        return f"{info.images}{f'; {get} --photos test' if own else ''}"
    by_name = info.downloads and config.root.name == info.folder
    return get if by_name else f"from {info.home}: {info.captions}"


@dataclass
class _Photos:
    """Which of a benchmark's photos can be opened; each is tried once, however many languages describe it."""

    tried: frozenset[str] = frozenset()
    bad: frozenset[str] = frozenset()

    def readable(self, table: PairTable) -> PairTable:
        new = table.without_images(self.tried)
        if len(new):
            _, report = image_check.check_images(new, max_corrupt=_MAX_CORRUPT)
            if report.bad:
                logger.info(f"{table.name}: left out {report.describe()}")
            self.tried |= frozenset(new.image_ids)
            self.bad |= frozenset(one.image_id for one in report.bad)
        return table.without_images(self.bad) if self.bad else table


def _tables(one: Benchmark, codes: Iterable[str]) -> Iterator[PairTable]:
    photos = _Photos()
    for code in codes:
        table = photos.readable(load_source(one.spec, code, one.split))
        spoken = table.without_empty_captions()
        if len(spoken) < len(table):
            logger.info(
                f"{table.name} in {code}: left out {len(table) - len(spoken):,} empty captions of {len(table):,}"
            )
        retrieval.check_gallery(spoken)
        yield spoken


def _scores(result: Retrieval) -> list[Score]:
    ways = (result.text_to_image, result.image_to_text)
    return [*(score for way in ways for score in way.recall.values()), result.mean_recall]


def _percent(scores: Sequence[Score]) -> list[str]:
    """Show the seven scores; R@1 and the mean have their intervals, for more of which a terminal is too narrow."""
    half = {place: f" ±{50 * (scores[place].high - scores[place].low):.1f}" for place in (0, 3, 6)}
    return [f"{100 * score.value:.1f}{half.get(place, '')}" for place, score in enumerate(scores)]
