"""The files of an index: a matrix of float16 vectors to which rows are appended, and an SQLite database of the photos.

A row counts once the database has it, which is after the vectors have reached the disk. So whatever kills the process,
the index is valid: rows that the database does not know are overwritten. The vectors have checksums in the database,
the rows of the database carry checksums of their own.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import xxhash

from polyalign.utils import storage
from polyalign.utils.errors import UserError, first_line
from polyalign.utils.text import clean

Vectors = npt.NDArray[np.float16]
Floats = npt.NDArray[np.floating[Any]]

VECTORS, PHOTOS = "vectors.f16", "photos.sqlite"
_FILES = (PHOTOS, f"{PHOTOS}-journal", f"{PHOTOS}-wal", f"{PHOTOS}-shm", VECTORS)
FACTS = {"model", "identity", "root", "dim", "columns", "captions"}
"""What an index states: the run and the hash of its checkpoint, the photo folder, and the captions table."""

_FORMAT = "1"
_SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE blocks (start INTEGER PRIMARY KEY, count INTEGER NOT NULL, checksum INTEGER NOT NULL);
CREATE TABLE contents (hash BLOB PRIMARY KEY, row INTEGER NOT NULL, mark INTEGER NOT NULL);
CREATE TABLE photos (
    id INTEGER PRIMARY KEY AUTOINCREMENT, path BLOB NOT NULL UNIQUE, size INTEGER NOT NULL, mtime INTEGER NOT NULL,
    row INTEGER, reason TEXT, metadata TEXT NOT NULL, mark INTEGER NOT NULL
);
"""
_COLUMNS = "id, path, size, mtime, row, reason, metadata, mark"
_TYPES: tuple[Any, ...] = (int, bytes, int, int, int | None, str | None, str)  # SQLite stores any type in any column
_NO_DISK = ("SQLITE_FULL", "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_IOERR", "SQLITE_PERM")
_WAIT_SECONDS = 30  # for another process that commits


class StaleIndexError(UserError):
    """An index that has to be built again: it is damaged, or of another model or version."""


@dataclass(frozen=True)
class Entry:
    """A file in the database: its place in the matrix, or the reason why it cannot be read.

    ``path`` is relative to the photo folder. The id of a new entry is 0.
    """

    id: int
    path: bytes
    size: int
    mtime: int
    row: int | None
    reason: str | None = None
    metadata: str = "{}"

    def mark(self, photo_id: int) -> int:
        """Return a checksum of the entry with this id."""
        return _mark(photo_id, self.path, self.size, self.mtime, self.row, self.reason, self.metadata)


