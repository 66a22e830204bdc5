"""Arrays cached on disk, one file each, in a folder that holds nothing else; any of them can be deleted at any time.

A file holds the values, a card (JSON), and the length and the checksum of the card. The card has the checksum of the
values. A file that does not fit its checksums, or is not of this kind, counts as absent.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import re
import stat
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
import xxhash
from pydantic import BaseModel, ConfigDict, Field

from polyalign.utils import storage
from polyalign.utils.errors import UserError, first_line
from polyalign.utils.text import binary_size

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]

_TAG = "CACHEDIR.TAG"
_TAG_TEXT = """Signature: 8a477f597d28d172789f06886806bc55
# Written by polyalign; empty it with `polyalign cache clear`.
"""
_FILE = re.compile(r"((?:vision|text)-\d+|prints)-[0-9a-f]{24}\.array")
_PARTIAL = re.compile(rf"\.({_FILE.pattern})\.\w+{re.escape(storage.PARTIAL)}")
_END = struct.Struct("<Q16s")  # length and checksum of the card
_LONGEST_CARD = 2**26
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_CHECKED: set[tuple[int, ...]] = set()


class Card(BaseModel):
    """What an array is: ``rows`` images or captions, and the time that computing them took."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str
    what: str = Field(pattern=r"^[a-z]+$")
    rows: int = Field(ge=0)
    seconds: float = Field(ge=0)
    cpu_seconds: float = Field(ge=0)
    notes: dict[int, str] = {}
    shape: tuple[int, ...]
    dtype: Literal["uint8", "float16", "float32"]
    checksum: str

    @property
    def bytes(self) -> int:
        """Size of the values."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def folder() -> Path:
    """Return the folder of the arrays, in the cache folder."""
    return storage.cache_folder() / "features"


def find(name: str) -> tuple[Array, Card] | None:
    """Return an array, mapped from disk, and its card; None if it is absent, damaged or unreadable.

    All values are compared with their checksum when a process opens the file for the first time.
    """
    path = folder() / f"{name}.array"
    try:
        with _open(path) as file:
            card = _card(file, name)
            values = np.memmap(file, card.dtype, "r", shape=card.shape)
            facts = os.fstat(file.fileno())
            file_id = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)
            if file_id not in _CHECKED and _checksum(values) != card.checksum:
                raise ValueError("it is damaged")
            _CHECKED.add(file_id)
            return values, card
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _say_once(f"{path} is not used, and is computed again: {getattr(error, 'strerror', None) or first_line(error)}")
        return None


def write(name: str, shape: tuple[int, ...], dtype: npt.DTypeLike, fill: Callable[[Array], Mapping[str, Any]]) -> Array:
    """Let ``fill`` compute an array on disk, and return it; its space is reserved first.

    ``fill`` returns the fields of the card that describe the values. In a folder that this user cannot write to, the
    array stays in memory, with a message.

    Raises:
        UserError: the disk is full, or the folder holds files that are not of this cache.
    """
    path, dtype = folder() / f"{name}.array", np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    began = False
    done: Array | None = None

    def fill_file(partial: Path) -> None:
        nonlocal began, done
        with partial.open("r+b") as file:
            _reserve(file, size)
            began, values = True, np.memmap(file, dtype, "r+", shape=shape)
            facts = fill(values)
            values.flush()
            card = Card(**facts, name=name, shape=shape, dtype=dtype.name, checksum=_checksum(values))
            text = card.model_dump_json().encode()
            file.seek(size)
            file.write(text + _END.pack(len(text), xxhash.xxh3_128_digest(text)))
            done = np.memmap(file, dtype, "r", shape=shape)  # stays readable if the file is deleted

    try:
        _claim(folder())
        storage.write(path, fill_file)
    except UserError as error:
        if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in _DENIED or (began and done is None):
            raise
        _say_once(f"cannot write to {folder()} ({error.__cause__.strerror}): what is computed is not kept on disk")
    if done is None:
        done = np.empty(shape, dtype)
        fill(done)
    return done


def cards() -> list[Card]:
    """Return the cards of all arrays; their values are not checked."""
    found = []
    for path in _own(_FILE):
        try:
            with _open(path) as file:
                found.append(_card(file, path.stem))
        except (OSError, ValueError):  # deleted meanwhile, or to be computed again
            continue
    return found


def clear() -> int:
    """Delete all arrays and what killed processes left of some; return the number of bytes freed.

    Arrays that another process reads or writes at the moment stay usable there.

    Raises:
        UserError: a file cannot be deleted, or the folder is the cache of another program.
    """
    if (folder() / _TAG).exists() and not _is_tagged(folder()):
        raise _foreign(folder())
    freed = 0
    for path in _own(_FILE):
        try:
            size = path.lstat().st_size
            path.unlink()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UserError(f"cannot delete {path}: {error.strerror}; its owner can") from error
        freed += size
    names = {match[1] for path in _own(_PARTIAL) if (match := _PARTIAL.fullmatch(path.name))}
    return freed + sum(storage.remove_abandoned(folder(), name) for name in names)


def _own(names: re.Pattern[str]) -> Iterator[Path]:
    """Yield the files of this cache with such names, if the folder is one; symbolic links are not of it."""
    if _is_tagged(folder()):
        found = (path for path in sorted(folder().iterdir()) if names.fullmatch(path.name))
        yield from (path for path in found if path.is_file() and not path.is_symlink())


def _is_tagged(place: Path) -> bool:
    try:
        with _open(place / _TAG) as file:
            return file.read(len(_TAG_TEXT) + 1) == _TAG_TEXT.encode()
    except OSError:
        return False


def _claim(place: Path) -> None:
    """Create the folder of the cache, with the tag that makes it one; one with other files is refused."""
    if _is_tagged(place):
        return
    try:
        place.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in place.iterdir() if not path.name.startswith(".")}
    except OSError as error:
        raise UserError(f"cannot write {place}: {error.strerror}; set POLYALIGN_CACHE to another folder") from error
    if not all(_FILE.fullmatch(name) for name in names - {_TAG}) or (_TAG in names and not _is_tagged(place)):
        raise _foreign(place)
    storage.write_text(place / _TAG, _TAG_TEXT)


def _foreign(place: Path) -> UserError:
    return UserError(f"{place} is not a cache of polyalign: it has other files; set POLYALIGN_CACHE to another folder")


def _open(path: Path) -> BinaryIO:
    """Open a file for reading; anything but a regular file is an OSError."""
    file = open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")  # noqa: PTH123, SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError("it is not a file")
    return file


def _card(file: BinaryIO, name: str) -> Card:
    """Read the card of an open file; a damaged file, or that of another array, is a ValueError."""
    size = os.fstat(file.fileno()).st_size - _END.size
    if size >= 0:
        file.seek(size)
        length, checksum = _END.unpack(file.read(_END.size))
        if length <= min(size, _LONGEST_CARD):
            file.seek(size - length)
            text = file.read(length)
            if xxhash.xxh3_128_digest(text) == checksum:
                card = Card.model_validate_json(text)
                if card.name == name and min(card.shape, default=0) > 0 and card.bytes == size - length:
                    return card
    raise ValueError("it is damaged")


def _checksum(values: Array) -> str:
    return xxhash.xxh3_128_hexdigest(values.reshape(-1).view(np.uint8).data)


def _reserve(file: BinaryIO, size: int) -> None:
    """Reserve the space of a file: a full disk while a memory map is written would kill the process."""
    if sys.platform == "darwin":  # which has no such call
        return storage.check_room(folder(), size, "the cache")
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno not in storage.FULL:
            raise
        raise UserError(
            f"cannot keep {binary_size(size)} in {folder()}: {error.strerror}; "
            "make room, or set POLYALIGN_CACHE to another disk"
        ) from error


@cache
def _say_once(message: str) -> None:
    logger.info(message)
