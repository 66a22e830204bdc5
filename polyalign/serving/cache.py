"""The cache folder: features of frozen layers, checks of images, and the indexes that ``search`` keeps."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from polyalign.serving import index_store
from polyalign.utils import row_blocks, row_files, storage
from polyalign.utils.errors import UserError
from polyalign.utils.lock import InUseError, locked

logger = logging.getLogger(__name__)

_KEPT = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True)
class Entry:
    """What is cached under a name: ``rows`` images, captions or photos, and what they were computed from and with.

    ``bytes`` is the size of the values, ``seconds`` what computing them took, if that is known, and ``used`` the time
    stamp of the last use.
    """

    name: str
    what: str
    rows: int
    bytes: int
    seconds: float | None
    used: float
    model: str = ""
    folder: str = ""
    cut: int | None = None


def entries() -> list[Entry]:
    """Return what is cached, largest first."""
    found = [_of_space(one) for one in row_blocks.entries()] + [_of_index(place) for place in _indexes()]
    return sorted(found, key=lambda one: (-one.bytes, one.name))


def clear(name: str | None = None) -> int:
    """Delete what is cached under a name, or everything; return the number of bytes freed.

    What another process computes at the moment is kept, with a message.

    Raises:
        UserError: nothing is cached under this name, or a file cannot be deleted.
    """
    if name is not None and name not in {one.name for one in entries()}:
        raise UserError(f"nothing is cached as {name!r}: see `polyalign cache list`")
    return row_files.clear(name) + sum(_delete_index(place) for place in _indexes() if name in (None, place.name))


def prune(limit: int) -> list[tuple[str, int]]:
    """Delete what was not used for longest until the cache has at most ``limit`` bytes.

    Rows are deleted by segments (see ``row_store``), indexes as a whole. Return the names and bytes of what is deleted.
    """
    places, spaces = _indexes(), row_files.spaces()
    left = sum(path.lstat().st_size for space in spaces for path in row_files.files(space))
    left += sum(map(index_store.size, places))
    found: list[tuple[float, str, Callable[[], int]]] = [
        (facts.st_mtime, space.name, partial(row_blocks.delete_segment, path))
        for space in spaces
        for path, facts in row_files.segments(space).items()
    ]
    found += [(_used(place), place.name, partial(_delete_index, place)) for place in places]
    freed: dict[str, int] = {}
    for _, name, delete in sorted(found, key=lambda one: one[:2]):
        if left <= limit:
            break
        size = delete()
        left -= size
        if size:
            freed[name] = freed.get(name, 0) + size
    return list(freed.items())


def indexes_folder() -> Path:
    """Return the folder of the indexes that ``search`` keeps."""
    return storage.cache_folder() / "indexes"


def _of_space(one: row_blocks.Entry) -> Entry:
    if one.space is None:
        return Entry(one.name, "damaged", one.rows, one.bytes, None, one.used)
    return Entry(
        one.name, one.space.what, one.rows, one.bytes, one.seconds, one.used, one.space.tower, cut=one.space.cut
    )


def _of_index(place: Path) -> Entry:
    size, used = index_store.size(place), _used(place)
    try:
        store = index_store.Store(place)
        ((rows,),) = store.read("SELECT COUNT(*) FROM photos WHERE row IS NOT NULL")
    except UserError:
        return Entry(place.name, "damaged", 0, size, None, used)
    return Entry(place.name, "photos", rows, size, None, used, store.facts["model"], store.facts["root"])


def _indexes() -> list[Path]:
    found = (path for path in sorted(indexes_folder().glob("*")) if _KEPT.fullmatch(path.name))
    return [path for path in found if path.is_dir() and not path.is_symlink()]


def _used(place: Path) -> float:
    """Return the time of the last search, which touches the folder."""
    return place.stat().st_mtime


def _delete_index(place: Path) -> int:
    try:
        with locked(place):
            freed = index_store.size(place)
            shutil.rmtree(place)
    except InUseError:
        logger.info(f"{place} is in use: it is kept")
        return 0
    return freed
