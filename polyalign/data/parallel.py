"""Parallel text: sentences beside their translations, for training without images.

Formats, by what ``parallel.text`` names:

- a file of lines with one sentence for each language, separated by tabs. The first line may be a header of language
  codes. Otherwise the languages are those of ``parallel.langs``, or of the file name (``qu-es.tsv``). Numbers before
  each sentence, as Tatoeba has them, are left out;
- the common path of line-aligned files whose endings are language codes (``corpus`` for ``corpus.qu`` and
  ``corpus.es``, as OPUS and Moses have them);
- a folder of line-aligned files, one for each language (``quy_Latn.dev``, as FLORES-200 has them);
- ``captions``: captions of the same training images in several languages of the recipe's source;
- ``starter``: sentences of the starter world's grammar about scenes of another world;
- ``hub:NAME`` or ``hub:NAME:SUBSET``: a Hugging Face dataset with a column ``translation``, or one for each language.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import regex

from polyalign.config.language import language_codes, load_language
from polyalign.config.schema import Parallel, Recipe
from polyalign.config.source_spec import SourceSpec
from polyalign.data.load import load_source
from polyalign.data.pairs import PairTable, stable_hash
from polyalign.data.readers import files
from polyalign.data.scripts import letters_of
from polyalign.utils.errors import UserError
from polyalign.utils.text import clean

logger = logging.getLogger(__name__)

CAPTIONS, STARTER, HUB = "captions", "starter", "hub:"

_IN_NAME = re.compile(r"(?<![A-Za-z])([a-z]{2,3})[-_]([a-z]{2,3})(?![A-Za-z])")
_SAMPLE = 2_000
_CLOSER = 1.2


@dataclass(frozen=True)
class ParallelText:
    """Sentences that mean the same, row by row: ``rows`` (R, L) has those in ``langs`` (L,), "" where one is missing.

    The first language is the pivot.
    """

    name: str
    langs: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def column(self, lang: str) -> list[str]:
        """Return the sentences of a language, with "" where there is none."""
        place = self.langs.index(lang)
        return [row[place] for row in self.rows]


def load_parallel(
    recipe: Recipe, tested_on: Iterable[PairTable] = (), spoken: Sequence[PairTable] = ()
) -> ParallelText:
    """Load the parallel text of a recipe, in its languages, with the pivot first.

    Args:
        recipe: a recipe with ``parallel``.
        tested_on: tables whose captions must not be trained on: rows with one of them are left out.
        spoken: captions in known languages, to notice languages in the wrong order.

    Raises:
        UserError: the text is missing or malformed, lacks a language, or its languages seem to be in the wrong order.
    """
    assert recipe.parallel is not None
    text = _with_translations(_in_order(read(recipe, recipe.parallel), recipe))
    _check_scripts(text)
    _check_languages(text, spoken)
    held_out = {_plain(caption) for table in tested_on for caption in table.captions}
    kept = [row for row in text.rows if held_out.isdisjoint(map(_plain, row))]
    if len(kept) < len(text):
        logger.info(f"{text.name}: left out {len(text) - len(kept):,} rows with a caption of dev or test")
    if len(kept) < 2:
        raise UserError(f"{text.name} has {len(kept)} rows with two sentences: parallel text needs two rows or more")
    return _drawn(replace(text, rows=tuple(kept)), recipe)


def read(recipe: Recipe, settings: Parallel) -> ParallelText:
    """Read parallel text as it is, with all languages that it states or that are asked for."""
    text, langs = settings.text, settings.langs
    if text == CAPTIONS:
        return _captions(SourceSpec.flat(recipe.source), langs)
    if text == STARTER:
        # Another world: its scenes are not those of the training images.
        size = max(12_000, int(1.2 * (settings.sentences or 0)))  # some are captions of dev or test
        options = {"seed": 1_000_000 + recipe.data.data_seed, "dev_images": 1, "test_images": 1, "train_images": size}
        return _captions(SourceSpec(name=STARTER, options=options), langs)
    if text.startswith(HUB):
        return _hub(text.removeprefix(HUB), langs)
    path = Path(text)
    if path.is_dir():
        return _aligned(_by_language(path, lambda name: name.partition(".")[0]), path, langs)
    if files.is_file(path):
        return _tabbed(path, langs)
    return _aligned(_by_language(path, lambda name: name.removeprefix(f"{path.name}.")), path, langs)


def _captions(spec: SourceSpec, langs: Sequence[str]) -> ParallelText:
    """Return captions of the same image and rank in several languages."""
    if len(langs) < 2:
        known = f" (known: {', '.join(languages)})" if (languages := spec.languages()) else ""
        raise UserError(f"name the languages of the captions with --set parallel.langs=[...]{known}")
    found: dict[tuple[str, int], dict[str, str]] = {}
    for lang in langs:
        table = load_source(spec, lang, "train")
        for caption, image, rank in zip(table.captions, table.image_of, table.caption_ranks(), strict=True):
            found.setdefault((table.image_ids[image], int(rank)), {})[lang] = caption
    rows = tuple(tuple(row.get(lang, "") for lang in langs) for row in found.values())
    return ParallelText(f"captions of {spec.name}", tuple(langs), rows)


def _hub(name: str, langs: Sequence[str]) -> ParallelText:
    from polyalign.data.sources.hub import load_parts

    dataset, _, subset = name.partition(":")
    parts = load_parts(dataset, subset or None)
    part = "train" if "train" in parts else next(iter(parts))
    table = parts[part]
    columns = table.flatten() if "translation" in table.column_names else table
    named = {language_of(column.rpartition(".")[2]): column for column in columns.column_names}
    chosen = _chosen([code for code in named if code is not None], langs, dataset)
    cells = [columns[named[code]] for code in chosen]
    rows = tuple(tuple(str(cell or "") for cell in row) for row in zip(*cells, strict=True))
    return ParallelText(dataset, chosen, rows)


def _tabbed(path: Path, langs: Sequence[str]) -> ParallelText:
    rows = [(number, line.split("\t")) for number, line in enumerate(files.lines(path), start=1) if line.strip()]
    if not rows:
        raise UserError(f"{path} is empty: a line has one sentence for each language, separated by tabs")
    header = [language_of(cell) for cell in rows[0][1]]
    named = [code for code in header if code is not None]
    if len(named) == len(header) > 1:
        rows = rows[1:]
    elif not (named := []) and rows and all(_are_ids(fields) for _, fields in rows[:100]):
        rows = [(number, fields[1::2]) for number, fields in rows]
    width = len(header) if named else len(rows[0][1]) if rows else 0
    if width < 2:
        raise UserError(f"{path}, line 1 has no tab: a line has one sentence for each language, separated by tabs")
    for number, fields in rows:
        if len(fields) != width:
            raise UserError(f"{path}, line {number} has {len(fields)} columns, the first line has {width}")
    stated = named or _stated(path, langs, width)
    chosen = _chosen(stated, langs, path)
    places = [stated.index(code) for code in chosen]
    return ParallelText(path.name, chosen, tuple(tuple(fields[i] for i in places) for _, fields in rows))


def _stated(path: Path, langs: Sequence[str], width: int) -> list[str]:
    """Return the languages of columns without a header."""
    in_name = _IN_NAME.search(path.name.partition(".")[0])
    stated = list(langs)
    if in_name is not None and width == 2:
        stated = [language_of(code) or code for code in in_name.groups()]
    if len(stated) != width:
        raise UserError(
            f"{path} has {width} columns and states no languages: add a first line of language codes, such as "
            f"qu<tab>es, or name all {width} in their order with --set parallel.langs=[...]"
        )
    for code in stated:
        load_language(code)
    return stated


def _are_ids(fields: Sequence[str]) -> bool:
    return len(fields) >= 4 and len(fields) % 2 == 0 and all(field.strip().isdigit() for field in fields[::2])


def _by_language(path: Path, code: Callable[[str], str]) -> dict[str, Path]:
    """Return the files in a folder, or those that begin with ``path``, by the language in their name."""
    folder = path if path.is_dir() else path.parent
    names = files.entries(folder) if folder.is_dir() else []
    own = [name for name in names if path.is_dir() or name.startswith(f"{path.name}.")]
    found: dict[str, Path] = {}
    for name in own:
        lang = language_of(code(name.removesuffix(".gz").removesuffix(".bz2")))
        if lang is None:
            continue
        if lang in found:
            raise UserError(f"{found[lang]} and {folder / name} are both of the language {lang}: give one file")
        found[lang] = folder / name
    if len(found) < 2:
        raise UserError(
            f"there is no parallel text at {path}: give a TSV file, the common path of files such as corpus.qu and "
            f"corpus.es, a folder of files such as quy_Latn.dev, {CAPTIONS}, {STARTER} or {HUB}NAME"
        )
    return found


def _aligned(paths: Mapping[str, Path], place: Path, langs: Sequence[str]) -> ParallelText:
    chosen = _chosen(list(paths), langs, place)
    columns = [files.lines(paths[code]) for code in chosen]
    for code, column in zip(chosen, columns, strict=True):
        if len(column) != len(columns[0]):
            raise UserError(
                f"{paths[code]} has {len(column):,} lines, {paths[chosen[0]]} has {len(columns[0]):,}: "
                "line-aligned files have the same number of lines"
            )
    return ParallelText(place.name, chosen, tuple(zip(*columns, strict=True)))


def language_of(name: str) -> str | None:
    """Return the code of a language given by its code, FLORES-200 code or ISO 639-3 code; None if it is none."""
    return _names(tuple(language_codes())).get(_folded(name.strip().strip('"')))


@cache
def _names(codes: tuple[str, ...]) -> dict[str, str]:
    names: dict[str, str] = {}
    for code in codes:
        flores = _folded(load_language(code).flores or code)
        for name in (_folded(code), flores, flores.partition("-")[0]):
            names.setdefault(name, code)
    return names


def _folded(code: str) -> str:
    return code.replace("_", "-").casefold()


def _chosen(stated: Sequence[str], langs: Sequence[str], where: object) -> tuple[str, ...]:
    """Return the languages to use: those asked for, or all."""
    if twice := [code for code, count in Counter(stated).items() if count > 1]:
        raise UserError(f"{where} has two columns in the language {twice[0]}")
    if absent := [code for code in langs if code not in stated]:
        raise UserError(f"{where} has no sentences in {absent[0]}: it has {', '.join(stated)}")
    chosen = tuple(langs) or tuple(stated)
    if len(chosen) < 2:
        raise UserError(f"{where}: parallel text has two languages or more, not only {', '.join(chosen) or 'none'}")
    return chosen


def _in_order(text: ParallelText, recipe: Recipe) -> ParallelText:
    """Put the pivot first."""
    assert recipe.parallel is not None
    pivot = recipe.parallel.pivot or (recipe.lang if recipe.lang in text.langs else text.langs[0])
    if pivot not in text.langs:
        raise UserError(f"parallel.pivot: {text.name} has no sentences in {pivot}: it has {', '.join(text.langs)}")
    order = [text.langs.index(pivot), *(i for i, lang in enumerate(text.langs) if lang != pivot)]
    langs = tuple(text.langs[i] for i in order)
    return replace(text, langs=langs, rows=tuple(tuple(row[i].strip() for i in order) for row in text.rows))


def _with_translations(text: ParallelText) -> ParallelText:
    """Leave out rows with fewer than two sentences."""
    kept = tuple(row for row in text.rows if sum(map(bool, row)) > 1)
    if len(kept) < len(text):
        logger.info(f"{text.name}: left out {len(text) - len(kept):,} of {len(text):,} rows with an empty sentence")
    return replace(text, rows=kept)


def _check_scripts(text: ParallelText) -> None:
    """Check that most letters of each language are of its script."""
    for lang in text.langs:
        script = load_language(lang).script
        own = letters_of(script)
        sample = "".join(text.column(lang)[:_SAMPLE])
        letters = len(regex.findall(r"\p{L}", sample))
        if own is not None and letters and len(own.findall(sample)) < letters / 2:
            raise UserError(
                f"{text.name}: most letters of the sentences in {lang} are not in its script ({script}): are the "
                "languages in the wrong order?"
            )


def _check_languages(text: ParallelText, spoken: Sequence[PairTable]) -> None:
    """Check with captions in known languages that no two languages are swapped, by the trigrams of their letters."""
    for table in spoken:
        if table.lang not in text.langs:
            continue
        captions = _trigrams(table.captions)
        near = {lang: _similarity(captions, _trigrams(text.column(lang))) for lang in text.langs}
        closest = max(near, key=near.__getitem__)
        if near[closest] > _CLOSER * near[table.lang]:
            raise UserError(
                f"{text.name}: the sentences in {closest} resemble the captions in {table.lang} more than those in "
                f"{table.lang} do: are the languages in the wrong order?"
            )


def _trigrams(sentences: Sequence[str]) -> Counter[str]:
    found: Counter[str] = Counter()
    for sentence in sentences[:_SAMPLE]:
        padded = f" {_plain(sentence)} "
        found.update(padded[i : i + 3] for i in range(len(padded) - 2))
    return found


def _similarity(one: Counter[str], other: Counter[str]) -> float:
    """Return the cosine of two counts."""
    dot = sum(count * other[key] for key, count in one.items())
    sizes = [float(np.sqrt(sum(count * count for count in each.values()))) for each in (one, other)]
    return dot / (sizes[0] * sizes[1]) if all(sizes) else 0.0


def _plain(sentence: str) -> str:
    return " ".join(sentence.casefold().split())


def _drawn(text: ParallelText, recipe: Recipe) -> ParallelText:
    """Return a random subset of the rows; a smaller one is contained in every larger one."""
    assert recipe.parallel is not None
    wanted = recipe.parallel.sentences
    if wanted is None:
        return text
    if wanted > len(text):
        raise UserError(f"{text.name} has {len(text):,} rows, fewer than parallel.sentences = {wanted:,}")
    places = np.array([stable_hash(f"{recipe.data.data_seed}\n{clean(row)}") for row in text.rows], dtype=np.uint64)
    chosen = np.sort(np.argsort(places, kind="stable")[:wanted])
    return replace(text, rows=tuple(text.rows[i] for i in chosen))
