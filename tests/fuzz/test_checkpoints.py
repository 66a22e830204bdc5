"""Checkpoints from a stranger: the files of a finished run damaged, edited, swapped and missing."""

from __future__ import annotations

import json
import struct
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyalign.config.run_files import WEIGHTS
from polyalign.models import checkpoint
from polyalign.utils import storage
from polyalign.utils.errors import UserError
from tests.fuzz.harness import Sandbox, cases, sandbox
from tests.fuzz.mutate import NASTY, edited, json_file, mutated, put_in_place, toml

# What reads a run without training anything.
READERS = (
    ("search", "run", "red", "--images", "photos/images"),
    ("eval", "run"),
    ("eval", "run", "--json"),
    ("train", "--lang", "en", "--out", "run"),
    ("train", "--lang", "en", "--out", "run", "--resume"),
)
readers = st.sampled_from(READERS[:2]) | st.sampled_from(READERS)


def files(world: Path) -> list[str]:
    """List the files of the run by their path in it."""
    run = world / "run"
    return sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())


def sign(run: Path) -> None:
    """Record the files of a run as ``checkpoint.save`` does: a checksum tells of damage, not of malice."""
    tensors, metadata = storage.load_tensors(run / WEIGHTS)
    try:
        metadata["files"] = json.dumps(checkpoint._digests(run))
    except UserError:  # a recipe that is not TOML has no digest
        return
    storage.save_tensors(run / WEIGHTS, tensors, metadata)


def read(box: Sandbox, command: tuple[str, ...], *, signed: bool = False) -> None:
    if signed:
        sign(box.work / "run")
    box.run(*command, may_write=("run",) if command[0] == "train" else (), idle=True)


def test_a_run_is_made_of_files(world: Path) -> None:
    assert len(files(world)) >= 6
    with sandbox(world) as box:
        for command in READERS:
            assert box.run(*command, idle=True).code == 0


@cases(45)
@given(data=st.data())
def test_damaged_bytes(world: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(files(world)) | st.just("model.safetensors"))
    content = data.draw(mutated((world / "run" / name).read_bytes()))
    with sandbox(world) as box:
        (box.work / "run" / name).write_bytes(content)
        read(box, data.draw(readers), signed=name != WEIGHTS and data.draw(st.booleans()))


@cases(30)
@given(data=st.data())
def test_swapped_and_missing_files(world: Path, data: st.DataObject) -> None:
    names = st.sampled_from(files(world))
    with sandbox(world) as box:
        run = box.work / "run"
        for name in data.draw(st.lists(names, min_size=1, max_size=3, unique=True)):
            how = data.draw(st.sampled_from(("gone", "other", "folder", "empty", "broken link", "loop")))
            put_in_place(run / name, how, world / "run" / data.draw(names))
        read(box, data.draw(readers))


@cases(45)
@given(data=st.data())
def test_an_edited_recipe(world: Path, data: st.DataObject) -> None:
    table = tomllib.loads((world / "run" / "recipe.toml").read_text(encoding="utf-8"))
    with sandbox(world) as box:
        (box.work / "run" / "recipe.toml").write_bytes(data.draw(toml(table)))
        read(box, data.draw(readers), signed=True)


JSON = ("towers.json", "result.json", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json")


@pytest.mark.parametrize("name", JSON)
@cases(20)
@given(data=st.data())
def test_edited_json(world: Path, name: str, data: st.DataObject) -> None:
    base = json.loads((world / "run" / name).read_text(encoding="utf-8"))
    content = data.draw(json_file(base))
    with sandbox(world) as box:
        (box.work / "run" / name).write_bytes(content)
        read(box, data.draw(readers), signed=True)


@cases(40)
@given(data=st.data())
def test_an_edited_header_of_the_weights(world: Path, data: st.DataObject) -> None:
    """The header says names, types, shapes and places: here it says something else."""
    whole = (world / "run" / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + size])
    changed = json.dumps(data.draw(edited(header) | _places_of(header))).encode()
    with sandbox(world) as box:
        body = whole[8 + size :]
        (box.work / "run" / "model.safetensors").write_bytes(struct.pack("<Q", len(changed)) + changed + body)
        read(box, data.draw(readers))


def _places_of(header: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Give two tensors the same place, or one another type or shape."""
    tensors = [name for name in header if name != "__metadata__"]
    types = st.sampled_from(("F16", "F64", "I64", "BOOL", "BF16", "U8", "F8_E4M3", "X"))
    one = st.sampled_from(tensors)
    return st.builds(lambda a, b: {**header, a: header[b]}, one, one) | st.builds(
        lambda a, kind: {**header, a: {**header[a], "dtype": kind}}, one, types
    )


@cases(20)
@given(query=st.sampled_from(NASTY) | st.text(max_size=200) | st.sampled_from(("a" * 100_000, "[PAD]", "[MASK] [CLS]")))
def test_any_query(world: Path, query: str) -> None:
    with sandbox(world) as box:
        box.run("search", "run", "--images", "photos/images", "--", query.replace("\0", ""))