class Store:
    """The two files of an index, for reading and writing; several threads can read at once."""

    def __init__(self, folder: Path) -> None:
        """Open the files.

        Raises:
            UserError: there is no index in the folder, or its database is damaged.
        """
        self.folder = folder
        self._lock = threading.RLock()
        if not is_store(folder):
            raise UserError(f"{folder} is no index: make one with `polyalign index build`")
        _refuse_links(folder)
        with self._errors():
            self._database = _connect(folder / PHOTOS)
            self._file_id = _file_id(folder)
        weakref.finalize(self, self._database.close)
        facts = {str(name): str(value) for name, value in self.read("SELECT name, value FROM facts")}
        if facts.pop("format", None) != _FORMAT:
            raise StaleIndexError(f"{folder} is an index of another version of polyalign: build it again")
        self.facts: dict[str, str] = facts
        self.dim = int(facts.get("dim", "")) if facts.get("dim", "").isdecimal() else 0
        self._is_checked = False
        if not self.dim or not facts.keys() >= FACTS:
            raise self.damaged("its facts")

    @classmethod
    def create(cls, folder: Path, facts: dict[str, str]) -> Store:
        """Make an empty index.

        Raises:
            UserError: the folder has other files, or cannot be written to.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            others = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
            if others - {VECTORS}:
                raise UserError(f"{folder} has other files, such as {clean(min(others), 80)}: name a new folder")
            _opened(folder / VECTORS, "wb").close()
        except OSError as error:
            raise storage.cannot_write(folder, error) from error

        def fill(partial: Path) -> None:
            with _converted(folder), closing(_connect(partial)) as database:
                database.execute("PRAGMA journal_mode = MEMORY")  # the file is moved into place when it is whole
                database.executescript(f"BEGIN; {_SCHEMA}")
                values = {"format": _FORMAT, **facts, "photos": "0"}.items()
                database.executemany("INSERT INTO facts VALUES (?, ?)", values)
                _seal(database)
                database.execute("COMMIT")

        storage.write(folder / PHOTOS, fill)
        return cls(folder)

    def damaged(self, what: str) -> StaleIndexError:
        """Return the error to raise if the files are not as they were written."""
        return StaleIndexError(f"the index {self.folder} is damaged ({what}): delete it, and build it again")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        with self._lock, _converted(self.folder):
            yield

    def read(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        with self._errors():
            return self._database.execute(query, values).fetchall()

    def entries(self, condition: str = "1", values: Sequence[Any] = ()) -> Iterator[Entry]:
        """Yield the files that fulfil a condition, each compared with its checksum."""
        for *fields, mark in self.read(f"SELECT {_COLUMNS} FROM photos WHERE {condition}", values):
            entry = Entry(*fields)
            if not (all(map(isinstance, fields, _TYPES)) and mark == entry.mark(entry.id) and _is_inside(entry.path)):
                raise self.damaged(f"photo {entry.id}")
            yield entry

    def columns(self) -> list[str]:
        """Return the names of the columns of the captions table."""
        with self._expecting("its columns"):
            return [str(name) for name in json.loads(self.facts["columns"])]

    def metadata(self, entry: Entry) -> dict[str, str]:
        """Return the columns of the captions table for a photo."""
        with self._expecting(f"photo {entry.id}"):
            return {str(name): str(value) for name, value in json.loads(entry.metadata).items()}

    @contextmanager
    def _expecting(self, what: str) -> Iterator[None]:
        try:
            yield
        except (TypeError, ValueError, OverflowError, AttributeError, RecursionError) as error:
            raise self.damaged(what) from error

    def row_of(self, content: bytes) -> int | None:
        """Return the row of the vector of a content, by its hash."""
        found = self.read("SELECT row, mark FROM contents WHERE hash = ?", (content,))
        for row, mark in found:
            if not isinstance(row, int) or row < 0 or mark != _mark(content, row):
                raise self.damaged("the contents")
        return found[0][0] if found else None

    def snapshot(self) -> tuple[Vectors, npt.NDArray[Any]]:
        """Return the matrix, mapped from disk, and the ``id`` and ``row`` of each photo, all checked."""
        with self._errors(), self._expecting("the list of photos"):
            self._database.execute("BEGIN")
            try:
                blocks = self._database.execute("SELECT start, count, checksum FROM blocks ORDER BY start").fetchall()
                living = np.fromiter(self._database.execute(f"{_LIVING_PHOTOS} ORDER BY id"), _LIVING)
                is_sealed = self.digest() == _digest(self._database)
                photos = self.read("SELECT value FROM facts WHERE name = 'photos'")
            finally:
                self._database.execute("ROLLBACK")
        are_numbers = all(isinstance(one, int) for block in blocks for one in block)
        if not (is_sealed and are_numbers and photos == [(str(_mixed(living)),)]):
            raise self.damaged("the list of photos")
        vectors = self._mapped(sum(count for _, count, _ in blocks))
        end = 0
        for start, count, checksum in blocks:
            if start != end or _sum(vectors[start : start + count]) != checksum:
                raise self.damaged(f"the vectors from {start} on")
            end += count
        if len(living) and not 0 <= living["row"].min() <= living["row"].max() < end:
            raise self.damaged("photos without vectors")
        return vectors, living

    def _mapped(self, rows: int) -> Vectors:
        path = self.folder / VECTORS
        try:
            if path.stat().st_size < rows * self.dim * 2:
                raise self.damaged(f"{VECTORS} is cut off")
            if not rows:
                return np.empty((0, self.dim), np.float16)
            # Copy on write: torch warns of arrays that cannot be written to.
            return np.memmap(path, np.float16, "c", shape=(rows, self.dim))
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error

    def digest(self) -> str:
        """Return a checksum of the facts and of all photos."""
        found = self.read("SELECT value FROM facts WHERE name = 'digest'")
        return str(found[0][0]) if found else ""

    def is_replaced(self) -> bool:
        """Return whether another index was made in the folder since this one was opened."""
        return is_store(self.folder) and _file_id(self.folder) != self._file_id

    def append(
        self, vectors: npt.NDArray[np.floating[Any]], contents: Sequence[bytes], entries: Sequence[Entry]
    ) -> None:
        """Add vectors ``(N, D)`` and the hashes of their contents, and the files that have them, in one step.

        Rows of ``entries`` below zero count from the new rows: -1 is the first.
        """
        self._check()
        new = np.ascontiguousarray(vectors, np.float16)
        start = self.read("SELECT COALESCE(MAX(start + count), 0) FROM blocks")[0][0]
        if len(new):
            self._write_vectors(start, new)
        with self._writing([entry.id for entry in entries if entry.id]) as database:
            if len(new):
                database.execute("INSERT INTO blocks VALUES (?, ?, ?)", (start, len(new), _sum(new)))
            rows = [(content, row, _mark(content, row)) for row, content in enumerate(contents, start)]
            database.executemany("INSERT INTO contents VALUES (?, ?, ?)", rows)
            for entry in entries:
                row = entry.row if entry.row is None or entry.row >= 0 else start - 1 - entry.row
                _put(database, Entry(**{**vars(entry), "row": row}))

    def change(self, facts: Mapping[str, str], entries: Sequence[Entry] = (), deleted: Sequence[int] = ()) -> None:
        """Set facts, replace files, and delete those with some ids, in one step."""
        self._check()
        with self._writing([*deleted, *(entry.id for entry in entries)]) as database:
            database.executemany("DELETE FROM photos WHERE id = ?", [(one,) for one in deleted])
            for entry in entries:
                _put(database, entry)
            database.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", facts.items())
        self.facts |= facts

    def _write_vectors(self, start: int, new: Vectors) -> None:
        path = self.folder / VECTORS
        try:
            with _opened(path, "r+b") as file:
                if file.seek(0, os.SEEK_END) < start * self.dim * 2:
                    raise self.damaged(f"{VECTORS} is cut off")
                file.truncate(start * self.dim * 2)  # what a killed process left
                file.seek(start * self.dim * 2)
                file.write(new.tobytes())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise storage.cannot_write(path, error) from error

    def _check(self) -> None:
        """Find damage before the first change, which writes new checksums."""
        if not self._is_checked:
            self.snapshot()
            self._is_checked = True

    @contextmanager
    def _writing(self, touched: Sequence[int]) -> Iterator[sqlite3.Connection]:
        """Change the database in one transaction: the photos with some ids, and new ones."""
        with self._errors():
            database = self._database
            database.execute("BEGIN IMMEDIATE")
            try:
                ((last, before),) = database.execute(
                    "SELECT COALESCE(MAX(id), 0), (SELECT value FROM facts WHERE name = 'photos') FROM photos"
                ).fetchall()
                photos = int(before) - _sum_of(database, touched)
                yield database
                added = database.execute(f"{_LIVING_PHOTOS} AND id > ?", (last,))
                photos += _sum_of(database, touched) + _mixed(np.fromiter(added, _LIVING))
                database.execute("INSERT OR REPLACE INTO facts VALUES ('photos', ?)", (str(photos % 2**64),))
                _seal(database)
                database.execute("COMMIT")
            except BaseException:
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise


def is_store(folder: Path) -> bool:
    """Return whether there is an index in a folder, whole or damaged."""
    return (folder / PHOTOS).is_file()


def delete(folder: Path) -> None:
    """Delete the files of an index; a process that has opened them can go on reading."""
    for name in _FILES:
        (folder / name).unlink(missing_ok=True)


def size(folder: Path) -> int:
    """Return the size of the files of an index in bytes."""
    return sum(path.stat().st_size for name in _FILES if (path := folder / name).is_file())


def _file_id(folder: Path) -> tuple[int, int]:
    facts = (folder / PHOTOS).stat()
    return facts.st_dev, facts.st_ino


def _refuse_links(folder: Path) -> None:
    """Refuse files that are links: those of a stranger's index could lead to any file, which would be overwritten."""
    for name in _FILES:
        if (folder / name).is_symlink():
            raise UserError(f"{folder / name} is a link, which the files of an index may not be: copy the file itself")


