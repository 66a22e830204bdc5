"""An index: the vectors of a folder of photos, kept on disk and searched exactly."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from polyalign.serving.index_store import Store, size
from polyalign.utils.errors import UserError, did_you_mean

Vector = npt.NDArray[np.float32]

_BLOCK = 2048  # rows that are converted to float32 at once, which then lie in the processor's cache
_RESCORED = 100
_PHOTOS_AT_ONCE = 500
_ROUNDING = 1e-5  # more than float32 sums of products of unit vectors are wrong by


@dataclass(frozen=True)
class Photo:
    """An indexed photo: ``path`` is relative to the photo folder, ``metadata`` are columns of a captions table."""

    id: int
    path: str
    metadata: dict[str, str]


@dataclass(frozen=True)
class Hit:
    """A photo and its cosine similarity to a query."""

    photo: Photo
    score: float


class Index:
    """The photos of a folder as vectors of a run, opened for searching; several threads can use it at once.

    ``root`` is the photo folder, ``model`` the folder of the run or the name of an external model, ``dim`` the length
    of a vector, and ``columns`` are those of the captions table, ``ids`` those of all photos. Later changes of
    the files are not seen, but photos deleted meanwhile are not found any more.
    """

    def __init__(self, store: Store) -> None:
        """Read the vectors and the list of photos; see ``open``."""
        self.store, self.folder, self.dim = store, store.folder, store.dim
        self.root, self.model = Path(store.facts["root"]), store.facts["model"]
        self.columns: tuple[str, ...] = tuple(store.columns())
        self._digest = store.digest()
        self._vectors, living = store.snapshot()
        self.ids: npt.NDArray[np.int64] = living["id"].copy()
        self._row_of = living["row"].copy()
        order = np.argsort(self._row_of, kind="stable")
        self._ids, self._rows = self.ids[order], self._row_of[order]  # sorted by row
        self._distinct = _distinct(self._rows)

    @classmethod
    def open(cls, folder: str | Path) -> Index:
        """Open an index.

        Raises:
            UserError: there is no index in the folder, or it is damaged.
        """
        return cls(Store(Path(folder)))

    def __len__(self) -> int:
        """Return the number of photos."""
        return len(self._ids)

    @property
    def is_current(self) -> bool:
        """Whether the photos are those of when the index was opened; if not, open it again."""
        return self._digest == self.store.digest() and not self.store.is_replaced()

    def search(
        self,
        vector: Vector,
        top: int = 10,
        skip: int = 0,
        where: Mapping[str, str] | None = None,
        without: int | None = None,
    ) -> list[Hit]:
        """Return the photos most similar to a vector ``(D,)``, best first; photos of equal scores by path.

        All vectors are compared in float32, and the best again in float64.

        Args:
            vector: of any length above zero, such as a row of ``Model.encode_text`` or ``Index.vector``.
            top: number of photos to return.
            skip: number of better photos to leave out, for further pages.
            where: columns and the values that photos must have there.
            without: id of a photo to leave out.

        Raises:
            UserError: the vector does not fit, there is no such column, or the index is damaged.
        """
        ids, rows, distinct = self._ids, self._rows, self._distinct
        if where or without is not None:
            kept = ids != without
            if where:
                kept &= np.isin(ids, self._ids_where(where))
            ids, rows = ids[kept], rows[kept]
            distinct = _distinct(rows)
        return self._search([vector], [skip], top, ids, rows, distinct)[0]

    def search_many(self, vectors: Sequence[Vector], skips: Sequence[int], top: int = 10) -> list[list[Hit]]:
        """Return what ``search`` returns for each vector and number of photos to leave out; the index is read once.

        Raises:
            UserError: a vector does not fit, or the index is damaged.
        """
        return self._search(vectors, skips, top, self._ids, self._rows, self._distinct)

    def _search(
        self,
        vectors: Sequence[Vector],
        skips: Sequence[int],
        top: int,
        ids: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int64],
        distinct: npt.NDArray[np.int64],
    ) -> list[list[Hit]]:
        """Search the photos ``ids``, sorted by their ``rows``; ``distinct`` are these rows without repetitions."""
        queries = np.array([self._query(vector) for vector in vectors], np.float32).reshape(-1, self.dim)
        if top < 1 or not len(ids):
            return [[] for _ in queries]
        answers = []
        counts = [max(top + skip, _RESCORED) for skip in skips]
        for query, skip, near in zip(queries, skips, self._nearest(queries, distinct, counts), strict=True):
            parts = np.array_split(near, len(near) // _BLOCK + 1)
            double = query.astype(np.float64)
            exact = np.concatenate([self._vectors[part].astype(np.float64) @ double for part in parts])
            begins, ends = np.searchsorted(rows, near), np.searchsorted(rows, near, side="right")
            scores = np.repeat(exact.astype(np.float32), ends - begins)
            found = np.concatenate([ids[begin:end] for begin, end in zip(begins, ends, strict=True)])
            answers.append(self._best(found, scores, top, skip))
        return answers

    def _best(self, ids: npt.NDArray[np.int64], scores: Vector, top: int, skip: int) -> list[Hit]:
        """Return the photos of the ``top`` highest scores after the first ``skip``."""
        if skip >= len(ids):
            return []
        last = np.sort(scores)[::-1][min(top + skip, len(scores)) - 1]
        best = scores >= last  # also those with the same score as the last one, to be ordered by path
        score_of = dict(zip(ids[best].tolist(), scores[best].tolist(), strict=True))
        hits = [Hit(photo, score_of[photo.id]) for photo in self._photos(list(score_of))]
        return sorted(hits, key=lambda hit: (-hit.score, os.fsencode(hit.photo.path)))[skip : skip + top]

    def photo(self, photo_id: int) -> Photo | None:
        """Return the photo with this id, None if there is none."""
        return next(self._photos([photo_id]), None) if photo_id in self.ids else None

    def _photos(self, ids: Sequence[int]) -> Iterator[Photo]:
        """Yield the photos with these ids that are still there."""
        for start in range(0, len(ids), _PHOTOS_AT_ONCE):
            part = ids[start : start + _PHOTOS_AT_ONCE]
            condition = f"row IS NOT NULL AND id IN ({', '.join('?' * len(part))})"
            entries = list(self.store.entries(condition, part))
            if len(entries) < len(part) and self.is_current:
                raise self.store.damaged("the list of photos")
            for entry in entries:
                yield Photo(entry.id, os.fsdecode(entry.path), self.store.metadata(entry))

    def ids_of(self, row: int) -> list[int]:
        """Return the ids of the photos with a row of the matrix: those of one content."""
        found: list[int] = self._ids[self._rows == row].tolist()
        return found

    def file(self, photo: Photo) -> Path:
        """Return the absolute path of a photo."""
        return self.root / photo.path

    def vector(self, photo_id: int) -> Vector:
        """Return the vector ``(D,)`` of a photo, of unit length up to the precision of float16.

        Raises:
            UserError: there is no such photo.
        """
        found: Vector = self.vectors([photo_id])[0]
        return found

    def vectors(self, ids: Sequence[int]) -> Vector:
        """Return the vectors ``(N, D)`` of photos, see ``vector``.

        Raises:
            UserError: there is no such photo.
        """
        places = np.searchsorted(self.ids, ids)
        for place, photo_id in zip(places, ids, strict=True):
            if place == len(self.ids) or self.ids[place] != photo_id:
                raise UserError(f"{self.folder} has no photo {photo_id}")
        found: Vector = self._vectors[self._row_of[places]].astype(np.float32)
        return found

    def describe(self) -> dict[str, Any]:
        """Return what is in the index, and the files that could not be read."""
        unreadable = sorted(self.store.entries("row IS NULL"), key=lambda entry: entry.path)
        return {
            "photos": len(self),
            "vectors": len(self._vectors),
            "dim": self.dim,
            "bytes": size(self.folder),
            "root": str(self.root),
            "model": self.model,
            "identity": self.store.facts["identity"],
            "captions": self.store.facts["captions"],
            "columns": list(self.columns),
            "unreadable": [{"path": os.fsdecode(one.path), "reason": one.reason} for one in unreadable],
        }

    def _query(self, vector: Vector) -> Vector:
        """Return the vector with unit length."""
        query = np.asarray(vector, np.float32)
        length = float(np.linalg.norm(query))
        if query.shape != (self.dim,) or not 0 < length < np.inf:
            raise UserError(f"{self.folder} has vectors of {self.dim} numbers: search with one, not {query.shape}")
        unit: Vector = query / np.float32(length)
        return unit

    def _ids_where(self, where: Mapping[str, str]) -> npt.NDArray[np.int64]:
        """Return the ids of the photos that have these values; a photo can have several in a column, one a line."""
        for name in where:
            if name not in self.columns:
                known = did_you_mean(name, self.columns)
                raise UserError(f'{self.folder} has no column "{name}": {known}; columns come from --captions')
        line = "char(10) || value || char(10)"
        one = f"EXISTS (SELECT 1 FROM json_each(metadata) WHERE key = ? AND instr({line}, char(10) || ? || char(10)))"
        condition = " AND ".join([one] * len(where))
        values = [value for pair in where.items() for value in pair]
        found = self.store.read(f"SELECT id FROM photos WHERE row IS NOT NULL AND {condition}", values)
        return np.array([photo_id for (photo_id,) in found], np.int64)

    def _nearest(
        self, queries: Vector, rows: npt.NDArray[np.int64], counts: Sequence[int]
    ) -> Iterator[npt.NDArray[np.int64]]:
        """Yield for each query the best ``count`` of these rows, and all others that rounding may have put below."""
        import torch

        matrix, units = torch.from_numpy(self._vectors), torch.from_numpy(queries)
        scores = torch.empty(len(queries), len(matrix))
        block = torch.empty(_BLOCK, self.dim)
        for start in range(0, len(matrix), _BLOCK):
            part = matrix[start : start + _BLOCK]
            torch.mm(units, block[: len(part)].copy_(part).T, out=scores[:, start : start + len(part)])
        chosen = None if len(rows) == len(matrix) else torch.from_numpy(rows)
        for count, all_rows in zip(counts, scores, strict=True):
            row_scores = all_rows if chosen is None else all_rows[chosen]
            lowest = torch.topk(row_scores, min(count, len(row_scores))).values[-1]
            near = torch.nonzero(row_scores >= lowest - _ROUNDING)[:, 0]
            yield rows[near.numpy()]


def _distinct(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return sorted numbers without repetitions."""
    return rows[np.append(True, rows[1:] != rows[:-1])] if len(rows) else rows
