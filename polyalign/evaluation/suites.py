"""Suites: a model measured on several benchmarks in several languages, in one table."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
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
from polyalign.evaluation.record import Record
from polyalign.evaluation.results import Retrieval, Score, scores_of
from polyalign.evaluation.tasks import retrieval
from polyalign.utils.errors import AbsentError, UserError, did_you_mean

logger = logging.getLogger(__name__)

ALL = ("all",)
"""Instead of languages: all that a benchmark has."""

_OWN = ("split", "languages")
_PATHS = ("root", "karpathy")
_MAX_CORRUPT = 0.01


class Benchmark(BaseModel):
    """One source of a suite: its options, the split, and the languages (default: all)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    spec: SourceSpec
    split: str = "test"
    languages: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, raw: Any) -> Any:
        """Accept the form of a suite's file, with the options of the source beside its name."""
        if not isinstance(raw, Mapping) or "spec" in raw:
            return raw
        own = {key: raw[key] for key in _OWN if key in raw}
        options = {key: value for key, value in raw.items() if key not in (*_OWN, "name")}
        return {"spec": {"name": raw.get("name"), "options": options}, **own}


class Suite(BaseModel):
    """Benchmarks that are measured together, read from a TOML file."""

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
        """Return the suite with relative paths below ``root``, and ``images`` as the default folder of photos."""
        placed = [_place(one, root, images, allow_missing=allow_missing) for one in self.benchmarks]
        return self.model_copy(update={"benchmarks": tuple(placed)})


class Average(Record):
    """Means over languages: the six recalls, text to image first, and their mean, as fractions.

    The intervals are bootstrapped over photos. A photo is drawn for all languages and galleries at once, since results
    on the same photos are not independent.
    """

    gallery: str
    over: str
    languages: tuple[str, ...]
    scores: tuple[Score, Score, Score, Score, Score, Score, Score]


class SuiteResult(Record):
    """Results of a model on a suite: by benchmark and language, their means, and which were left out and why."""

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
class Found:
    """A benchmark whose files exist, its languages, and its table in the first of them."""

    benchmark: Benchmark
    codes: list[str]
    first: PairTable


@dataclass(frozen=True)
class Ready:
    """The benchmarks of a suite whose files exist, and which were left out and why."""

    suite: Suite
    here: tuple[Found, ...]
    left_out: tuple[str, ...]


def find(suite: Suite, langs: Sequence[str], *, allow_absent: bool = False) -> Ready:
    """Find the benchmarks of a suite with files in these languages, before anything is computed.

    Raises:
        UserError: a benchmark's files are missing and ``allow_absent`` is false; no benchmark has files in these
            languages; an unknown language.
    """
    for code in () if tuple(langs) == ALL else langs:
        load_language(code)
    here: list[Found] = []
    absent: list[tuple[Benchmark, AbsentError]] = []
    for one in suite.benchmarks:
        try:
            codes = _languages(one, langs)
            if codes:
                here.append(Found(one, codes, load_source(one.spec, codes[0], one.split)))
            else:
                logger.info(f"{one.spec.name} has no captions in {', '.join(langs)}")
        except AbsentError as error:
            absent.append((one, error))
    if absent and not allow_absent:
        each = "; ".join(f"{one.spec.name}: {error} ({_way_out(one)})" for one, error in absent)
        raise UserError(
            f"{len(absent)} of the {len(suite.benchmarks)} benchmarks of {suite.name} are missing: {each}. "
            "--allow-absent leaves them out"
        )
    left_out = tuple(f"{one.spec.name}: {error}" for one, error in absent)
    for line in left_out:
        logger.info(f"left out {line}")
    if not here:
        raise UserError(f"no benchmark of the suite {suite.name} has files in {', '.join(langs)}")
    return Ready(suite, tuple(here), left_out)


def run(encoder: Encoder, ready: Ready) -> SuiteResult:
    """Measure retrieval on every benchmark in every language that was found.

    Raises:
        UserError: a benchmark cannot be read.
    """
    results, photos = [], []
    encoder = ImageMemory(encoder)
    for found in ready.here:
        for table in _tables(found):
            results.append(retrieval.score(encoder, table, retrieval.Config()))
            source = found.benchmark.spec.name
            photos.append([image_ids.photo(name) or f"{source} {name}" for name in table.image_ids])
    return SuiteResult(
        suite=ready.suite.name,
        model=encoder.name,
        results=tuple(result.without_ranks() for result in results),
        averages=tuple(averages(results, photos)),
        left_out=ready.left_out,
    )


