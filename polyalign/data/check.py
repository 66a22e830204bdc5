"""Check a user's data before training: images, duplicates, scripts and tokenization."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeGuard

import numpy as np
import pandas as pd
from pydantic import BaseModel
from rich.table import Column

from polyalign.config.language import Lang, load_language
from polyalign.config.schema import Recipe
from polyalign.data import image_check
from polyalign.data.image_check import ImageReport
from polyalign.data.leakage import find_leaks, near_duplicates, refuse
from polyalign.data.load import load_table, refuse_unlearnable
from polyalign.data.pairs import IMAGE_SUFFIXES, FileImage, ImageRef, Origin, PairTable, captions_by
from polyalign.data.scripts import in_other_script, letters_of
from polyalign.utils.errors import UserError
from polyalign.utils.plain_table import PlainTable
from polyalign.utils.progress import progress, progress_bars
from polyalign.utils.text import clean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_EXAMPLES: Final = 3
_BATCH: Final = 1000
_LOOP: Final = 6  # words in the shortest caption that counts as looping
_MANY_UNKNOWN: Final = 0.01


class Finding(BaseModel, frozen=True):
    """Number of captions with a property, and the first few as ``image id: caption``."""

    count: int
    examples: tuple[str, ...]


class Subwords(BaseModel, frozen=True):
    """How a tokenizer splits captions.

    ``unknown_rate`` is the share of subwords that are the unknown token. Words are split at spaces, so a script
    without spaces has no ``subwords_per_word``.
    """

    unknown_rate: float
    subwords_per_word: float | None
    subwords_per_character: float


class TokenReport(Subwords):
    """Statistics of the text tower's tokenizer over all captions."""

    max_tokens: int
    longest: int
    too_long: Finding


class DataReport(BaseModel, frozen=True):
    """Results for one table.

    ``repeated`` captions duplicate another caption of the same image; ``shared`` captions also belong to another image
    (ignoring case and white space), so retrieval cannot tell the images apart. ``other_script`` captions have fewer
    than half of their letters in the language's script, or no letters; it is None if the script is not in Unicode.
    ``looping`` captions repeat one word over and over, as failed machine translations do. ``lookalike`` images look
    like an earlier one. ``unnamed`` is an image name without its ending, such as ``001`` for ``001.jpg``.
    """

    name: str
    lang: str
    script: str
    origin: Origin
    captions: int
    captions_per_image: tuple[int, float, int]
    images: ImageReport
    empty: Finding
    repeated: Finding
    shared: Finding
    other_script: Finding | None
    looping: Finding
    lookalike: Finding
    unnamed: str | None
    tokens: TokenReport | None


