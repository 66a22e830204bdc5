"""The databases of spaces of rows (see ``row_store``): what blocks there are; all that is read is checked."""

from __future__ import annotations

import errno
import math
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import xxhash
from pydantic import BaseModel, ConfigDict, Field

from polyalign.utils import row_files
from polyalign.utils.errors import UserError, first_line
from polyalign.utils.gathered import Array, Ints
from polyalign.utils.row_files import DATABASE, DATABASE_FILES, SEGMENT, DeniedError, folder

KEY_BYTES = 16
"""Size of the hash of a content."""

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS space (facts TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS blocks (id INTEGER PRIMARY KEY, card TEXT, keys BLOB, lengths BLOB, mark TEXT)",
)
_WAIT_SECONDS = 30  # for another process that commits
_DENIED = ("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_IOERR")


class DamagedError(Exception):
    """A database, or rows, that are not as they were written."""


class Space(BaseModel):
    """The name of a space, which identifies all but the contents that determines its rows, and what they are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    what: str = Field(pattern=r"^[a-z]+$")
    tower: str = Field(default="", max_length=500)
    cut: int | None = None


class Card(BaseModel):
    """What a block is: its place in a segment, in rows, what a row is, and what computing the block took."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    segment: str
    start: int = Field(ge=0, le=2**48)
    count: int = Field(gt=0, le=2**48)
    shape: tuple[Annotated[int, Field(gt=0, le=2**31)], ...] = Field(max_length=8)
    dtype: Literal["uint8", "float16", "float32"]
    checksum: str
    seconds: float = Field(ge=0)
    cpu_seconds: float = Field(ge=0)
    notes: dict[int, str] = {}

    @property
    def row_bytes(self) -> int:
        """Size of a row."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Block:
    """The entry of a block: the hashes of its contents, one after another, and the number of rows of each."""

    id: int
    card: Card
    keys: bytes
    lengths: Ints

    def __len__(self) -> int:
        """Return the number of contents."""
        return len(self.lengths)


@dataclass(frozen=True)
class Entry:
    """A space as it is listed; ``space`` is None where its database is damaged. ``used`` is a time stamp."""

    name: str
    space: Space | None
    rows: int
    bytes: int
    seconds: float
    used: float


def entries() -> list[Entry]:
    """Return all spaces that have rows; these are not checked."""
    found = []
    for place in row_files.spaces():
        segments = row_files.segments(place).values()
        used = max((facts.st_mtime for facts in segments), default=0.0)
        try:
            blocks, _ = read(place.name)
            with connected(place / DATABASE, "rw") as database:
                space = Space.model_validate_json(_facts(database, place.name))
        except (DamagedError, DeniedError):
            found.append(Entry(place.name, None, 0, sum(facts.st_size for facts in segments), 0.0, used))
            continue
        size = sum(block.card.count * block.card.row_bytes for block in blocks)
        seconds = sum(block.card.seconds for block in blocks)
        found.append(Entry(place.name, space, sum(map(len, blocks)), size, seconds, used))
    return [one for one in found if one.bytes]


def delete_segment(path: Path) -> int:
    """Delete a segment and the entries of its rows, and its space if it was the last; return the bytes freed.

    Nothing is deleted while another process fills the space.

    Raises:
        UserError: a file cannot be deleted.
    """
    place = path.parent
    with row_files.to_delete(place) as is_locked:
        if not is_locked:
            return 0
        if list(row_files.segments(place)) == [path]:
            return row_files.delete_space(place)
        try:
            ids = [block.id for block in read(place.name)[0] if block.card.segment == path.name]
            with changing(place.name) as database:
                delete_blocks(database, ids)
        except (DamagedError, DeniedError):
            return row_files.delete_space(place)
        return row_files.delete([path])


def read(name: str) -> tuple[list[Block], list[int]]:
    """Return the blocks of a space whose entries are whole, in the order in which they were appended, and other ids.

    Raises:
        DamagedError: the database is damaged.
        DeniedError: this user cannot open it.
    """
    path = folder() / name / DATABASE
    if not os.path.lexists(path):
        return [], []
    with connected(path, "rw") as database:
        database.execute("BEGIN")
        if not database.execute("SELECT 1 FROM sqlite_master").fetchall():  # killed as it began
            return [], []
        facts = _facts(database, name)
        rows = database.execute("SELECT id, card, keys, lengths, mark FROM blocks ORDER BY id").fetchall()
    found = [(number, _parsed(facts, number, *entry)) for number, *entry in rows]
    return [block for _, block in found if block is not None], [number for number, block in found if block is None]


def begin(space: Space) -> str:
    """Create the database of a space if there is none, and return its facts, with which blocks are marked."""
    with changing(space.name) as database:
        for statement in _SCHEMA:
            database.execute(statement)
        if not database.execute("SELECT 1 FROM space").fetchall():
            database.execute("INSERT INTO space VALUES (?)", (space.model_dump_json(),))
        return _facts(database, space.name)


def insert(database: sqlite3.Connection, facts: str, block: Block) -> None:
    """Add a block."""
    lengths = b"" if (block.lengths == 1).all() else block.lengths.astype(np.int32).tobytes()
    entry = (block.card.model_dump_json(), block.keys, lengths)
    values = (*entry, _mark(facts, *entry))
    database.execute("INSERT INTO blocks (card, keys, lengths, mark) VALUES (?, ?, ?, ?)", values)


def delete_blocks(database: sqlite3.Connection, ids: Sequence[int]) -> None:
    """Delete the blocks with some ids."""
    database.executemany("DELETE FROM blocks WHERE id = ?", [(one,) for one in ids])


@contextmanager
def changing(name: str) -> Iterator[sqlite3.Connection]:
    """Change the database of a locked space in one transaction.

    Raises:
        DamagedError: the database is damaged.
        DeniedError: this user cannot write to it.
        UserError: the disk is full.
    """
    with connected(folder() / name / DATABASE, "rwc") as database:
        database.execute("BEGIN IMMEDIATE")
        yield database
        database.execute("COMMIT")


@contextmanager
def connected(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    """Open a database; an uncommitted change is undone in the end. Its errors are those of ``changing``."""
    if any((path.parent / name).is_symlink() for name in DATABASE_FILES) or (path.exists() and not path.is_file()):
        raise DamagedError("a link or a folder in the place of a file")
    address = f"{path.absolute().as_uri()}?mode={mode}"
    try:
        with closing(sqlite3.connect(address, uri=True, timeout=_WAIT_SECONDS, isolation_level=None)) as database:
            database.execute("PRAGMA trusted_schema = OFF")
            yield database
    except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter on messages that quote what is damaged
        name, problem = getattr(error, "sqlite_errorname", ""), first_line(error)
        if name.startswith("SQLITE_BUSY"):
            raise UserError(f"{path.parent} is in use: wait until the other process ends") from error
        if name.startswith("SQLITE_FULL"):
            raise row_files.cannot_keep(0, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) from error
        raise (DeniedError if name.startswith(_DENIED) else DamagedError)(problem) from error


def mapped(name: str, card: Card) -> Array:
    """Map the segment of a block."""
    with row_files.opened(folder() / name / card.segment) as file:
        rows = os.fstat(file.fileno()).st_size // card.row_bytes
        return np.memmap(file, card.dtype, "r", shape=(rows, *card.shape))


def checksum(values: Array) -> str:
    """Return a hash of the bytes of rows."""
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)


def _facts(database: sqlite3.Connection, name: str) -> str:
    found = database.execute("SELECT facts FROM space").fetchall()
    try:
        ((text,),) = found
        if Space.model_validate_json(text).name != name:
            raise ValueError("it is another space")
    except (TypeError, ValueError) as error:
        raise DamagedError(first_line(error)) from error
    return str(text)


def _parsed(facts: str, number: int, card: Any, keys: Any, lengths: Any, mark: Any) -> Block | None:
    """Return the block of an entry, or None if it is damaged: SQLite stores any type in any column."""
    if not (isinstance(card, str) and isinstance(keys, bytes) and isinstance(lengths, bytes)):
        return None
    count = len(keys) // KEY_BYTES
    if mark != _mark(facts, card, keys, lengths) or not count:
        return None
    try:
        parsed = Card.model_validate_json(card)
        sizes = np.frombuffer(lengths, np.int32).astype(np.int64) if lengths else np.ones(count, np.int64)
    except ValueError:
        return None
    has_sizes = len(keys) == count * KEY_BYTES and len(sizes) == count and sizes.min() >= 0
    is_right = has_sizes and sizes.sum() == parsed.count
    return Block(number, parsed, keys, sizes) if is_right and SEGMENT.fullmatch(parsed.segment) else None


def _mark(facts: str, card: str, keys: bytes, lengths: bytes) -> str:
    digest = xxhash.xxh3_128(f"{facts}\0{card}\0{len(keys)}\0".encode(errors="surrogatepass"))
    digest.update(keys)
    digest.update(lengths)
    return digest.hexdigest()
