"""Column lookup, and selection of the rows of a language and split, in user-provided tables."""

from __future__ import annotations

import math
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from pydantic import BaseModel

from polyalign.config.language import Lang
from polyalign.config.values import Code, Seed, Share
from polyalign.data.pairs import Origin, Split, stable_hash
from polyalign.data.readers.sheet import Sheet
from polyalign.utils.errors import UserError, did_you_mean
from polyalign.utils.text import clean

IMAGE_NAMES = ("image", "image_path", "file_name", "filename", "file", "path", "img_path", "img")
_CAPTION_NAMES = ("caption", "captions", "text", "sentence", "sentences")
_LONGEST_CAPTION = 100_000  # characters
_NAMED_COLUMNS = 50
_NUMBERED_CAPTION = re.compile(r"caption[_ -]?\d+", re.IGNORECASE)
_LANG_NAMES = ("lang", "language")
_SPLIT_NAMES = ("split",)
_SPLITS: dict[str, Split] = {
    "train": "train", "training": "train", "dev": "dev", "val": "dev", "valid": "dev", "validation": "dev",
    "test": "test", "testing": "test",
}  # fmt: skip


class Columns(BaseModel, frozen=True, extra="forbid"):
    """Column names and splits of a caption table.

    Columns that are not given are looked up under common names. Multiple captions per image can be separate rows, a
    list in one column, or several caption columns. In column names ``{lang}`` is replaced by the language code;
    ``caption_{lang}`` is one of the common names. If there is a language column, only rows of the requested language
    are read. ``lang`` is the language of all captions where no column states it. ``origin`` says who wrote them
    (``human``, ``machine``).

    If there is a split column (``train``, ``dev`` or ``val``, ``test``), it defines the splits. Otherwise an image is
    assigned to a split by a hash of its id and ``split_seed``, so that its captions in all languages stay together and
    adding images does not move existing ones.
    """

    image_column: str | None = None
    caption_column: str | tuple[str, ...] | None = None
    id_column: str | None = None
    lang_column: str | None = None
    split_column: str | None = None
    dev_share: Share = 0.1
    test_share: Share = 0.1
    split_seed: Seed = 0
    lang: Code | None = None
    origin: Origin = "unknown"


def find(sheet: Sheet, setting: str, wanted: str | None, usual: Sequence[str]) -> str | None:
    """Return the column ``wanted``, else the first whose name is in ``usual`` (ignoring case), else None.

    Raises:
        UserError: ``wanted`` does not exist; the message lists the available columns.
    """
    if wanted is not None:
        if wanted not in sheet.names:
            known = did_you_mean(wanted, [clean(name, 40) for name in sheet.names[:_NAMED_COLUMNS]])
            raise UserError(f'{sheet.where} has no column "{wanted}" ({setting}): {known}')
        return wanted
    folded = {name.casefold(): name for name in reversed(sheet.names)}
    return next((folded[name] for name in usual if name in folded), None)


def need(sheet: Sheet, setting: str, wanted: str | None, usual: Sequence[str]) -> str:
    """Return a required column, see ``find``.

    Raises:
        UserError: the column does not exist; the message lists the available columns.
    """
    found = find(sheet, setting, wanted, usual)
    if found is None:
        raise UserError(
            f"{sheet.where} has no column called {' or '.join(usual[:3])}; its columns are "
            f"{clean(', '.join(sheet.names), 300)}: "
            f"set it with source.{setting} (or is the header line missing?)"
        )
    return found


def ids_in(sheet: Sheet, column: str, image: Callable[[int], object], probed: int | None = None) -> list[str]:
    """Read the ids of images from a column; for ``image`` and ``probed`` see ``two_images``.

    Raises:
        UserError: a cell is blank or contains a list, or two rows have one id and different images; names the rows.
    """
    values = sheet.column(column)
    for row, value in enumerate(values):
        is_nan = isinstance(value, float) and math.isnan(value)
        if value is None or is_nan or isinstance(value, list | dict) or not str(value).strip():
            raise UserError(f'{sheet.row_name(row)}: "{column}" must identify an image, not {reprlib.repr(value)}')
    ids = [str(value) for value in values]
    if two := two_images(ids, image, probed):
        one, other = map(sheet.row_name, two)
        raise UserError(f'{other}: the id ("{column}") is that of another image ({one}): choose another column')
    return ids


def two_images(ids: Iterable[str], image: Callable[[int], object], probed: int | None = None) -> tuple[int, int] | None:
    """Return two rows with one id and different images, or None.

    Args:
        ids: the id of each row.
        image: returns what identifies the image of a row.
        probed: number of repeated ids to look at; None is all.
    """
    first: dict[str, int] = {}
    repeated = ((first[name], row) for row, name in enumerate(ids) if first.setdefault(name, row) != row)
    return next(((one, other) for one, other in islice(repeated, probed) if image(one) != image(other)), None)


