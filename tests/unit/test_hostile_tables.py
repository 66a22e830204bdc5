"""Tables and images that no honest program writes: one line that names file and row, or they work."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import warnings
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from polyalign.config.language import load_language
from polyalign.data import class_names, image_prints
from polyalign.data.image_check import inspect_images
from polyalign.data.pairs import PairTable
from polyalign.data.sources import folder
from polyalign.utils.errors import UserError

EN = load_language("en")
many = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])


def load(root: Path, **options: Any) -> PairTable:
    return folder.load(folder.Config(root=root, **({"dev_share": 0, "test_share": 0} | options)), EN, "train")


def refused(root: Path, **options: Any) -> str:
    """The message of the error, which is short."""
    with pytest.raises(UserError) as caught:
        load(root, **options)
    assert len(str(caught.value)) < 1500
    return str(caught.value)


ROW = '{"image": "a.jpg", "caption": "x"}\n'
TABLES = {
    "csv": b'image,caption,split,lang\na.jpg,"a ""dog""",train,en\nb.jpg,un chien,dev,fr\n',
    "tsv": b"image\tcaption\na.jpg\ta dog\n",
    "jsonl": b'{"image": "a.jpg", "caption": ["x", "y"]}\n{"image": "b.jpg", "caption": "\\ud83d\\ude00"}\n',
}
ODD = [
    '"',
    ",",
    "\n",
    "\r",
    "\0",
    "\ufeff",
    "\x1b[2J",
    "{",
    "[" * 3000,
    "9" * 400,
    "9" * 5000,
    "null",
    "\\ud800",
    "\u2028",
]


@many
@given(st.sampled_from(sorted(TABLES)), st.binary(max_size=300))
def test_any_bytes_are_a_table_or_refused(tmp_path, ending, content):
    (tmp_path / f"a.{ending}").write_bytes(content)
    with suppress(UserError):
        load(tmp_path, captions=f"a.{ending}")


@many
@given(
    st.sampled_from(sorted(TABLES)),
    st.lists(st.tuples(st.integers(0, 99), st.sampled_from(ODD)), min_size=1, max_size=4),
)
def test_a_table_with_anything_inserted_is_read_or_refused(tmp_path, ending, insertions):
    content = TABLES[ending]
    for place, odd in insertions:
        content = content[:place] + odd.encode("utf-8", "surrogatepass") + content[place:]
    (tmp_path / f"a.{ending}").write_bytes(content)
    with suppress(UserError):
        inspect_images(load(tmp_path, captions=f"a.{ending}"))


values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.just(10**400) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)


