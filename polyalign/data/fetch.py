"""Robust file download: retried, resumed, verified by hash and moved into place atomically."""

from __future__ import annotations

import hashlib
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from polyalign import __version__
from polyalign.utils.errors import UserError
from polyalign.utils.progress import progress
from polyalign.utils.storage import check_room

_ATTEMPTS = 5
_CHUNK = 2**20
_LARGE = 8 * 2**20
_SPARE = 64 * 2**20
_TIMEOUT_S = 60
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_LONGEST_PAUSE_S = 60.0

Wait = Callable[[float], object]


def fetch(url: str, path: Path, *, sha256: str = "", copies: int = 1, wait: Wait = time.sleep) -> None:
    """Download a file to ``path`` atomically; an existing file is replaced.

    Temporary failures are retried with exponential backoff. Retries and later calls resume the partial download in
    ``<path>.part`` by HTTP range requests.

    Args:
        url: http or https address.
        path: destination.
        sha256: expected hash in hex; if empty, only the length is checked.
        copies: required free disk space as a multiple of the file size, for example 2 if the file is unpacked next.
        wait: called with the seconds to sleep between attempts.

    Raises:
        UserError: the file does not exist, has the wrong hash, does not fit on the disk, or all attempts failed.
    """
    part = path.with_name(f"{path.name}.part")
    with _writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    begun = part.exists()
    _persist(url, part, copies, wait)
    if begun and sha256 and digest(part) != sha256:
        # The partial file may be from an older version.
        part.unlink()
        _persist(url, part, copies, wait)
    if sha256 and (found := digest(part)) != sha256:
        part.unlink()
        raise UserError(
            f"{url} has SHA-256 {found}, expected {sha256}: the published file or the download was modified; "
            "the download was deleted"
        )
    part.replace(path)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy(source: IO[bytes], path: Path, mode: str = "wb") -> Iterator[int]:
    """Write a stream to a file and yield the size of each chunk; errors while reading are raised unchanged.

    Raises:
        UserError: the file cannot be written.
    """
    with _writing(path):
        file = path.open(mode)
    with file:
        while chunk := source.read(_CHUNK):
            with _writing(path):
                file.write(chunk)
            yield len(chunk)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Convert an OSError inside the context to a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def _persist(url: str, part: Path, copies: int, wait: Wait) -> None:
    """Download the rest of a file; give up after ``_ATTEMPTS`` consecutive attempts without progress."""
    failures = 0
    while True:
        before = _size(part)
        try:
            return _receive(url, part, copies)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code not in _PASSING:
                raise UserError(f"{url} cannot be downloaded: HTTP {error.code} {error.reason}") from error
            asked = error.headers.get("Retry-After", "")
            pause = min(float(asked), _LONGEST_PAUSE_S) if asked.isdecimal() else 0.0
            reason = f"HTTP {error.code} {error.reason}"
        except (http.client.HTTPException, OSError) as error:  # URLError and socket errors are OSErrors
            reason, pause = str(getattr(error, "reason", "") or error) or type(error).__name__, 0.0
        failures = 1 if _size(part) > before else failures + 1
        if failures == _ATTEMPTS:
            raise UserError(
                f"{url} could not be downloaded in {_ATTEMPTS} attempts: {reason}. Run the same command again to resume"
            )
        wait(max(pause, 2.0 ** (failures - 1)))


def _receive(url: str, part: Path, copies: int) -> None:
    """Request the missing bytes once and append them."""
    have = _size(part)
    headers = {"User-Agent": f"polyalign/{__version__}"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        # The range starts at the end of the file: the download is complete, or belongs to another version.
        if error.headers.get("Content-Range", "").rpartition("/")[2] == str(have):
            return
        part.unlink()
        raise ConnectionResetError("the partial download was longer than the file") from error
    with answer:
        if answer.status != 206 or not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            have = 0  # a server without range support sends the whole file
        left = int(answer.headers.get("Content-Length") or 0)
        total = have + left
        check_room(part.parent, copies * total - have + _SPARE, url)
        for size in copy(answer, part, "ab" if have else "wb"):
            have += size
            if total >= _LARGE:
                progress(f"{part.stem}, MiB", have // 2**20, total // 2**20)
    if left and have != total:
        raise ConnectionResetError(f"the connection ended after {have:,} of {total:,} bytes")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
