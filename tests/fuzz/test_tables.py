"""Caption tables from a stranger, in each format: of any cells, and with damaged bytes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

from polyalign.data.readers.sheet import SUFFIXES
from tests.fuzz.harness import Sandbox, cases, sandbox
from tests.fuzz.mutate import DEEP, edited, json_values, mutated, strings

COLUMNS = ("image", "caption", "split", "lang", "caption_en", "caption 2", "id", "file_name")
names = st.sampled_from(COLUMNS) | strings
cells = st.sampled_from(("072.png", "images/../../x.png", "red green", "en", "train", "test", "dev", "")) | strings


def rows(world: Path) -> list[dict[str, Any]]:
    with (world / "photos" / "captions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def separated(table: list[dict[str, Any]], delimiter: str) -> bytes:
    file = io.StringIO(newline="")
    sheet = csv.writer(file, delimiter=delimiter)
    sheet.writerow(table[0] if table else [])
    sheet.writerows(row.values() for row in table)
    return file.getvalue().encode("utf-8", "surrogatepass")


def json_lines(table: list[dict[str, Any]]) -> bytes:
    return "\n".join(map(json.dumps, table)).encode()


def parquet(table: list[dict[str, Any]]) -> bytes:
    """Write the table; columns that no type fits, and names that are no UTF-8, as text."""
    keys = dict.fromkeys(key for row in table for key in row if isinstance(row, dict))
    columns = {}
    for key in keys:
        values = [row.get(key) if isinstance(row, dict) else row for row in table]
        try:
            columns[_utf8(key)] = pa.array(values)
        except (pa.ArrowException, OverflowError, UnicodeError, TypeError):
            columns[_utf8(key)] = pa.array([_utf8(repr(value)) for value in values])
    file = pa.BufferOutputStream()
    try:
        pq.write_table(pa.table(columns), file)
    except pa.ArrowException:  # such as an empty struct, which Parquet does not have
        return b""
    return file.getvalue().to_pybytes()


def workbook(table: list[dict[str, Any]]) -> bytes:
    """Write the table; what no cell can hold, as text."""
    return _workbook(json.dumps(table, default=repr))


@lru_cache(maxsize=64)  # a workbook has the time at which it was written in it
def _workbook(content: str) -> bytes:
    table = json.loads(content)
    keys = list(dict.fromkeys(key for row in table if isinstance(row, dict) for key in row))
    book = openpyxl.Workbook()
    book.active.append([_cell(key) for key in keys])
    for row in table:
        book.active.append([_cell(row.get(key) if isinstance(row, dict) else row) for key in keys])
    file = io.BytesIO()
    book.save(file)
    return file.getvalue()


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, int) and abs(value) < 2**53):
        return value
    return ILLEGAL_CHARACTERS_RE.sub("", _utf8(str(value)))[:32_000]


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


FORMATS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    ".csv": lambda table: separated(table, ","),
    ".tsv": lambda table: separated(table, "\t"),
    ".jsonl": json_lines,
    ".parquet": parquet,
    ".xlsx": workbook,
}


def test_every_format_is_here() -> None:
    assert set(FORMATS) >= set(SUFFIXES) - {".json"}


def read(box: Sandbox, content: bytes, suffix: str, *options: str) -> None:
    (box.work / "photos" / "captions.csv").unlink()
    (box.work / "photos" / f"captions{suffix}").write_bytes(content)
    box.run("data", "check", "--lang", "en", "--data", "photos", *options)


every_format = pytest.mark.parametrize("suffix", FORMATS)


@every_format
@cases(20)
@given(data=st.data())
def test_damaged_bytes(world: Path, suffix: str, data: st.DataObject) -> None:
    content = data.draw(mutated(FORMATS[suffix](rows(world))))
    with sandbox(world) as box:
        read(box, content, suffix)


@every_format
@cases(20)
@given(data=st.data())
def test_any_cells(world: Path, suffix: str, data: st.DataObject) -> None:
    own = cells if suffix in (".csv", ".tsv") else cells | json_values
    header = data.draw(st.lists(names, max_size=4, unique=True).map(lambda some: ["image", "caption", *some]))
    table = data.draw(st.lists(st.fixed_dictionaries(dict.fromkeys(header, own)), max_size=4))
    as_json = data.draw(st.sampled_from(((), ("--json",))))
    with sandbox(world) as box:
        read(box, FORMATS[suffix](table), suffix, *as_json)


@every_format
@cases(18)
@given(data=st.data())
def test_edited_rows(world: Path, suffix: str, data: st.DataObject) -> None:
    table = data.draw(edited(rows(world), cells if suffix in (".csv", ".tsv") else json_values))
    with sandbox(world) as box:
        read(box, FORMATS[suffix]([row for row in table if isinstance(row, dict)]), suffix)


@cases(20)
@given(text=st.sampled_from(DEEP), key=st.sampled_from(("image", "caption", "x")))
def test_deep_json(world: Path, text: str, key: str) -> None:
    with sandbox(world) as box:
        read(box, f'{{"{key}": {text}}}\n'.encode(), ".jsonl")


@cases(20)
@given(data=st.data())
def test_any_column_settings(world: Path, data: st.DataObject) -> None:
    keys = (
        "image_column",
        "caption_column",
        "id_column",
        "lang_column",
        "split_column",
        "captions",
        "images",
        "dev_share",
        "split_seed",
    )
    chosen = data.draw(st.lists(st.sampled_from(keys), min_size=1, max_size=3, unique=True))
    values = [data.draw(names).replace("\0", "") for _ in chosen]
    options = [word for key, value in zip(chosen, values, strict=True) for word in ("--set", f"source.{key}={value}")]
    with sandbox(world) as box:
        box.run("data", "check", "--lang", "en", "--data", "photos", *options)