def check_recipe(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> tuple[list[DataReport], list[UserError]]:
    """Check the splits of a recipe's source in its language, with the tokenizer of its text tower.

    Return the reports, and the errors with which training would refuse the splits: one is empty, too many images are
    unreadable, or an image is in two splits.

    Raises:
        UserError: no split can be loaded.
    """
    lang = load_language(recipe.lang)
    source, config = recipe.plugin("source")
    tables: list[PairTable] = []
    errors: list[UserError] = []
    for split in source.splits(config) if hasattr(source, "splits") else ("train", "dev", "test"):
        try:
            tables.append(load_table(recipe, split))
            if split == "train":
                refuse_unlearnable(tables[-1])
        except UserError as error:
            errors.append(error)
    if not tables:
        raise errors[0]
    with progress_bars():
        reports = [check(table, lang, tokenizer, recipe.text.max_tokens) for table in tables]
        return reports, [*errors, *_refusals(recipe, tables, reports)]


def _refusals(recipe: Recipe, tables: Sequence[PairTable], reports: Sequence[DataReport]) -> Iterator[UserError]:
    """Yield the errors with which training would refuse unreadable images, and images of one split in another."""
    for table, report in zip(tables, reports, strict=True):
        try:
            image_check.refuse_corrupt(table.name, report.images, recipe.data.max_corrupt)
        except UserError as error:
            yield error
    for one, other in combinations(tables, 2) if recipe.data.leakage == "refuse" else ():
        try:
            refuse(find_leaks(one, other))
        except UserError as error:
            yield error


def check(
    table: PairTable, lang: Lang, tokenizer: PreTrainedTokenizerBase | None = None, max_tokens: int = 64
) -> DataReport:
    """Open every image and read every caption; ``tokens`` is None without a tokenizer."""
    images = image_check.inspect_images(table)
    each = np.bincount(table.image_of, minlength=len(table.images)) if table.images else np.zeros(1, dtype=np.int64)
    repeated, shared = _duplicates(table)
    letters = letters_of(lang.script)
    tokens = None
    if tokenizer is not None:
        lengths, rates = _subwords(table, lang, tokenizer)
        tokens = TokenReport(
            max_tokens=max_tokens,
            longest=max(lengths, default=0),
            too_long=_finding(table, (c for c, length in enumerate(lengths) if length > max_tokens)),
            **rates,
        )
    return DataReport(
        name=table.name,
        lang=lang.code,
        script=lang.script,
        origin=table.origin,
        captions=len(table),
        captions_per_image=(int(each.min()), float(each.mean()), int(each.max())),
        images=images,
        empty=_finding(table, (c for c, caption in enumerate(table.captions) if not caption.strip())),
        repeated=_finding(table, repeated),
        shared=_finding(table, shared),
        other_script=None if letters is None else _finding(table, in_other_script(table.captions, letters)),
        looping=_finding(table, _looping(table.captions)),
        lookalike=_lookalike(table),
        unnamed=_unnamed(table),
        tokens=tokens,
    )


def _finding(table: PairTable, captions: Iterable[int]) -> Finding:
    found = list(captions)
    examples = tuple(f"{table.image_ids[table.image_of[c]]}: {table.captions[c]}" for c in found[:_EXAMPLES])
    return Finding(count=len(found), examples=examples)


def _duplicates(table: PairTable) -> tuple[list[int], list[int]]:
    """Return captions repeated at one image and captions shared by several images, without empty captions."""
    texts = [" ".join(caption.casefold().split()) for caption in table.captions]
    rows = pd.DataFrame({"text": texts, "image": table.image_of})
    rows = rows[rows["text"] != ""]
    shared = rows.groupby("text")["image"].transform("nunique") > 1
    return list(rows.index[rows.duplicated()]), list(rows.index[shared])


def _looping(captions: Iterable[str]) -> Iterator[int]:
    for c, caption in enumerate(captions):
        words = caption.casefold().split()
        if len(words) >= _LOOP and max(Counter(words).values()) > len(words) / 2:
            yield c


def _lookalike(table: PairTable) -> Finding:
    first_of = near_duplicates(table.images).tolist()
    pairs = [(i, first) for i, first in enumerate(first_of) if i != first]
    examples = tuple(f"{table.image_ids[i]} and {table.image_ids[first]}" for i, first in pairs[:_EXAMPLES])
    return Finding(count=len(pairs), examples=examples)


def _unnamed(table: PairTable) -> str | None:
    """Return the first missing image that exists with an ending of image files, if most missing ones do."""
    paths = {one: image.path for one, image in zip(table.image_ids, table.images, strict=True) if _is_missing(image)}
    found = [
        (image_id, beside)
        for image_id, path in paths.items()
        if (beside := next(filter(Path.is_file, _with_endings(path)), None)) is not None
    ]
    return f"{found[0][0]} (there is {found[0][1].name})" if 2 * len(found) > len(paths) else None


def _is_missing(image: ImageRef) -> TypeGuard[FileImage]:
    return isinstance(image, FileImage) and not image.path.exists()


def _with_endings(path: Path) -> Iterator[Path]:
    return (path.with_name(f"{path.name}{suffix}") for suffix in IMAGE_SUFFIXES)


def verdict(reports: Sequence[DataReport]) -> tuple[bool, str]:
    """Return whether the data can be trained on, and a sentence about what to mend."""
    unnamed = next((report.unnamed for report in reports if report.unnamed), None)
    if unnamed is not None:
        return False, f"image names lack their ending: {unnamed}"
    if all(len(report.images.missing) == report.images.images for report in reports):
        return False, "no image was found: check the image folder (source.images) and the names in the table"
    found = {
        "missing or corrupt images": sum(len(report.images.bad) for report in reports),
        "images that look like another": sum(report.lookalike.count for report in reports),
        "captions of one repeated word": sum(report.looping.count for report in reports),
        "empty captions": sum(report.empty.count for report in reports),
        "captions in another script": sum(report.other_script.count for report in reports if report.other_script),
        "captions cut at the token limit": sum(report.tokens.too_long.count for report in reports if report.tokens),
    }
    problems = ", ".join(f"{count:,} {what}" for what, count in found.items() if count)
    return True, f"can be trained on; look at: {problems}" if problems else "can be trained on; nothing to mend"


def _subwords(table: PairTable, lang: Lang, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], dict[str, Any]]:
    """Return the number of tokens of every caption without truncation, and the fields of ``Subwords``."""
    special = tokenizer.num_special_tokens_to_add()
    lengths: list[int] = []
    unknown = 0
    for start in range(0, len(table), _BATCH):
        batch = list(table.captions[start : start + _BATCH])
        for ids in tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]:
            lengths.append(len(ids) + special)
            unknown += Counter(ids)[tokenizer.unk_token_id]
        progress(f"tokenizing {table.name}", min(start + _BATCH, len(table)), len(table))
    subwords = max(1, sum(lengths) - special * len(lengths))
    words = sum(len(caption.split()) for caption in table.captions)
    characters = sum(not character.isspace() for caption in table.captions for character in caption)
    return lengths, {
        "unknown_rate": unknown / subwords,
        "subwords_per_word": None if not lang.has_spaces else subwords / max(1, words),
        "subwords_per_character": subwords / max(1, characters),
    }


