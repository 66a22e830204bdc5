"""Rows of arrays by content, on disk: each content is computed once, whatever tables it is in.

Rows computed in one way are a *space*, a folder with an SQLite database and with segments, files to which blocks of
rows are appended. A block counts once the database has it, which is after its rows have reached the disk. So whatever
kills the process, the space is valid: bytes that the database does not know are overwritten. Rows and their entry in
the database have checksums; a block that does not fit them is computed again. Any space can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from polyalign.utils import row_blocks, row_files, storage
from polyalign.utils.errors import UserError
from polyalign.utils.gathered import Array, Gathered, Ints, gathered, ranges
from polyalign.utils.process import Spent
from polyalign.utils.row_blocks import KEY_BYTES, Block, Card, DamagedError, Space, checksum
from polyalign.utils.row_files import DATABASE, DeniedError, folder

SEGMENT_BYTES = 2**28
_BLOCK_BYTES, _BLOCK_SECONDS = 2**25, 3.0
_CHECKED: set[tuple[str, int, str]] = set()
"""Blocks that this process has compared with their checksum: segment (a random name), start and checksum."""


class Batch(NamedTuple):
    """Computed rows: their numbers, ascending, their values one after another, and notes by number."""

    rows: Ints
    values: Array
    notes: Mapping[int, str] = {}


Compute = Callable[[Ints], Iterator[Batch]]
"""Computes the rows with these numbers; it may leave out some."""


@dataclass(frozen=True)
class Costs:
    """What computing contents took: hashes ``(N,)`` that tell them apart, and seconds and processor seconds (N, 2)."""

    contents: npt.NDArray[np.uint64]
    seconds: npt.NDArray[np.float64]

    @staticmethod
    def together(costs: Sequence[Costs]) -> Spent:
        """Return the cost of all contents; one that is in several tables counts once."""
        if not costs:
            return Spent()
        _, first = np.unique(np.concatenate([one.contents for one in costs]), return_index=True)
        return Spent(*np.concatenate([one.seconds for one in costs])[first].sum(0).tolist())


@dataclass(frozen=True)
class Table:
    """The values of a table's rows, one after another, their notes by number, and their cost.

    ``present`` ``(N,)`` says which rows there are: all but those that were not computed.
    """

    values: Array | Gathered
    present: npt.NDArray[np.bool_]
    notes: dict[int, str]
    costs: Costs


def fetch(
    space: Space | None,
    contents: Sequence[str],
    compute: Compute,
    *,
    lengths: Ints | None = None,
    check: Callable[[int], object] = lambda _: None,
) -> Table:
    """Return the rows of contents, from disk or computed and stored.

    Another process that computes rows of the space at the time is waited for. In a folder that this user cannot write
    to, the rows stay in memory, with a message.

    Args:
        space: the space of the rows; with None they are not stored.
        contents: strings that determine the values of a row, given the space; equal ones are computed once.
        compute: computes rows.
        lengths: number of values of each row ``(N,)``, where it is not 1.
        check: is called with the size of all rows in bytes, before any is stored.

    Raises:
        UserError: the disk is full, or the folder holds files that are not of this cache.
    """
    wanted = _Wanted("" if space is None else space.name, contents, lengths)
    if space is None:
        _compute(wanted, _Memory(wanted), compute, check)
        return wanted.table()
    with suppress(DamagedError, DeniedError):
        wanted.look_up(space)
    if len(wanted.missing()):
        try:
            with row_files.locked(space.name, space.what):
                _fill(space, wanted, compute, check)
        except DeniedError as error:
            row_files.say_once(f"cannot write to {folder()} ({error}): what is computed is not kept on disk")
            try:
                _compute(wanted, _Memory(wanted), compute, check)
            except DamagedError:  # on disk; now all rows are computed
                _compute(wanted, _Memory(wanted), compute, check)
    return wanted.table()


def exists(space: Space) -> bool:
    """Return whether rows of a space were ever stored."""
    return (folder() / space.name / DATABASE).is_file()


class _Wanted:
    """The distinct contents of a table, and where their rows are."""

    def __init__(self, space: str, contents: Sequence[str], lengths: Ints | None) -> None:
        salt = space or secrets.token_hex(8)
        numbers: dict[bytes, int] = {}
        self._number_of = np.fromiter((numbers.setdefault(_key(salt, one), len(numbers)) for one in contents), np.int64)
        self._first = np.unique(self._number_of, return_index=True)[1].astype(np.int64)
        self._numbers = numbers
        self.keys = list(numbers)
        self._halves = np.frombuffer(b"".join(self.keys), np.uint64)[::2]
        self._sorted = np.sort(self._halves)
        self.lengths = np.ones(len(numbers), np.int64) if lengths is None else lengths[self._first]
        self._forget()

    def _forget(self) -> None:
        count = len(self.keys)
        self._parts: list[Array] = []
        self._part = np.full(count, -1, np.int64)
        self._start = np.zeros(count, np.int64)
        self._seconds = np.zeros((count, 2))
        self._notes: dict[int, str] = {}

    def missing(self) -> Ints:
        """Return the first row of each content whose rows are unknown, in order."""
        return self._first[self._part < 0]

    def missing_values(self) -> int:
        """Return the number of values of the rows that are missing."""
        return int(self.lengths[self._part < 0].sum())

    def check_like(self, values: Array) -> None:
        """Refuse rows on disk of another type or shape than the new ones: they are not what was computed here."""
        if any((part.dtype, part.shape[1:]) != (values.dtype, values.shape[1:]) for part in self._parts):
            self._forget()
            raise DamagedError("rows of another shape")

    def block(self, rows: Ints, values: Array, notes: Mapping[int, str], spent: Spent, place: tuple[str, int]) -> Block:
        """Describe new rows that are put at a place in a segment."""
        numbers = self._number_of[rows].tolist()
        card = Card(
            segment=place[0],
            start=place[1],
            count=len(values),
            shape=values.shape[1:],
            dtype=values.dtype.name,
            checksum=checksum(values),
            seconds=spent.seconds,
            cpu_seconds=spent.cpu_seconds,
            notes={i: notes[row] for i, row in enumerate(rows.tolist()) if row in notes},
        )
        return Block(0, card, b"".join(self.keys[number] for number in numbers), self.lengths[numbers])

    def look_up(self, space: Space) -> tuple[list[Block], list[int]]:
        """Find what is on disk; return all blocks that are whole, and the ids of damaged ones.

        The rows of a block are compared with their checksum when a process uses them for the first time.
        """
        self._forget()
        blocks, absent = row_blocks.read(space.name)
        damaged, parts = len(absent), dict[str, int]()
        for block in blocks:
            hits = self._hits(block)
            if not hits:
                continue
            try:
                if block.card.segment not in parts:
                    self._parts.append(row_blocks.mapped(space.name, block.card))
                    parts[block.card.segment] = len(self._parts) - 1
                self._check(block, self._parts[parts[block.card.segment]], hits)
                self.take(block, parts[block.card.segment], hits)
            except FileNotFoundError:  # deleted
                absent.append(block.id)
            except (OSError, ValueError, OverflowError):
                absent.append(block.id)
                damaged += 1
        for name in parts:
            with suppress(OSError):  # of another user
                os.utime(folder() / space.name / name, follow_symlinks=False)
        if damaged:
            row_files.say_once(f"{folder() / space.name} is damaged: {damaged} blocks of rows are computed again")
        return [block for block in blocks if block.id not in absent], absent

    def _hits(self, block: Block) -> list[tuple[int, int]]:
        """Return the numbers of contents of a block that are still missing, and their indices in it."""
        halves = np.frombuffer(block.keys, np.uint64)[::2]
        near = self._sorted[np.searchsorted(self._sorted, halves).clip(max=len(self._sorted) - 1)] == halves
        found = (
            (self._numbers.get(block.keys[KEY_BYTES * i : KEY_BYTES * (i + 1)]), i)
            for i in np.flatnonzero(near).tolist()
        )
        return [(number, i) for number, i in found if number is not None and self._part[number] < 0]

    def _check(self, block: Block, segment: Array, hits: list[tuple[int, int]]) -> None:
        """Check that a block is in its segment as it was written; its rows once in a process."""
        card, end = block.card, block.card.start + block.card.count
        numbers, places = np.array(hits).T
        kinds = {(one.dtype.name, one.shape[1:]) for one in (segment, self._parts[0])}
        fits = kinds == {(card.dtype, card.shape)} and end <= len(segment)
        if not fits or not np.array_equal(block.lengths[places], self.lengths[numbers]):
            raise ValueError("its entry is damaged")
        name = (card.segment, card.start, card.checksum)
        if name not in _CHECKED and checksum(segment[card.start : end]) != card.checksum:
            raise ValueError("its rows are damaged")
        _CHECKED.add(name)

    def take(self, block: Block, part: int, hits: list[tuple[int, int]]) -> None:
        """Note where the rows of contents of a block are: in a part, from ``start`` of the block on."""
        numbers, places = np.array(hits).T
        card = block.card
        self._part[numbers] = part
        self._start[numbers] = card.start + (np.cumsum(block.lengths) - block.lengths)[places]
        self._seconds[numbers] = np.array([card.seconds, card.cpu_seconds]) / len(block)
        self._notes |= {number: card.notes[place] for number, place in hits if place in card.notes}

    def take_new(self, block: Block, values: Array) -> None:
        """Note that the rows of a block are in memory, in the array ``values`` of all new ones."""
        if not self._parts or self._parts[-1] is not values:
            self._parts.append(values)
        self.take(block, len(self._parts) - 1, self._hits(block))

    def table(self) -> Table:
        """Return all rows that were found or computed."""
        number_of = self._number_of[self._part[self._number_of] >= 0]
        before = np.cumsum([0, *map(len, self._parts)])
        starts = before[self._part[number_of]] + self._start[number_of]
        notes = {row: self._notes[one] for row, one in enumerate(self._number_of.tolist()) if one in self._notes}
        places = ranges(starts, self.lengths[number_of])
        return Table(
            gathered(self._parts, places),
            self._part[self._number_of] >= 0,
            notes,
            Costs(self._halves, self._seconds),
        )


class _Sink(Protocol):
    def reserve(self, row_bytes: int) -> None: ...

    def append(self, rows: Ints, values: Array, notes: Mapping[int, str], spent: Spent) -> None: ...


class _Memory:
    """New rows in memory, in one array."""

    def __init__(self, wanted: _Wanted) -> None:
        self._wanted = wanted
        self._total = wanted.missing_values()
        self._values: Array | None = None
        self._end = 0

    def reserve(self, row_bytes: int) -> None:
        """Do nothing: the array is made with the first rows."""

    def append(self, rows: Ints, values: Array, notes: Mapping[int, str], spent: Spent) -> None:
        if self._values is None:
            self._values = np.empty((self._total, *values.shape[1:]), values.dtype)
        block = self._wanted.block(rows, values, notes, spent, ("", self._end))
        self._values[self._end : self._end + len(values)] = values
        self._end += len(values)
        self._wanted.take_new(block, self._values)


class _Disk:
    """A space that this process has locked, to append blocks to."""

    def __init__(self, space: Space, wanted: _Wanted, blocks: list[Block], damaged: list[int]) -> None:
        self._name = space.name
        self._wanted = wanted
        self._damaged = damaged
        self._segment, self._end = f"{secrets.token_hex(8)}.rows", 0
        # A segment with damage is not appended to: other processes may read what would be overwritten.
        if blocks and not damaged:
            card = blocks[-1].card
            self._segment, self._end = card.segment, card.start + card.count
        self._facts = row_blocks.begin(space)
        if not damaged:
            used = {block.card.segment for block in blocks}
            left = [path for path in row_files.segments(folder() / space.name) if path.name not in used]
            row_files.delete(left)  # of a process that was killed before it committed a block

    def reserve(self, row_bytes: int) -> None:
        """Check that the missing rows fit on the disk."""
        storage.check_room(folder(), row_bytes * self._wanted.missing_values(), "the cache")

    def append(self, rows: Ints, values: Array, notes: Mapping[int, str], spent: Spent) -> None:
        if self._end and (self._end + len(values)) * values[:1].nbytes > SEGMENT_BYTES:
            self._segment, self._end = f"{secrets.token_hex(8)}.rows", 0
        block = self._wanted.block(rows, values, notes, spent, (self._segment, self._end))
        try:
            with row_files.opened(folder() / self._name / self._segment, os.O_RDWR | os.O_CREAT) as file:
                file.truncate(self._end * block.card.row_bytes)
                file.seek(self._end * block.card.row_bytes)
                file.write(np.ascontiguousarray(values).tobytes())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise row_files.cannot_keep(values.nbytes, error) from error
        with row_blocks.changing(self._name) as database:
            row_blocks.delete_blocks(database, self._damaged)
            row_blocks.insert(database, self._facts, block)
        self._damaged = []
        self._end += len(values)
        _CHECKED.add((self._segment, block.card.start, block.card.checksum))


def _fill(space: Space, wanted: _Wanted, compute: Compute, check: Callable[[int], object]) -> None:
    """Compute the rows that are missing in a space that this process has locked, and append them."""
    for is_last in (False, True):
        try:
            blocks, damaged = wanted.look_up(space)
            if len(wanted.missing()):
                _compute(wanted, _Disk(space, wanted, blocks, damaged), compute, check)
                wanted.look_up(space)
            return
        except DamagedError as error:
            if is_last:
                raise UserError(f"cannot use {folder() / space.name}: {error}; delete it") from error
            row_files.delete(row_files.files(folder() / space.name))


def _compute(wanted: _Wanted, sink: _Sink, compute: Compute, check: Callable[[int], object]) -> None:
    """Compute the rows that are missing, and append a block of them every few seconds."""
    began = Spent.until_now()
    batches = compute(wanted.missing())
    first = next(batches, None)
    if first is None:
        return
    row_bytes = math.prod(first.values.shape[1:]) * first.values.itemsize
    check(row_bytes * int(wanted.lengths.sum()))
    wanted.check_like(first.values)
    sink.reserve(row_bytes)
    for block in _in_blocks(itertools.chain([first], batches), began):
        sink.append(*block)


def _in_blocks(batches: Iterator[Batch], began: Spent) -> Iterator[tuple[Ints, Array, dict[int, str], Spent]]:
    """Join batches to blocks of some seconds, with what computing each took since ``began`` or the block before."""
    held: list[Batch] = []
    for batch in batches:
        held.append(batch)
        spent = Spent.until_now() - began
        if spent.seconds >= _BLOCK_SECONDS or sum(one.values.nbytes for one in held) >= _BLOCK_BYTES:
            yield (*_joined(held), spent)
            held, began = [], Spent.until_now()
    if held:
        yield (*_joined(held), Spent.until_now() - began)


def _joined(batches: Sequence[Batch]) -> tuple[Ints, Array, dict[int, str]]:
    notes = {row: note for batch in batches for row, note in batch.notes.items()}
    return np.concatenate([one.rows for one in batches]), np.concatenate([one.values for one in batches]), notes


def _key(salt: str, content: str) -> bytes:
    return hashlib.blake2b(f"{salt}\0{content}".encode(errors="surrogatepass"), digest_size=KEY_BYTES).digest()
