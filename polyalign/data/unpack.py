"""Atomic extraction of archives, which are not trusted: bytes are counted as they are written."""

from __future__ import annotations

import bz2
import functools
import gzip
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from polyalign.data.fetch import copy
from polyalign.utils.errors import UserError
from polyalign.utils.progress import progress
from polyalign.utils.text import clean

# Photos hardly compress, captions by a factor of 5 to 20; archives made to fill a disk do by 1,000 and more.
_MAX_FACTOR = 100
_ALWAYS_ALLOWED = 64 * 2**20
_MAX_MEMBERS = 500_000
_MAX_READ = 16 * 2**20
_SHOWN = 100
_COMPRESSED: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}


class _RefusedError(Exception):
    """An archive or a member of it that is not extracted, with the reason."""


# zipfile raises RuntimeError for encrypted members and NotImplementedError for unknown compression methods.
_BROKEN = (
    _RefusedError, OSError, EOFError, RuntimeError, ValueError, ArithmeticError, LookupError, zipfile.BadZipFile,
    tarfile.TarError, zlib.error, lzma.LZMAError,
)  # fmt: skip


def named(archive: Path, names: tuple[str, ...], folder: Path) -> None:
    """Extract the files with these names, from any folder of the archive, into ``folder``.

    Raises:
        UserError: the archive is broken or unsafe (it is then deleted), or lacks a file.
    """
    with _partial(folder / f".{archive.name}.part") as partial:
        _extract(archive, partial, names)
        if missing := [name for name in names if not (partial / name).is_file()]:
            lacks = ", ".join(sorted(missing))
            raise UserError(f"{archive} does not contain {lacks}: the published archive has changed")
        for name in names:
            (partial / name).replace(folder / name)


def everything(archive: Path, folder: Path) -> None:
    """Extract all files, without their folders, into a new ``folder``, which is moved into place when complete.

    Hidden files, which macOS adds, are left out.

    Raises:
        UserError: the archive is broken or unsafe (it is then deleted) or empty.
    """
    with _partial(folder.with_name(f".{folder.name}.part")) as partial:
        _extract(archive, partial)
        if not any(partial.iterdir()):
            raise UserError(f"{archive} contains no files")
        partial.replace(folder)


@contextmanager
def _partial(folder: Path) -> Iterator[Path]:
    """Make an empty folder for the time of the context."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _extract(archive: Path, folder: Path, wanted: Collection[str] | None = None) -> None:
    """Extract the files with the names ``wanted``, or all; delete the archive if it is broken or unsafe."""
    try:
        limit = _ALWAYS_ALLOWED + _MAX_FACTOR * archive.stat().st_size
        for member, content in _members(archive, limit):
            # The name alone cannot lead out of the folder.
            name = PurePosixPath(member.replace("\\", "/")).name
            if name.startswith(".") or (wanted is not None and name not in wanted):
                continue
            if not name.isprintable() or not name:
                raise _RefusedError(f'"{clean(member, _SHOWN)}" is not the name of a file')
            if content is None:
                raise _RefusedError(f'"{clean(member, _SHOWN)}" is a link, a device or a sparse file')
            if (folder / name).exists():
                raise _RefusedError(f'it has two files named "{clean(name, _SHOWN)}"')
            with content() as source:
                for size in copy(source, folder / name):
                    limit -= size
                    if limit < 0:
                        raise _RefusedError(f"it is more than {_MAX_FACTOR} times larger unpacked")
    except _BROKEN as error:
        archive.unlink(missing_ok=True)
        reason = clean(error, 2 * _SHOWN) or type(error).__name__
        raise UserError(f"{archive} cannot be unpacked ({reason}) and was deleted: download it again") from error


def _members(archive: Path, limit: int) -> Iterator[tuple[str, Callable[[], Any] | None]]:
    """Yield the name of each member except folders, and a function that opens it, or None if it is no plain file."""
    with archive.open("rb") as raw:
        magic = raw.read(2)
        raw.seek(0)
        if magic == b"PK":
            with zipfile.ZipFile(raw) as packed:
                members = packed.infolist()
                for done, member in enumerate(members, start=1):
                    _check_count(len(members))
                    kind = stat.S_IFMT(member.external_attr >> 16) if member.create_system == 3 else 0
                    if not member.is_dir():
                        plain = kind in (0, stat.S_IFREG)
                        yield member.filename, functools.partial(packed.open, member) if plain else None
                    progress(f"unpacking {archive.name}", done, len(members))
            return
        stream: Any = _Bounded(_COMPRESSED[magic](raw) if magic in _COMPRESSED else raw, limit)
        size = archive.stat().st_size
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            for done, entry in enumerate(tar, start=1):
                _check_count(done)
                if not entry.isdir():
                    plain = entry.isreg() and not entry.issparse() and entry.size >= 0
                    yield entry.name, functools.partial(tar.extractfile, entry) if plain else None
                progress(f"unpacking {archive.name}, MiB", raw.tell() // 2**20, max(1, size // 2**20))


def _check_count(members: int) -> None:
    if members > _MAX_MEMBERS:
        raise _RefusedError(f"it has more than {_MAX_MEMBERS:,} members")


class _Bounded:
    """A decompressed stream that is read up to ``limit`` bytes, and by few at once: tarfile trusts sizes in headers."""

    def __init__(self, stream: IO[bytes], limit: int) -> None:
        self._stream, self._limit = stream, limit
        self.tell = stream.tell

    def seek(self, place: int) -> int:
        self._check(place)
        return self._stream.seek(place)

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_READ:
            raise _RefusedError(f"a header gives a size of {size:,} bytes")
        self._check(self._stream.tell() + size)
        return self._stream.read(size)

    def _check(self, place: int) -> None:
        if place > self._limit:
            raise _RefusedError(f"it is more than {_MAX_FACTOR} times larger unpacked")