def select(
    sheet: Sheet, ids: Sequence[str], config: Columns, lang: Lang, split: str | None
) -> Iterator[tuple[str, str, int]]:
    """Yield image id, caption and row number of all pairs in a language and split; ``split=None`` selects all splits.

    Raises:
        UserError: a column is missing, a row is malformed, or no pairs are left.
    """
    columns = _caption_columns(sheet, config, lang)
    rows = _in_lang(sheet, config, lang)
    if split is not None:
        rows = _in_split(sheet, ids, config, rows, split)
    values = [sheet.column(name) for name in columns]
    for row in rows:
        for value in values:
            for caption in _captions(value[row], optional=len(columns) > 1, where=sheet.row_name(row)):
                yield ids[row], caption, row


def _caption_columns(sheet: Sheet, config: Columns, lang: Lang) -> list[str]:
    wanted = config.caption_column
    if wanted is not None:
        names = [wanted] if isinstance(wanted, str) else list(wanted)
        return [need(sheet, "caption_column", name.replace("{lang}", lang.code), ()) for name in names]
    numbered = [name for name in sheet.names if _NUMBERED_CAPTION.fullmatch(name)]
    one = find(sheet, "caption_column", None, (f"caption_{lang.code}", *_CAPTION_NAMES))
    return [one] if one else numbered or [need(sheet, "caption_column", None, _CAPTION_NAMES)]


def _captions(value: Any, *, optional: bool, where: str) -> list[str]:
    """Return the captions in a cell; a blank cell is one empty caption, or no caption if ``optional``."""
    if value is None or value == "":
        return [] if optional else [""]
    items = value if isinstance(value, list | tuple) else [value]
    for item in items:
        if not isinstance(item, str):
            raise UserError(f"{where}: a caption must be a string or a list of strings, not {reprlib.repr(item)}")
        if len(item) > _LONGEST_CAPTION or "\0" in item:
            problem = f"has {len(item):,} characters" if len(item) > _LONGEST_CAPTION else "contains a NUL character"
            raise UserError(f"{where}: the caption {problem}, so the file is damaged: {reprlib.repr(item)}")
    return [item.strip() for item in items]


def _in_lang(sheet: Sheet, config: Columns, lang: Lang) -> list[int]:
    name = find(sheet, "lang_column", config.lang_column, _LANG_NAMES)
    if name is None:
        if config.lang not in (None, lang.code):
            raise UserError(f"{sheet.where} has captions in {config.lang} (source.lang), not in {lang.code}")
        return list(range(sheet.rows))
    codes = [str(value) for value in sheet.column(name)]
    accepted = {_fold(code) for code in (lang.code, lang.flores) if code}
    rows = [row for row, code in enumerate(codes) if _fold(code) in accepted]
    if not rows:
        raise UserError(f'{sheet.where} has no row with {name} "{lang.code}": it has {_tally(codes)}')
    return rows


def _fold(code: str) -> str:
    return code.strip().replace("_", "-").casefold()


def _in_split(sheet: Sheet, ids: Sequence[str], config: Columns, rows: list[int], split: str) -> list[int]:
    name = find(sheet, "split_column", config.split_column, _SPLIT_NAMES)
    if name is not None:
        values = [str(value).strip() for value in sheet.column(name)]
        for row in rows:
            if values[row].casefold() not in _SPLITS:
                unknown = clean(values[row], 60)
                raise UserError(f'{sheet.row_name(row)}: "{unknown}" is not a split ({did_you_mean(unknown, _SPLITS)})')
        found = [row for row in rows if _SPLITS[values[row].casefold()] == split]
        if not found:
            raise UserError(f'{sheet.where} has no row with {name} "{split}": it has {_tally(values[r] for r in rows)}')
        return found
    found = [row for row in rows if hashed_split(ids[row], config) == split]
    if not found:
        count = len({ids[row] for row in rows})
        raise UserError(
            f"none of the {count:,} images in {sheet.where} is assigned to the {split} split "
            f"(source.dev_share = {config.dev_share:g}, source.test_share = {config.test_share:g}): "
            "increase that share or add a split column"
        )
    return found


def hashed_split(image_id: str, config: Columns) -> Split:
    """Assign an image to a split by a hash of its id and the seed."""
    place = stable_hash(f"{config.split_seed}\n{image_id}") / 2**64
    if place < config.test_share:
        return "test"
    return "dev" if place < config.test_share + config.dev_share else "train"


def _tally(values: Iterator[str] | Sequence[str]) -> str:
    counts = Counter(values).most_common(12)
    return ", ".join(f"{clean(value, 40) or '(blank)'} ({count:,})" for value, count in counts) or "no rows"
