"""Atomic extraction of archives."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from polyalign.data.fetch import copy
from polyalign.utils.errors import UserError
from polyalign.utils.progress import progress

_BROKEN = (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, zlib.error)


def named(archive: Path, names: tuple[str, ...], folder: Path) -> None:
    """Extract the files with these names, from any folder of the archive, into ``folder``.

    Raises:
        UserError: the archive is broken (it is then deleted) or lacks a file.
    """
    missing = set(names)
    with _whole(archive):
        for name, content in _members(archive):
            if name in missing:
                partial = folder / f".{name}.part"
                sum(copy(content, partial))
                partial.replace(folder / name)
                missing.discard(name)
    if missing:
        raise UserError(f"{archive} does not contain {', '.join(sorted(missing))}: the published archive has changed")


def everything(archive: Path, folder: Path) -> None:
    """Extract all files, without their folders, into a new ``folder``, which is moved into place when complete.

    Raises:
        UserError: the archive is broken (it is then deleted) or empty.
    """
    partial = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with _whole(archive):
        for name, content in _members(archive):
            sum(copy(content, partial / name))
    if not any(partial.iterdir()):
        raise UserError(f"{archive} contains no files")
    partial.replace(folder)


@contextmanager
def _whole(archive: Path) -> Iterator[None]:
    """Delete the archive if reading it fails inside the context."""
    try:
        yield
    except _BROKEN as error:
        archive.unlink(missing_ok=True)
        raise UserError(
            f"{archive} cannot be unpacked ({str(error) or type(error).__name__}) and was deleted: download it again"
        ) from error


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield base name and content of each file; base names cannot point outside the target folder."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            members = [member for member in packed.infolist() if not member.is_dir()]
            for done, member in enumerate(members, start=1):
                with packed.open(member) as content:
                    yield PurePosixPath(member.filename).name, content
                progress(f"unpacking {archive.name}", done, len(members))
        return
    size = archive.stat().st_size
    with archive.open("rb") as raw, tarfile.open(fileobj=raw, mode="r:*") as tar:
        for entry in tar:
            if entry.isfile() and (file := tar.extractfile(entry)):
                yield PurePosixPath(entry.name).name, file
                progress(f"unpacking {archive.name}, MiB", raw.tell() // 2**20, max(1, size // 2**20))
