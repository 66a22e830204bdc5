"""Robust file download: retried, resumed, verified by hash and moved into place atomically."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, ClassVar
from urllib.parse import urlsplit

from polyalign import __version__
from polyalign.utils.errors import UserError
from polyalign.utils.progress import progress
from polyalign.utils.storage import check_room
from polyalign.utils.text import clean

logger = logging.getLogger(__name__)

_ATTEMPTS = 5
_CHUNK = 2**20
_LARGE = 8 * 2**20
_LARGEST = 64 * 2**30
_SPARE = 64 * 2**20
_TIMEOUT_S = 60
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_LONGEST_PAUSE_S = 60.0
_SHOWN = 200  # characters of what a server sends, in messages
_LENGTH = re.compile(r"[0-9]{1,18}")
_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]+/([0-9]{1,18}|\*)")
_WEB_PAGE = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype\s+html|html)\b", re.IGNORECASE)

Wait = Callable[[float], object]


def fetch(url: str, path: Path, *, sha256: str = "", copies: int = 1, wait: Wait = time.sleep) -> None:
    """Download a file to ``path`` atomically; an existing file is replaced.

    Temporary failures are retried with exponential backoff. Retries and later calls resume the partial download in
    ``<path>.part`` by HTTP range requests, if the server's file is still the same. Redirects from https to http are
    refused.

    Args:
        url: http or https address.
        path: destination.
        sha256: expected hash in hex; if empty, only the length is checked.
        copies: required free disk space as a multiple of the file size, for example 2 if the file is unpacked next.
        wait: called with the seconds to sleep between attempts.

    Raises:
        UserError: polyalign is offline, the file does not exist, is empty or a web page, has the wrong hash or does not
            fit on the disk, or all attempts failed.
    """
    if is_offline():
        raise UserError(f"{path} is not there and cannot be downloaded offline; its address is {url}")
    part = path.with_name(f"{path.name}.part")
    with _writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    if part.is_symlink() or (part.exists() and not part.is_file()):
        raise UserError(f"cannot write {part}: there is something else of this name; move it away")
    if not sha256 and not _version(part).is_file():
        _discard(part)  # without hash and version, the rest could be that of another file
    begun = part.exists()
    _persist(url, part, copies, wait)
    if begun and sha256 and digest(part) != sha256:
        # The partial file may be from an older version.
        _discard(part)
        _persist(url, part, copies, wait)
    if problem := _problem(part, sha256):
        _discard(part)
        raise UserError(f"{url} {problem}; the download was deleted")
    with _writing(path):
        part.replace(path)
    _discard(part)


def is_offline() -> bool:
    """Return whether downloads are forbidden by ``HF_HUB_OFFLINE``, which ``--offline`` sets."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


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
            reason = clean(f"HTTP {error.code} {error.reason}", _SHOWN)
            if error.code not in _PASSING:
                raise UserError(f"{url} cannot be downloaded: {reason}") from error
            asked = error.headers.get("Retry-After", "")
            pause = min(float(asked), _LONGEST_PAUSE_S) if asked.isdecimal() else 0.0
        except (http.client.HTTPException, OSError) as error:  # URLError and socket errors are OSErrors
            pause = 0.0
            reason = clean(getattr(error, "reason", "") or error, _SHOWN) or type(error).__name__
        failures = 1 if _size(part) > before else failures + 1
        if failures == _ATTEMPTS:
            raise UserError(
                f"{url} could not be downloaded in {_ATTEMPTS} attempts: {reason}. Run the same command again to resume"
            )
        wait(max(pause, 2.0 ** (failures - 1)))


def _receive(url: str, part: Path, copies: int) -> None:
    """Request the missing bytes once and append them."""
    have = _size(part)
    answer = _request(url, part, have)
    if answer is None:
        return
    with answer:
        length = answer.headers.get("Content-Length", "")
        total = int(length) if _LENGTH.fullmatch(length) else 0
        if answer.status == 206:
            sent = _RANGE.match(answer.headers.get("Content-Range", ""))
            if sent is None or int(sent[1]) != have:
                _discard(part)
                raise ConnectionResetError("the server sent another part of the file than requested")
            total = have + total if sent[2] == "*" else int(sent[2])
        else:  # the whole file: the server has no ranges, or another version of the file
            have = 0
            _note_version(answer.headers, part)
        check_room(part.parent, copies * total - have + _SPARE, url)
        for size in copy(answer, part, "ab" if have else "wb"):
            have += size
            if have > _LARGEST:
                _discard(part)
                raise UserError(f"{url} is larger than {_LARGEST // 2**30} GiB, as no dataset is; it was deleted")
            if total >= _LARGE:
                progress(f"{part.stem}, MiB", have // 2**20, total // 2**20)
            elif not total:
                check_room(part.parent, _SPARE, url)
    if total and have != total:
        raise ConnectionResetError(f"the connection ended after {have:,} of {total:,} bytes")


def _request(url: str, part: Path, have: int) -> Any:
    """Ask for the bytes after the first ``have``; return the answer, or None if there are no more."""
    headers = {"User-Agent": f"polyalign/{__version__}"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if _version(part).is_file():
            headers["If-Range"] = _version(part).read_text(encoding="latin-1")
    try:
        opener = urllib.request.build_opener(_Redirects)
        return opener.open(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        # The range starts at the end of the file: the download is complete, or belongs to another version.
        if error.headers.get("Content-Range", "").rpartition("/")[2] == str(have):
            return None
        _discard(part)
        raise ConnectionResetError("the partial download was longer than the file") from error


def _problem(part: Path, sha256: str) -> str:
    """Return what is wrong with a complete download, or an empty string."""
    with part.open("rb") as file:
        start = file.read(512)
    if not start:
        return "is empty"
    if _WEB_PAGE.match(start):
        return "is a web page, not a file: open it in a browser to see what it says"
    if sha256 and (found := digest(part)) != sha256:
        return f"has SHA-256 {found}, expected {sha256}: the published file or the download was modified"
    return ""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects, except from https to anything else; other hosts are named once."""

    told: ClassVar[set[tuple[str | None, str | None]]] = set()

    def redirect_request(self, req: urllib.request.Request, *args: Any) -> urllib.request.Request | None:
        here, there = urlsplit(req.full_url), urlsplit(args[-1])
        if there.scheme not in (here.scheme, "https"):
            told = clean(f"{there.scheme}://{there.hostname}", _SHOWN)
            raise UserError(f"{req.full_url} redirects to {told}, which is not secure: it was not followed")
        hosts = here.hostname, there.hostname
        if here.hostname != there.hostname and hosts not in self.told:
            self.told.add(hosts)
            logger.info(f"{here.hostname} redirects to {clean(there.hostname, _SHOWN)}")
        return super().redirect_request(req, *args)


def _version(part: Path) -> Path:
    """Return the file that keeps the server's name for the version of a partial download (ETag or date)."""
    return part.with_name(f"{part.name}.version")


def _note_version(headers: Any, part: Path) -> None:
    etag = headers.get("ETag", "")
    _discard(part)
    # A weak ETag does not promise equal bytes.
    if version := etag if etag.startswith('"') else headers.get("Last-Modified", ""):
        with _writing(part):
            _version(part).write_text(version, encoding="latin-1")


def _discard(part: Path) -> None:
    for path in (part, _version(part)):
        path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
