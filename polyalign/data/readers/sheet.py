"""Readers for tables with named columns: CSV, TSV, JSON Lines, Parquet and Excel."""

from __future__ import annotations

import csv
import io
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from polyalign.data.readers.files import json_lines, text
from polyalign.utils.errors import UserError, first_line
from polyalign.utils.files import check_is_file
from polyalign.utils.text import clean

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet", ".xlsx")
_LARGEST_WORKBOOK = 2**30  # bytes after decompression
_SEPARATORS = (",", ";", "\t")


@dataclass(frozen=True)
class Sheet:
    """Named columns of equal length; ``column`` loads the values of a column on demand."""

    where: str
    names: tuple[str, ...]
    rows: int
    column: Callable[[str], Sequence[Any]]
    row_name: Callable[[int], str]


def read(path: Path) -> Sheet:
    """Read a table in the format given by its suffix; the separator of delimited text is detected from the header.

    Raises:
        UserError: the file cannot be read or is malformed; the message names the line.
    """
    check_is_file(path)
    readers = {".jsonl": _read_json_lines, ".parquet": _read_parquet, ".xlsx": _read_excel}
    sheet = readers.get(path.suffix, _read_separated)(path)
    if twice := [name for name, count in Counter(sheet.names).items() if count > 1]:
        raise UserError(f"{path} has duplicate columns: {clean(', '.join(twice), 200)}")
    if sheet.rows == 0:
        raise UserError(f"{path} has no rows")
    return sheet


def _read_separated(path: Path) -> Sheet:
    content = text(path)
    # The separator is the most frequent one in the header, ignoring quoted text.
    unquoted = "".join(content.lstrip("\r\n").partition("\n")[0].split('"')[::2])
    separator = max(_SEPARATORS, key=unquoted.count)
    (_, header), *body = _split_tabs(content) if separator == "\t" else _parse_csv(path, content, separator)
    header = [name.strip() for name in header]
    for line, row in body:
        if len(row) != len(header):
            remedy = f'captions that contain "{separator}" must be enclosed in double quotes'
            if separator == "\t":
                remedy = "captions must not contain tabs"
            raise UserError(
                f"{path}, line {line} has {len(row)} fields, the header has {len(header)} "
                f"({clean(', '.join(header), 200)}); {remedy}"
            )
    columns = {name: [row[i] for _, row in body] for i, name in enumerate(header)}
    numbers = [line for line, _ in body]
    return Sheet(str(path), tuple(header), len(body), columns.__getitem__, lambda i: f"{path}, line {numbers[i]}")


def _parse_csv(path: Path, content: str, separator: str) -> list[tuple[int, list[str]]]:
    """Parse strictly according to RFC 4180, so that a stray quote is an error and does not swallow following lines."""
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=separator, strict=True)
    try:
        return [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise UserError(
            f'{path}, line {reader.line_num}: {error}; write a double quote inside a quoted field as ""'
        ) from error


def _split_tabs(content: str) -> list[tuple[int, list[str]]]:
    """Split at every tab; quotes are literal unless they enclose a whole field, as written by spreadsheets."""
    numbered = enumerate(content.split("\n"), start=1)
    lines = ((number, line.removesuffix("\r")) for number, line in numbered)
    return [(number, [_unquote(field) for field in line.split("\t")]) for number, line in lines if line]


def _unquote(field: str) -> str:
    inner = field[1:-1]
    quoted = len(field) >= 2 and field[0] == field[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if quoted else field


def _read_json_lines(path: Path) -> Sheet:
    rows = list(json_lines(path))
    names = tuple(dict.fromkeys(name for _, row in rows for name in row))
    numbers = [number for number, _ in rows]

    def column(name: str) -> list[Any]:
        for number, row in rows:
            if name not in row:
                raise UserError(f'{path}, line {number} has no "{name}" ({clean(", ".join(row), 200)})')
        return [row[name] for _, row in rows]

    return Sheet(str(path), names, len(rows), column, lambda i: f"{path}, line {numbers[i]}")


def _read_parquet(path: Path) -> Sheet:
    with _reading(path):
        table = pq.ParquetFile(path, page_checksum_verification=True).read()

    def column(name: str) -> list[Any]:
        with _reading(path):
            return list(table.column(name).to_pylist())

    return Sheet(str(path), tuple(table.column_names), table.num_rows, column, lambda i: f"{path}, row {i + 1}")


def _read_excel(path: Path) -> Sheet:
    """Read the first sheet of a workbook; formulas have their last computed values, numbers are written as text."""
    from openpyxl import load_workbook

    try:
        content = io.BytesIO(path.read_bytes())
        with zipfile.ZipFile(content) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > _LARGEST_WORKBOOK:
            raise ValueError(f"it has {size / 2**30:.0f} GiB of content: save it as CSV")
        with closing(load_workbook(content, read_only=True, data_only=True)) as book:
            rows = [[_as_text(cell) for cell in row] for row in book.worksheets[0].iter_rows(values_only=True)]
    except Exception as error:  # openpyxl passes on those of zipfile, of XML parsers and of dates
        raise UserError(f"cannot read {path}: {clean(first_line(error) or type(error).__name__, 200)}") from error
    numbered = [(number, row) for number, row in enumerate(rows, start=1) if any(row)]
    if not numbered:
        raise UserError(f"{path} has no rows")
    (_, header), *body = numbered
    names = [name.strip() for name in header if name.strip()]
    if header[: len(names)] != [name for name in header if name.strip()]:
        raise UserError(f"{path}: the header has an empty cell before {clean(names[-1], 100)}")
    columns = {name: [row[i] if i < len(row) else "" for _, row in body] for i, name in enumerate(names)}
    return Sheet(str(path), tuple(names), len(body), columns.__getitem__, lambda i: f"{path}, row {body[i][0]}")


def _as_text(cell: Any) -> str:
    """Return a cell as text: 1.0, as Excel keeps whole numbers, is 1."""
    if cell is None:
        return ""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Convert errors of pyarrow to a UserError; text that is not UTF-8 and dates of no calendar are ValueErrors."""
    try:
        yield
    except (OSError, pa.ArrowException, ValueError, OverflowError) as error:
        raise UserError(f"cannot read {path}: {clean(first_line(error), 200)}") from error