class TowerFit(Subwords):
    """How well the tokenizer of a recipe's text tower fits the captions."""

    recipe: str
    model: str


def rank_towers(
    table: PairTable, lang: Lang, tokenizers: Mapping[tuple[str, str], PreTrainedTokenizerBase]
) -> list[TowerFit]:
    """Rank text towers by how few subwords they need for the captions; those with many unknown tokens come last.

    ``tokenizers`` are by recipe and model. A tower that has seen little of a language splits its words into many short
    pieces.
    """
    fits = [
        TowerFit(recipe=recipe, model=model, **_subwords(table, lang, tokenizer)[1])
        for (recipe, model), tokenizer in tokenizers.items()
    ]
    return sorted(fits, key=lambda fit: (fit.unknown_rate > _MANY_UNKNOWN, fit.subwords_per_character))


def render_towers(fits: Sequence[TowerFit], lang: Lang) -> PlainTable:
    """Format a ranking as a table; the first tower is the recommended one."""
    table = PlainTable(
        *(Column(name, overflow="fold") for name in ("recipe", "text tower")),
        *(Column(name, justify="right") for name in ("subwords per word", "per character", "unknown")),
        title=f"text towers by their tokenizer on these {lang.english_name} captions",
        title_justify="left",
        caption=f"recommended: --recipe {fits[0].recipe} (fewest subwords)" if fits else None,
    )
    for fit in fits:
        per_word = "-" if fit.subwords_per_word is None else f"{fit.subwords_per_word:.2f}"
        table.add_row(fit.recipe, fit.model, per_word, f"{fit.subwords_per_character:.2f}", f"{fit.unknown_rate:.2%}")
    return table


def render(report: DataReport) -> PlainTable:
    """Format a report as a table of counts and examples."""
    table = PlainTable(
        Column(no_wrap=True), Column(no_wrap=True, justify="right"), Column("examples", overflow="fold"),
        title=f"{report.name} ({report.lang}, {captions_by(report.origin)})", title_justify="left",
    )  # fmt: skip

    def add(name: str, value: str, examples: Sequence[str] = ()) -> None:
        first, *others = [clean(example, 60) for example in examples[:_EXAMPLES]] or [""]
        table.add_row(name, value, first)
        for other in others:
            table.add_row("", "", other)

    low, mean, high = report.captions_per_image
    add("images", f"{report.images.images:,}")
    add("captions", f"{report.captions:,}")
    add("captions per image", f"{mean:.2f}", [f"{low} to {high}"])
    missing, corrupt = report.images.missing, report.images.corrupt
    add("missing images", f"{len(missing):,}", [one.image_id for one in missing])
    add("corrupt images", f"{len(corrupt):,}", [f"{one.image_id}: {one.reason}" for one in corrupt])
    tokens = report.tokens
    findings = {
        "empty captions": report.empty,
        "duplicate captions of one image": report.repeated,
        "captions shared by images": report.shared,
        "captions of one repeated word": report.looping,
        "images like an earlier one": report.lookalike,
        f"captions not in {report.script} script": report.other_script,
        **({f"captions over {tokens.max_tokens} tokens": tokens.too_long} if tokens else {}),
    }
    for name, finding in findings.items():
        if finding is None:
            add(name, "not checked")
        else:
            of = report.images.images if finding is report.lookalike else report.captions
            share = f" ({finding.count / of:.1%})" if finding.count else ""
            add(name, f"{finding.count:,}{share}", finding.examples)
    if tokens is not None:
        add("longest caption", f"{tokens.longest} tokens")
        add("unknown tokens", f"{tokens.unknown_rate:.2%}")
        if tokens.subwords_per_word is not None:
            add("subwords per word", f"{tokens.subwords_per_word:.2f}")
        add("subwords per character", f"{tokens.subwords_per_character:.2f}")
    return table
