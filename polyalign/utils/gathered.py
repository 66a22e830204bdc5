"""Rows of several arrays, most of them mapped from disk, as one array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]


class Gathered:
    """An array whose row ``i`` is row ``places[i]`` of some parts, which are counted one after another."""

    def __init__(self, parts: Sequence[Array], places: Ints) -> None:
        """Take parts of one type and row shape, and the places ``(N,)`` of the rows."""
        self._parts = parts
        self._places = places
        self._starts = np.cumsum([0, *map(len, parts)])
        self.dtype: np.dtype[Any] = parts[0].dtype
        self.shape: tuple[int, ...] = (len(places), *parts[0].shape[1:])

    @property
    def nbytes(self) -> int:
        """Return the size of the values."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._places)

    def __getitem__(self, rows: Any) -> Array:
        """Return a copy of some rows, by anything that indexes one dimension."""
        places = self._places[rows]
        if len(self._parts) == 1:
            found: Array = self._parts[0][places]
            return found
        numbers = np.searchsorted(self._starts, places, side="right") - 1
        made = np.empty((*np.shape(places), *self.shape[1:]), self.dtype)
        for number in np.unique(numbers):
            here = numbers == number
            made[here] = self._parts[number][places[here] - self._starts[number]]
        return made

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """Return a copy of all rows."""
        return self[:].astype(dtype or self.dtype, copy=False)


def gathered(parts: Sequence[Array], places: Ints) -> Array | Gathered:
    """Return the rows at some places of the parts: a slice where they are consecutive rows of one part."""
    if not len(places):
        return np.empty((0, *parts[0].shape[1:]), parts[0].dtype) if parts else np.empty(0, np.uint8)
    first, last = int(places[0]), int(places[-1])
    starts = np.cumsum([0, *map(len, parts)])
    number = int(np.searchsorted(starts, first, side="right")) - 1
    if last - first == len(places) - 1 and last < starts[number + 1] and (np.diff(places) == 1).all():
        return parts[number][first - starts[number] : last + 1 - starts[number]]
    used = np.unique(np.searchsorted(starts, places, side="right") - 1)
    if len(used) == 1:
        return Gathered([parts[used[0]]], places - starts[used[0]])
    return Gathered(parts, places)


def ranges(starts: Ints, lengths: Ints) -> Ints:
    """Return the numbers ``start, ..., start + length - 1`` of each range, one range after another."""
    before = np.cumsum(lengths) - lengths
    found: Ints = np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))
    return found
