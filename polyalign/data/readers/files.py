"""Text file readers that handle gzip, bzip2, byte order marks, LF and CRLF, and a missing final newline."""

from __future__ import annotations

import bz2
import gzip
import json
import re
import unicodedata
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from polyalign.utils.errors import AbsentError, UserError, did_you_mean
from polyalign.utils.files import check_is_file
from polyalign.utils.text import clean

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def folder(path: Path, what: str) -> Path:
    """Return the folder if it exists; ``what`` describes it in the error message.

    Raises:
        AbsentError: the path does not exist or is not a folder.
    """
    if path.is_dir():
        return path
    if path.exists():
        raise AbsentError(f"{path} is not a folder; {what} must be one")
    raise AbsentError(f"there is no folder {path} ({what}){_nearest(path)}")


def entries(path: Path) -> list[str]:
    """Return the sorted names in a folder.

    Raises:
        UserError: the folder cannot be read.
    """
    try:
        return sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        raise UserError(f"cannot read the folder {path}: {error.strerror}") from error


def existing(*candidates: Path, what: str) -> Path:
    """Return the first candidate that exists; ``what`` describes the file in the error message.

    Raises:
        AbsentError: no candidate exists; the message suggests a similar name.
    """
    for path in candidates:
        if is_file(path):
            return path
    first, *others = candidates
    # The first parent of each candidate that is not a folder; the same for all if the root is wrong.
    broken = {next((part for part in reversed(path.parents) if not part.is_dir()), None) for path in candidates}
    if len(broken) == 1 and (folder := broken.pop()) is not None:
        wrong = "is a file, not a folder" if folder.exists() else "is not there"
        raise AbsentError(f"there is no {what}: {folder} {wrong}{_nearest(folder)}")
    also = f" (nor {', nor '.join(str(path) for path in others)})" if others else ""
    raise AbsentError(f"there is no {what}: {first}{also} is not there{_nearest(first)}")


def as_on_disk(base: Path, name: str) -> Path:
    """Return the path of the file ``name`` in ``base``, whichever Unicode form (NFC or NFD) its name has there.

    macOS writes accents as separate characters (NFD) where a table usually has them in one (NFC).
    """
    forms = (name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))
    return next((base / form for form in forms if is_file(base / form)), base / name)


def is_file(path: Path) -> bool:
    """Return whether a path is that of a file; one that is too long or cannot be reached is not."""
    try:
        return path.is_file()
    except OSError:
        return False


def lines(path: Path) -> list[str]:
    """Read all lines without line endings. Only LF and CRLF end a line, since captions contain other separators.

    Raises:
        UserError: the file cannot be read, is empty, or is not UTF-8.
    """
    found = list(stream(path))
    if not found:
        raise UserError(f"{path} is empty")
    return found


def stream(path: Path) -> Iterator[str]:
    """Yield lines, see ``lines``; an empty file yields none."""
    with _reading(path) as file:
        for number, line in enumerate(file, start=1):
            yield _decode(line, path, number).removesuffix("\n").removesuffix("\r")


def text(path: Path) -> str:
    """Read a whole file without its byte order mark; line endings are kept.

    Raises:
        UserError: the file cannot be read, is empty, or is not UTF-8.
    """
    with _reading(path) as file:
        content = _decode(file.read(), path)
    if not content.strip():
        raise UserError(f"{path} is empty")
    return content


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file cannot be read or is not JSON.
    """
    return _parse_json(text(path), str(path))


def json_lines(path: Path, containing: str = "") -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the 1-based number and the object of each line; skip blank lines and lines without ``containing``.

    Raises:
        UserError: the file cannot be read, or a line is not a JSON object; the message names the line.
    """
    for number, line in enumerate(stream(path), start=1):
        if containing not in line or not line.strip():
            continue
        value = _parse_json(line, f"{path}, line {number}")
        if not isinstance(value, dict):
            raise UserError(f'{path}, line {number} is not a JSON object {{"...": ...}}')
        yield number, value


def _parse_json(content: str, where: str) -> Any:
    try:
        value = json.loads(content, object_pairs_hook=_unique)
        if _SURROGATE.search(content):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where} contains half a character (a lone surrogate)") from error
    except RecursionError as error:
        raise UserError(f"{where} is nested too deeply") from error
    except ValueError as error:
        raise UserError(f"{where} is not JSON: {error}") from error
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        twice = next(key for place, (key, _) in enumerate(pairs) if key in dict(pairs[:place]))
        raise ValueError(f'an object has "{clean(twice, 60)}" twice')
    return table


@contextmanager
def expecting(where: object, form: str) -> Iterator[None]:
    """Convert errors of values that are not of an expected form to a UserError that names the form."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{where} is not of the form {form}") from error


def string(value: Any) -> str:
    """Return a string of a JSON value, for use inside ``expecting``.

    Raises:
        TypeError: the value is no string.
    """
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} is no string")
    return value


def strings(value: Any) -> list[str]:
    """Return a list of strings of a JSON value, see ``string``."""
    if not isinstance(value, list):
        raise TypeError(f"{type(value).__name__} is no list")
    return list(map(string, value))


@contextmanager
def _reading(path: Path) -> Iterator[IO[bytes]]:
    """Open a possibly compressed file for reading bytes; read errors become a UserError."""
    opener: Any = {".gz": gzip.open, ".bz2": bz2.open}.get(path.suffix, Path.open)
    check_is_file(path)
    try:
        with opener(path, "rb") as file:
            yield file
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def _decode(raw: bytes, path: Path, line: int = 1) -> str:
    """Decode UTF-8 that begins in a line of a file, without a byte order mark."""
    try:
        found = raw.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        utf_16 = line == 1 and raw.startswith((b"\xff\xfe", b"\xfe\xff"))
        reason = "it looks like UTF-16" if utf_16 else f"byte 0x{raw[error.start]:02x}"
        at = line + raw.count(b"\n", 0, error.start)
        raise UserError(f"{path}, line {at} is not UTF-8 ({reason}): save it as UTF-8") from error
    if (place := found.find("\0")) >= 0:
        at = line + found.count("\n", 0, place)
        raise UserError(f"{path}, line {at} contains a NUL character: the file is damaged or is not UTF-8")
    return found


def _nearest(path: Path) -> str:
    """Suggest a sibling of a path that does not exist."""
    parent = path.parent
    if not parent.is_dir():
        return f": there is no folder {parent} either"
    names = entries(parent)
    return f": {did_you_mean(path.name, names)}" if 0 < len(names) <= 30 else ""