def _opened(path: Path, mode: str) -> IO[Any]:
    """Open a file that is not a link."""
    return open(path, mode, opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o666))


def _connect(path: Path) -> sqlite3.Connection:
    """Open a database; read-only if its folder is."""
    address = f"{path.absolute().as_uri()}?mode=rw"
    found = sqlite3.connect(address, uri=True, timeout=_WAIT_SECONDS, isolation_level=None, check_same_thread=False)
    found.execute("PRAGMA synchronous = FULL")
    return found


@contextmanager
def _converted(folder: Path) -> Iterator[None]:
    """Convert errors of SQLite to a UserError."""
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter on messages that quote what is damaged
        name, problem = getattr(error, "sqlite_errorname", ""), first_line(error)
        if name.startswith("SQLITE_BUSY"):
            raise UserError(f"the index {folder} is in use: wait until the other process ends") from error
        if name.startswith(_NO_DISK):
            raise UserError(f"cannot use the index {folder}: {problem}; check the disk and its permissions") from error
        raise StaleIndexError(f"the index {folder} is damaged ({problem}): delete it, and build it again") from error


def _put(database: sqlite3.Connection, entry: Entry) -> None:
    """Insert or replace a file; its id stays, or is the next one."""
    fields = (entry.path, entry.size, entry.mtime, entry.row, entry.reason, entry.metadata)
    if entry.id:
        database.execute(
            "UPDATE photos SET path = ?, size = ?, mtime = ?, row = ?, reason = ?, metadata = ?, mark = ? WHERE id = ?",
            (*fields, entry.mark(entry.id), entry.id),
        )
        return
    new = "INSERT INTO photos (path, size, mtime, row, reason, metadata, mark) VALUES (?, ?, ?, ?, ?, ?, 0)"
    photo_id = database.execute(new, fields).lastrowid or 0
    database.execute("UPDATE photos SET mark = ? WHERE id = ?", (entry.mark(photo_id), photo_id))


