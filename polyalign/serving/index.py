"""An index: the vectors of a folder of photos, kept on disk and searched exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]


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

    ``root`` is the photo folder, ``model`` the folder of the run, ``dim`` the length of a vector.
    """

    folder: Path
    root: Path
    model: str
    dim: int
    columns: tuple[str, ...]

    @classmethod
    def open(cls, folder: str | Path) -> Index:
        """Open an index.

        Raises:
            UserError: there is no index in the folder, or it is damaged.
        """
        raise NotImplementedError

    def __len__(self) -> int:
        """Return the number of photos."""
        raise NotImplementedError

    def search(
        self,
        vector: Vector,
        top: int = 10,
        skip: int = 0,
        where: Mapping[str, str] | None = None,
        without: int | None = None,
    ) -> list[Hit]:
        """Return the photos most similar to a vector ``(D,)``, best first.

        Args:
            vector: of any length above zero, such as a row of ``Model.encode_text`` or ``Index.vector``.
            top: number of photos to return.
            skip: number of better photos to leave out, for further pages.
            where: columns and the values that photos must have there.
            without: id of a photo to leave out.

        Raises:
            UserError: the vector has another length, there is no such column, or the index is damaged.
        """
        raise NotImplementedError

    def photo(self, photo_id: int) -> Photo | None:
        """Return the photo with this id, None if there is none."""
        raise NotImplementedError

    def file(self, photo: Photo) -> Path:
        """Return the absolute path of a photo."""
        raise NotImplementedError

    def vector(self, photo_id: int) -> Vector:
        """Return the vector ``(D,)`` of a photo, of unit length up to the precision of float16."""
        raise NotImplementedError
