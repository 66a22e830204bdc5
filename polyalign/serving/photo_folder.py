"""The photos of a folder, and what a captions table says of them."""

from __future__ import annotations

import json
import os
import stat
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from polyalign.data.pairs import IMAGE_SUFFIXES
from polyalign.data.readers import sheet
from polyalign.data.readers.columns import IMAGE_NAMES, find
from polyalign.serving.index_store import PHOTOS
from polyalign.utils.errors import UserError
from polyalign.utils.text import clean

_SUFFIXES = tuple(map(str.encode, IMAGE_SUFFIXES))


class File(NamedTuple):
    """Size and modification time of a file, or the ``reason`` why it cannot be opened."""

    size: int
    mtime: int
    reason: str | None = None


def scan(root: Path) -> dict[bytes, File]:
    """Return the image files below a folder by their relative paths, and the folders that cannot be read.

    Links are followed, also to folders; each folder is read once, under its own name rather than that of a link.
    Folders of an index, which has thumbnails, are left out.

    Raises:
        UserError: there is no such folder, or there are no images.
    """
    if not root.is_dir():
        raise UserError(f"no such folder: {root}")
    found: dict[bytes, File] = {}
    seen: set[tuple[int, int]] = set()
    folders, links = [b""], list[bytes]()
    base = os.fsencode(root)
    while folders or links:
        place = folders.pop() if folders else links.pop(0)
        full = os.path.join(base, place)  # noqa: PTH118 - a name that is not UTF-8
        try:
            facts = os.stat(full)  # noqa: PTH116
            if (facts.st_dev, facts.st_ino) in seen:
                continue
            seen.add((facts.st_dev, facts.st_ino))
            inside = sorted(os.scandir(full), key=lambda entry: entry.name)
        except OSError as error:
            found[place] = File(-1, -1, f"{error.strerror} (a folder)")
            continue
        if any(entry.name == os.fsencode(PHOTOS) for entry in inside):
            continue
        for entry in inside:
            path = os.path.join(place, entry.name)  # noqa: PTH118
            if _is_folder(entry):
                (links if entry.is_symlink() else folders).append(path)
            elif entry.name.lower().endswith(_SUFFIXES):
                found[path] = _look(entry)
    if not any(file.reason is None for file in found.values()):
        raise UserError(f"there are no images under {root}")
    return found


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _look(entry: os.DirEntry[bytes]) -> File:
    try:
        facts = entry.stat()
    except OSError as error:
        return File(-1, -1, error.strerror)
    if not stat.S_ISREG(facts.st_mode):
        return File(-1, -1, "it is not a file but a pipe or device")
    if not os.access(entry.path, os.R_OK):
        return File(-1, -1, "Permission denied")
    return File(facts.st_size, facts.st_mtime_ns)


class Captions(NamedTuple):
    """The ``columns`` of a captions table, and for each photo with rows there its values as JSON."""

    columns: tuple[str, ...]
    by_path: dict[bytes, str]
    absent: list[str]
    """Names of photos that are not in the folder."""


def read_captions(path: Path, root: Path, photos: Iterable[bytes]) -> Captions:
    """Read a captions table; its names are relative to the photo folder, or to the folder of the table.

    Different values of a photo, which has several rows, become lines of one.

    Raises:
        UserError: the table cannot be read, names no photos, or none of those in the folder.
    """
    table = sheet.read(path)
    image_column = find(table, "", None, IMAGE_NAMES)
    if image_column is None:
        usual, names = ", ".join(IMAGE_NAMES), clean(", ".join(table.names), 300)
        raise UserError(f"{table.where} has no column of image names ({usual}): rename one of its columns, {names}")
    columns = {name: table.column(name) for name in table.names if name != image_column}
    on_disk = {_normal(os.fsdecode(photo)): photo for photo in photos}
    base, beside = root.resolve(), path.parent.resolve()
    values: dict[bytes, dict[str, dict[str, None]]] = {}
    absent: dict[str, None] = {}
    for row, given in enumerate(table.column(image_column)):
        name = str(given).strip().replace("\\", "/")
        forms = (_normal(name), _normal(os.path.relpath(beside / name, base)))
        photo = next((on_disk[form] for form in forms if form in on_disk), None)
        if photo is None:
            absent[name] = None
            continue
        kept = values.setdefault(photo, {})
        for column, content in columns.items():
            if text := _text(content[row]):
                kept.setdefault(column, {})[text] = None
    if not values:
        some = clean(next(iter(absent)), 80)
        raise UserError(f'{path}: column "{image_column}" names no photo under {root}, but files such as {some}')
    by_path = {
        photo: json.dumps({column: "\n".join(texts) for column, texts in kept.items()}, ensure_ascii=False)
        for photo, kept in values.items()
    }
    return Captions(tuple(columns), by_path, list(absent))


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", str(PurePosixPath(name)))


def _text(value: object) -> str:
    """Return a value of a table as text; a list of captions as lines."""
    if isinstance(value, list):
        return "\n".join(filter(None, map(_text, value)))
    return "" if value is None else str(value).strip()
