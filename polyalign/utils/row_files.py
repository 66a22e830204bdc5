"""The folder of cached rows and the files in it: each space of rows (see ``row_store``) is a folder."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

from polyalign.utils import storage
from polyalign.utils.errors import UserError
from polyalign.utils.text import binary_size

logger = logging.getLogger(__name__)

DATABASE = "rows.sqlite"
DATABASE_FILES = (DATABASE, *(DATABASE + end for end in ("-journal", "-wal", "-shm")))
SEGMENT = re.compile(r"[0-9a-f]{16}\.rows")

_LOCK, _TAG = ".lock", "CACHEDIR.TAG"
_TAG_TEXT = """Signature: 8a477f597d28d172789f06886806bc55
# Written by polyalign; empty it with `polyalign cache clear`.
"""
_SPACE = re.compile(r"((vision|text)-\d+|vectors|prints)-[0-9a-f]{24}")
_EARLIER = re.compile(r"(\.?((vision|text)-\d+|prints)-[0-9a-f]{24}\.array)(\.\w+\.polyalign-partial)?")
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


class DeniedError(Exception):
    """A folder that this user cannot write to, or whose disk has no locks."""


def folder() -> Path:
    """Return the folder of the spaces, in the cache folder."""
    return storage.cache_folder() / "features"


def spaces() -> list[Path]:
    """Return the folders of spaces, if the folder is a cache; symbolic links are not of it."""
    if not _is_tagged():
        return []
    found = (path for path in sorted(folder().iterdir()) if _SPACE.fullmatch(path.name))
    return [path for path in found if path.is_dir() and not path.is_symlink()]


def files(place: Path) -> list[Path]:
    """Return the files of a space that hold anything."""
    found = (path for path in sorted(place.iterdir()) if path.name in DATABASE_FILES or SEGMENT.fullmatch(path.name))
    return [path for path in found if path.is_symlink() or path.is_file()]


def segments(place: Path) -> dict[Path, os.stat_result]:
    """Return the segments of a space, with their size and the time of their last use, which touches them."""
    return {path: path.lstat() for path in files(place) if SEGMENT.fullmatch(path.name)}


def locked(name: str, what: str) -> BinaryIO:
    """Lock a space of ``what`` until the returned file is closed.

    If another process holds the lock, wait, with a message.

    Raises:
        DeniedError: this user cannot write to the folder, or its disk has no locks.
        UserError: the folder is of another program, or cannot be made.
    """
    place = folder() / name
    try:
        _claim()
        if place.is_symlink():
            place.unlink()
        file = _lock(place)
        if file is None:
            logger.info(f"another process computes {what} for {place}: waiting until it ends")
            file = _lock(place, wait=True)
    except OSError as error:
        if error.errno in _DENIED:
            raise DeniedError(error.strerror) from error
        raise UserError(f"cannot write {place}: {error.strerror}; set POLYALIGN_CACHE to another folder") from error
    assert file is not None
    return file


def _lock(place: Path, *, wait: bool = False) -> BinaryIO | None:
    """Lock a folder, which is created if necessary, until the returned file is closed; None if another process has."""
    while True:
        place.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                file = stack.enter_context(opened(place / _LOCK, os.O_RDWR | os.O_CREAT))
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except FileNotFoundError:  # the folder was deleted meanwhile
                continue
            except BlockingIOError:
                return None
            if os.fstat(file.fileno()).st_nlink:  # otherwise the lock was deleted meanwhile
                stack.pop_all()
                return file


@contextmanager
def to_delete(place: Path) -> Iterator[bool]:
    """Lock a space, and give whether that was possible; if another process has locked it, say so."""
    try:
        file = _lock(place)
    except OSError as error:
        raise UserError(f"cannot delete {place}: {error.strerror}; its owner can") from error
    if file is None:
        logger.info(f"{place} is in use: it is kept")
        yield False
        return
    with file:
        yield True


def delete_space(place: Path) -> int:
    """Delete a locked space, and return the bytes freed; its folder stays if it has files of others.

    Raises:
        UserError: a file cannot be deleted.
    """
    freed = delete(files(place))
    (place / _LOCK).unlink(missing_ok=True)
    with suppress(OSError):
        place.rmdir()
    return freed


def delete(paths: Sequence[Path]) -> int:
    """Delete files, and return the bytes freed.

    Raises:
        UserError: a file cannot be deleted.
    """
    freed = 0
    for path in paths:
        try:
            size = path.lstat().st_size
            path.unlink()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UserError(f"cannot delete {path}: {error.strerror}; its owner can") from error
        freed += size
    return freed


def clear(name: str | None = None) -> int:
    """Delete one space, or all of them and the files of earlier versions; return the number of bytes freed.

    Spaces that another process fills are kept, with a message; rows that it has read stay usable there.

    Raises:
        UserError: a file cannot be deleted, or the folder is the cache of another program.
    """
    if (folder() / _TAG).exists() and not _is_tagged():
        raise _foreign()
    freed = 0
    for place in spaces():
        if name in (None, place.name):
            with to_delete(place) as is_locked:
                freed += delete_space(place) if is_locked else 0
    if name is None and _is_tagged():
        found = (path for path in folder().iterdir() if _EARLIER.fullmatch(path.name))
        freed += delete([path for path in found if path.is_file() and not path.is_symlink()])
    return freed


def opened(path: Path, flags: int = os.O_RDONLY) -> BinaryIO:
    """Open a file; a link or anything but a regular file is an OSError."""
    handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is not a file", str(path))
    return open(handle, "rb" if flags == os.O_RDONLY else "r+b")  # noqa: PTH123


def cannot_keep(size: int, error: OSError) -> UserError:
    """Return the error to raise if rows of a size cannot be written."""
    if error.errno not in storage.FULL:
        return storage.cannot_write(folder(), error)
    return UserError(
        f"cannot keep {binary_size(size)} in {folder()}: {error.strerror}; "
        "make room, or set POLYALIGN_CACHE to another disk"
    )


@cache
def say_once(message: str) -> None:
    """Log a message, but not a second time."""
    logger.info(message)


def _is_tagged() -> bool:
    try:
        with opened(folder() / _TAG) as file:
            return file.read(len(_TAG_TEXT) + 1) == _TAG_TEXT.encode()
    except OSError:
        return False


def _claim() -> None:
    """Create the folder of the cache, with the tag that makes it one; one with other files is refused."""
    if _is_tagged():
        return
    folder().mkdir(parents=True, exist_ok=True)
    names = {path.name for path in folder().iterdir() if not path.name.startswith(".")}
    own = all(_SPACE.fullmatch(name) or _EARLIER.fullmatch(name) for name in names - {_TAG})
    if not own or (_TAG in names and not _is_tagged()):
        raise _foreign()
    try:
        storage.write_text(folder() / _TAG, _TAG_TEXT)
    except UserError as error:
        raise error.__cause__ if isinstance(error.__cause__, OSError) else error from error


def _foreign() -> UserError:
    what = f"{folder()} is not a cache of polyalign: it has other files"
    return UserError(f"{what}; set POLYALIGN_CACHE to another folder")