@many
@given(
    st.lists(
        st.fixed_dictionaries({}, optional=dict.fromkeys(("image", "caption", "id", "split", "lang"), values)),
        min_size=1,
    )
)
def test_any_values_in_json_lines_are_pairs_or_refused(tmp_path, rows):
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for options in ({}, {"id_column": "id"}):
        with suppress(UserError):
            inspect_images(load(tmp_path, **options))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            ROW + '{"image": "a.jpg", "image": "b.jpg", "caption": "x"}',
            'line 2 is not JSON: an object has "image" twice',
        ),
        (ROW + '{"image": "a.jpg", "caption": "\\ud800"}', "line 2 contains half a character"),
        (ROW + '{"image": "a.jpg", "caption": ' + "[" * 100_000, "line 2 is nested too deeply"),
        (ROW + '{"image": "a.jpg", "caption": ' + "9" * 5000 + "}", "line 2 is not JSON: Exceeds the limit"),
        (ROW + '{"image": "a.jpg", "caption": ' + "9" * 400 + "}", "line 2: a caption must be a string or a list"),
        (ROW + '{"image": "a.jpg", "caption": "' + "x" * 10**7 + '"}', "line 2: the caption has 10,000,000 characters"),
        (ROW + '{"image": "a.jpg", "caption": "a\\u0000b"}', "line 2: the caption contains a NUL character"),
        (ROW + '{"image": ["a.jpg"], "caption": "x"}', 'line 2: "image" must name an image file'),
    ],
)
def test_odd_json_lines_are_refused_with_their_line(tmp_path, content, told):
    (tmp_path / "a.jsonl").write_text(content)
    assert told in refused(tmp_path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("image,caption\na.jpg,x\n".encode("utf-16-le"), "line 1 contains a NUL character"),
        ("image,caption\na.jpg,x\n".encode("utf-16"), "line 1 is not UTF-8 (it looks like UTF-16)"),
        (b"image,caption\na.jpg,x\nb.jpg,gr\xf6\xdfe\n", "line 3 is not UTF-8 (byte 0xf6)"),
        (b"image,caption\na.jpg,x\nb.jpg,\0\n", "line 3 contains a NUL character"),
        (b'image,caption\na.jpg,"' + b"x" * 10**7, "field larger than field limit"),
        (b"image,caption,split\na.jpg,x," + b"y" * 10**5, 'line 2: "yyyy'),
        (b",".join(b"%d" % i for i in range(20_000)) + b"\n" + b"," * 19_999, "has no column called image"),
        (b"image," + b",".join(b"c" * 50 for i in range(20_000)) + b"\n", "has duplicate columns: ccc"),
    ],
)
def test_odd_text_is_refused_with_its_line_in_few_words(tmp_path, content, told):
    (tmp_path / "a.csv").write_bytes(content)
    assert told in refused(tmp_path)


# Parquet


NESTED = {
    "struct": [{"text": "x"}],
    "list of structs": [[{"text": "x"}]],
    "numbers": [10**18],
    "bytes": [b"\xff"],
    "map": [[("a", "b")]],
    "null": [None],
}


@pytest.mark.parametrize("column", ["image", "caption", "id"])
@pytest.mark.parametrize("kind", NESTED)
def test_nested_parquet_is_read_or_refused_with_its_row(tmp_path, column, kind):
    good = {"image": pa.array(["a.jpg"]), "caption": pa.array(["x"]), "id": pa.array(["7"])}
    kinds = {"map": pa.map_(pa.string(), pa.string())}
    table = pa.table({**good, column: pa.array(NESTED[kind], kinds.get(kind))})
    pq.write_table(table, tmp_path / "a.parquet")
    works = (kind == "null" and column == "caption") or (column == "id" and kind in ("numbers", "bytes"))
    if works:
        load(tmp_path, id_column="id")
    else:
        assert "a.parquet, row 1: " in refused(tmp_path, id_column="id")


def test_parquet_with_text_that_is_not_text_or_columns_twice_is_refused(tmp_path):
    broken = pa.array([b"\xff\xfe"]).view(pa.binary()).cast(pa.binary())
    broken = pa.Array.from_buffers(pa.string(), 1, broken.buffers())
    pq.write_table(pa.table({"image": ["a.jpg"], "caption": broken}), tmp_path / "a.parquet")
    assert "cannot read" in refused(tmp_path)
    twice = pa.Table.from_arrays([pa.array(["a.jpg"]), pa.array(["b.jpg"])], ["image", "image"])
    pq.write_table(twice, tmp_path / "a.parquet")
    assert "duplicate columns: image" in refused(tmp_path)


def test_damaged_parquet_is_read_or_refused(tmp_path):
    table = pa.table({"image": [f"{i}.jpg" for i in range(50)], "caption": ["a dog", None] * 25})
    pq.write_table(table, whole := io.BytesIO(), write_page_checksum=True)
    rng = random.Random(0)
    for _ in range(150):
        content = bytearray(whole.getvalue())
        for _ in range(rng.choice((1, 3))):
            content[rng.randrange(len(content))] = rng.randrange(256)
        (tmp_path / "a.parquet").write_bytes(content[: rng.choice((len(content), rng.randrange(len(content))))])
        with suppress(UserError):
            load(tmp_path)


