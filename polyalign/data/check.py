"""What a careful reader would find in a user's data before training on it."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np
from pydantic import BaseModel, ConfigDict
from rich.markup import escape
from rich.table import Table

from polyalign.config import language as languages
from polyalign.config.language import Lang
from polyalign.config.recipe import Recipe
from polyalign.data import image_check
from polyalign.data.image_check import ImageReport
from polyalign.data.load import load_table
from polyalign.data.pairs import Origin, PairTable
from polyalign.utils.progress import progress, progress_bars

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What the Unicode names of a script's letters begin with, by its ISO 15924 code.
_LETTERS: Final = {
    "Adlm": ("ADLAM",), "Arab": ("ARABIC",), "Armn": ("ARMENIAN",), "Beng": ("BENGALI",), "Cans": ("CANADIAN",),
    "Cher": ("CHEROKEE",), "Cyrl": ("CYRILLIC",), "Deva": ("DEVANAGARI",), "Ethi": ("ETHIOPIC",), "Geor": ("GEORGIAN",),
    "Grek": ("GREEK",), "Gujr": ("GUJARATI",), "Guru": ("GURMUKHI",), "Hang": ("HANGUL",), "Hani": ("CJK",),
    "Hans": ("CJK",), "Hant": ("CJK",), "Hebr": ("HEBREW",), "Jpan": ("CJK", "HIRAGANA", "KATAKANA"),
    "Khmr": ("KHMER",), "Knda": ("KANNADA",), "Kore": ("HANGUL", "CJK"), "Laoo": ("LAO",), "Latn": ("LATIN",),
    "Mlym": ("MALAYALAM",), "Mong": ("MONGOLIAN",), "Mymr": ("MYANMAR",), "Nkoo": ("NKO",), "Olck": ("OL CHIKI",),
    "Orya": ("ORIYA",), "Sinh": ("SINHALA",), "Syrc": ("SYRIAC",), "Taml": ("TAMIL",), "Telu": ("TELUGU",),
    "Tfng": ("TIFINAGH",), "Thaa": ("THAANA",), "Thai": ("THAI",), "Tibt": ("TIBETAN",), "Vaii": ("VAI",),
}  # fmt: skip
_WITHOUT_SPACES: Final = ("Hani", "Hans", "Hant", "Jpan", "Khmr", "Laoo", "Mymr", "Thai", "Tibt")
_EXAMPLES: Final = 3
_BATCH: Final = 1000


class Finding(BaseModel):
    """How many captions something is the case for, and the first few as ``image id: caption``."""

    model_config = ConfigDict(frozen=True)

    count: int
    examples: tuple[str, ...]


class TokenReport(BaseModel):
    """What the text tower's tokenizer makes of the captions.

    Rates are over all captions. ``unknown_rate`` is the share of subwords that are the unknown token. A word is what
    stands between spaces, so a script that has none gets no ``subwords_per_word``.
    """

    model_config = ConfigDict(frozen=True)

    max_tokens: int
    longest: int
    too_long: Finding
    unknown_rate: float
    subwords_per_word: float | None
    subwords_per_character: float


class DataReport(BaseModel):
    """What was found in one table.

    ``repeated`` captions stand with their image already, ``shared`` ones with another image too (white space and case
    apart): nothing can tell those images apart by them. ``other_script`` captions have fewer than half of their
    letters in the language's script, or no letters at all; it is none where the script is not known here.
    """

    model_config = ConfigDict(frozen=True)

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
    tokens: TokenReport | None


def check_recipe(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> list[DataReport]:
    """Check all splits of a recipe's source in its language, with the tokenizer of its text tower.

    Raises:
        UserError: the source cannot be loaded.
    """
    lang = languages.load(recipe.lang)
    source, config = recipe.plugin("source")
    splits = source.splits(config) if hasattr(source, "splits") else ("train", "dev", "test")
    tables = [load_table(recipe, split) for split in splits]
    with progress_bars():
        return [check(table, lang, tokenizer, recipe.text.max_tokens) for table in tables]


def check(
    table: PairTable, lang: Lang, tokenizer: PreTrainedTokenizerBase | None = None, max_tokens: int = 64
) -> DataReport:
    """Open every image and read every caption; without a tokenizer nothing is said of tokens."""
    each = np.bincount(table.image_of, minlength=len(table.images)) if table.images else np.zeros(1, dtype=np.int64)
    repeated, shared = _duplicates(table)
    letters = _LETTERS.get(lang.script)
    return DataReport(
        name=table.name,
        lang=lang.code,
        script=lang.script,
        origin=table.origin,
        captions=len(table),
        captions_per_image=(int(each.min()), float(each.mean()), int(each.max())),
        images=image_check.inspect_images(table),
        empty=_finding(table, (c for c, caption in enumerate(table.captions) if not caption.strip())),
        repeated=_finding(table, repeated),
        shared=_finding(table, shared),
        other_script=None if letters is None else _finding(table, _in_other_script(table.captions, letters)),
        tokens=None if tokenizer is None else _tokens(table, lang, tokenizer, max_tokens),
    )


def _finding(table: PairTable, captions: Iterable[int]) -> Finding:
    found = list(captions)
    examples = tuple(f"{table.image_ids[table.image_of[c]]}: {table.captions[c]}" for c in found[:_EXAMPLES])
    return Finding(count=len(found), examples=examples)


def _duplicates(table: PairTable) -> tuple[list[int], list[int]]:
    """Give the captions that repeat one of the same image, and those that another image has too; empty ones aside."""
    texts = [" ".join(caption.casefold().split()) for caption in table.captions]
    images_with: dict[str, set[int]] = {}
    repeated = []
    for c, (text, image) in enumerate(zip(texts, table.image_of.tolist(), strict=True)):
        images = images_with.setdefault(text, set())
        if text and image in images:
            repeated.append(c)
        images.add(image)
    return repeated, [c for c, text in enumerate(texts) if text and len(images_with[text]) > 1]


def _in_other_script(captions: Iterable[str], letters: tuple[str, ...]) -> Iterator[int]:
    for c, caption in enumerate(captions):
        names = [_letter_name(character) for character in caption if character.isalpha()]
        own = sum(name.startswith(letters) for name in names)
        if caption.strip() and (not names or own < len(names) / 2):
            yield c


@cache
def _letter_name(character: str) -> str:
    return unicodedata.name(character, "")


def _tokens(table: PairTable, lang: Lang, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> TokenReport:
    """Tokenize all captions, cutting none."""
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
    return TokenReport(
        max_tokens=max_tokens,
        longest=max(lengths, default=0),
        too_long=_finding(table, (c for c, length in enumerate(lengths) if length > max_tokens)),
        unknown_rate=unknown / subwords,
        subwords_per_word=None if lang.script in _WITHOUT_SPACES else subwords / max(1, words),
        subwords_per_character=subwords / max(1, characters),
    )


def render(report: DataReport) -> Table:
    """Show a report as a table: what, how many, and the first few."""
    table = Table(title=f"{report.name} ({report.lang}, {report.origin} captions)", title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("", no_wrap=True, justify="right")
    table.add_column("such as", overflow="fold")
    low, mean, high = report.captions_per_image
    table.add_row("images", f"{report.images.images:,}", "")
    table.add_row("captions", f"{report.captions:,}", "")
    table.add_row("captions an image", f"{mean:.2f}", f"{low} to {high}")
    table.add_row("missing images", *_bad_cells(report.images.missing, reason=False))
    table.add_row("corrupt images", *_bad_cells(report.images.corrupt, reason=True))
    table.add_row("empty captions", *_cells(report.empty, report.captions))
    table.add_row("captions repeated at their image", *_cells(report.repeated, report.captions))
    table.add_row("captions shared by several images", *_cells(report.shared, report.captions))
    script = f"captions not in {report.script} script"
    table.add_row(
        script, *(_cells(report.other_script, report.captions) if report.other_script else ("not checked", ""))
    )
    for row in _token_rows(report):
        table.add_row(*row)
    return table


def _token_rows(report: DataReport) -> Iterator[tuple[str, str, str]]:
    tokens = report.tokens
    if tokens is None:
        return
    yield (f"captions over {tokens.max_tokens} tokens", *_cells(tokens.too_long, report.captions))
    yield "longest caption", f"{tokens.longest} tokens", ""
    yield "unknown tokens", f"{tokens.unknown_rate:.2%}", ""
    if tokens.subwords_per_word is not None:
        yield "subwords a word", f"{tokens.subwords_per_word:.2f}", ""
    yield "subwords a character", f"{tokens.subwords_per_character:.2f}", ""


def _cells(finding: Finding, captions: int) -> tuple[str, str]:
    share = f" ({finding.count / captions:.1%})" if finding.count else ""
    return f"{finding.count:,}{share}", "\n".join(_short(example) for example in finding.examples)


def _bad_cells(bad: tuple[image_check.BadImage, ...], *, reason: bool) -> tuple[str, str]:
    shown = (f"{one.image_id}: {one.reason}" if reason else one.image_id for one in bad[:_EXAMPLES])
    return f"{len(bad):,}", "\n".join(_short(line) for line in shown)


def _short(text: str) -> str:
    """Put it on one line, and keep rich from reading brackets as markup."""
    line = " ".join(text.split())
    return escape(line if len(line) <= 60 else f"{line[:59]}…")