_LIVING = np.dtype([("id", np.int64), ("row", np.int64), ("mark", np.int64)])
_LIVING_PHOTOS = "SELECT id, row, mark FROM photos WHERE row IS NOT NULL"


def _mixed(living: npt.NDArray[Any]) -> int:
    """Return the sum of a hash of each photo, so that it can follow a change without the other photos."""
    mixed = np.zeros(len(living), np.uint64)
    for name in ("id", "row", "mark"):  # the steps of splitmix64
        mixed = (mixed ^ living[name].astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return int(mixed.sum(dtype=np.uint64))


def _sum_of(database: sqlite3.Connection, ids: Sequence[int]) -> int:
    """Return the checksum of the photos with these ids."""
    found = [row for one in set(ids) for row in database.execute(f"{_LIVING_PHOTOS} AND id = ?", (one,))]
    return _mixed(np.array(found, _LIVING))


def _digest(database: sqlite3.Connection) -> str:
    """Return a checksum of the facts, of which one is that of all photos."""
    facts = database.execute("SELECT name, value FROM facts WHERE name != 'digest' ORDER BY name").fetchall()
    return xxhash.xxh3_128_hexdigest(repr(facts).encode())


def _seal(database: sqlite3.Connection) -> None:
    database.execute("INSERT OR REPLACE INTO facts VALUES ('digest', ?)", (_digest(database),))


def _sum(vectors: Vectors) -> int:
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(vectors).data) >> 1  # SQLite's integers have a sign


def _mark(*values: object) -> int:
    return xxhash.xxh3_64_intdigest(repr(values).encode()) >> 1


def _is_inside(path: bytes) -> bool:
    """Return whether a path stays in its folder: an index can come from a stranger."""
    return path != b"" and not path.startswith(b"/") and b".." not in path.split(b"/")