def averages(results: Sequence[Retrieval], photos: Sequence[Sequence[str]]) -> Iterator[Average]:
    """Average each gallery over its languages and over the low-resource ones; then the same over all galleries.

    Over galleries a language counts once, with the mean of the galleries that have it. An average of a single result is
    left out, except for low-resource languages.

    Args:
        results: results with ranks.
        photos: for each result the photo of each image; equal photos are drawn together for the intervals.
    """
    number = {photo: index for index, photo in enumerate(dict.fromkeys(itertools.chain.from_iterable(photos)))}
    hits = [result.hits() for result in results]
    observed = [ranking.recalls(one) for one in hits]
    photo_of = [np.array([number[photo] for photo in own]) for own in photos]
    drawn = bootstrap.resample_together(list(zip(hits, photo_of, strict=True)), len(number))
    galleries = list(dict.fromkeys(result.gallery for result in results))
    for gallery in [*galleries, *(["all galleries"] if len(galleries) > 1 else [])]:
        by_lang: dict[str, list[int]] = {}
        for index, result in enumerate(results):
            if gallery in (result.gallery, "all galleries"):
                by_lang.setdefault(result.lang, []).append(index)
        scarce = {code: found for code, found in by_lang.items() if load_language(code).low_resource}
        for over, own in (("languages", by_lang), ("low-resource languages", scarce)):
            if sum(map(len, own.values())) > (own is by_lang):
                value, draws = (  # of the results of each language, then over languages
                    np.mean([np.mean([rows[i] for i in same], axis=0) for same in own.values()], axis=0)
                    for rows in (observed, drawn)
                )
                scores = scores_of(value, *bootstrap.interval(draws))
                yield Average(gallery=gallery, over=over, languages=tuple(own), scores=scores)


def render(result: SuiteResult) -> Table:
    """Show the results of a suite, one language and gallery per row, and their averages below."""
    notes = [
        "percent found, ± half of the 95 % interval; images is the number searched; ties rank ahead",
        "averages over galleries count a language once, with the mean of the galleries that have it",
        *(f"left out: {line}" for line in result.left_out),
    ]
    columns = ["captions by", "images", "captions", *(name.replace(" ", "\n") for name in tables.RECALL_NAMES)]
    table = tables.table(f"{result.suite}: {result.model}", "gallery", columns, "\n".join(notes))
    table.columns[1].justify = "left"
    for _, same_gallery in itertools.groupby(result.results, key=lambda one: one.gallery):
        for one in same_gallery:
            sizes = (tables.searched(one), f"{one.captions:,}")
            table.add_row(f"{one.lang} {one.gallery}", one.origin, *sizes, *_percent(one.scores))
        table.add_section()
    for mean in result.averages:
        over = mean.over if len(mean.languages) > 1 else mean.over.removesuffix("s")
        row = f"mean of {len(mean.languages)} {over}, {mean.gallery}"
        table.add_row(row, "", "", "", *_percent(mean.scores), style="bold")
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
    """Describe how to get the missing files of a benchmark: its captions, or its photos."""
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


def _tables(found: Found) -> Iterator[PairTable]:
    """Yield the table of each language without unreadable photos, each of which is tried once, and empty captions."""
    one, tried, bad = found.benchmark, set[str](), set[str]()
    for code in found.codes:
        table = found.first if code == found.codes[0] else load_source(one.spec, code, one.split)
        new = table.without_images(tried)
        if len(new):
            _, report = image_check.check_images(new, max_corrupt=_MAX_CORRUPT)
            if report.bad:
                logger.info(f"{table.name}: left out {report.describe()}")
            tried.update(new.image_ids)
            bad.update(image.image_id for image in report.bad)
        table = table.without_images(bad) if bad else table
        spoken = table.without_empty_captions()
        if len(spoken) < len(table):
            logger.info(
                f"{table.name} in {code}: left out {len(table) - len(spoken):,} empty captions of {len(table):,}"
            )
        retrieval.check_gallery(spoken)
        yield spoken


def _percent(scores: Sequence[Score]) -> list[str]:
    """Show the seven scores, with intervals only of R@1 and the mean, since a terminal is narrow."""
    wide = (0, 3, 6)
    return [tables.plus_minus(one) if i in wide else tables.percent(one.value) for i, one in enumerate(scores)]