# One id for several images


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_an_id_of_several_images_is_refused_with_both_rows(tmp_path, ending):
    rows = {"image": ["a.jpg", "a.jpg", "b.jpg"], "caption": ["x", "y", "z"], "id": ["7", "7", "7"]}
    if ending == "csv":
        lines = zip(*rows.values(), strict=True)
        (tmp_path / "a.csv").write_text("image,caption,id\n" + "".join(f"{','.join(line)}\n" for line in lines))
    else:
        pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    told = refused(tmp_path, id_column="id")
    assert 'the id ("id") is that of another image' in told
    assert ("line 4" in told and "line 2" in told) if ending == "csv" else ("row 3" in told and "row 1" in told)


@pytest.mark.parametrize("cell", ["null", '""', '" "', "NaN", "[1]", "{}"])
def test_a_blank_id_is_refused(tmp_path, cell):
    (tmp_path / "a.jsonl").write_text(f'{{"image": "a.jpg", "caption": "x", "id": {cell}}}')
    assert 'line 1: "id" must identify an image, not ' in refused(tmp_path, id_column="id")


# Images


def bomb(path: Path, width: int, height: int) -> None:
    """A PNG of a few bytes that says that it is huge."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    parts = (
        struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data)) for tag, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def test_images_that_are_none_are_reported_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "good.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:60])
    bomb(tmp_path / "large.png", 10_000, 10_000)
    bomb(tmp_path / "huge.png", 100_000, 100_000)
    names = [
        "pipe.jpg",
        "folder.jpg",
        "device.jpg",
        "cut.png",
        "large.png",
        "huge.png",
        "loop.jpg",
        "a" * 300,
        "a\0b.jpg",
    ]
    rows = [{"image": name, "caption": "x"} for name in [*names, "good.png", "absent.png"]]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        report = inspect_images(load(tmp_path))
    found = {one.image_id: one.reason for one in report.bad}
    assert set(found) == {*names, "absent.png"}
    assert found["pipe.jpg"] == found["folder.jpg"] == found["device.jpg"] == "not a file but a folder, pipe or device"
    assert "exceeds limit" in found["large.png"]
    assert "exceeds limit" in found["huge.png"]
    assert {one.image_id for one in report.missing} == {"absent.png"}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@many
@given(st.integers(0, 2**32 - 1))
def test_a_damaged_image_is_decoded_or_reported(tmp_path, seed):
    rng = random.Random(seed)
    ending = rng.choice(("png", "jpeg", "gif", "webp", "bmp", "tiff"))
    made = io.BytesIO()
    Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3)).save(
        made, {"jpg": "jpeg", "tif": "tiff"}.get(ending, ending)
    )
    content = bytearray(made.getvalue())
    for _ in range(4):
        content[rng.randrange(len(content))] = rng.randrange(256)
    path = tmp_path / f"{seed}.{ending}"
    path.write_bytes(content)
    image_prints.prints([folder.FileImage(path)])


# Files in place of tables


@pytest.mark.parametrize("name", ["captions.csv", "captions.jsonl", "captions.parquet"])
def test_a_pipe_or_folder_in_place_of_a_table_is_refused(tmp_path, name):
    os.mkfifo(tmp_path / name)
    assert "is not a file but a folder, pipe or device" in refused(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    assert "is not a file but a folder, pipe or device" in refused(tmp_path)


@many
@given(
    st.sampled_from([".tsv", ".json", ".csv", ".jsonl"]),
    st.binary(max_size=80)
    | values.map(lambda value: json.dumps(value).encode())
    | values.map(lambda value: json.dumps({"class": value, "name": value}).encode()),
)
def test_any_file_of_class_names_is_read_or_refused(tmp_path, ending, content):
    path = tmp_path / f"names{ending}"
    path.write_bytes(content)
    for classes in (["a", "b"], [f"n{i:08d}" for i in range(1000)]):
        with suppress(UserError):
            class_names.read(str(path), EN, classes)
    with suppress(UserError):
        class_names.languages(str(path), [EN])
