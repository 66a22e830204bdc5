"""Files of the cache, damaged: they are computed again or refused, never believed to the point of a crash."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from polyalign.config.schema import Recipe
from polyalign.data import image_prints
from polyalign.models import checkpoint
from polyalign.models.aligner import Aligner
from polyalign.utils import array_cache
from tests.fuzz.harness import Sandbox, cases, sandbox
from tests.fuzz.mutate import json_file, mutated, put_in_place

READERS = (
    ("search", "run", "red", "--images", "photos/images"),
    ("eval", "run"),
    ("cache", "list"),
    ("cache", "list", "--json"),
    ("cache", "clear"),
)


@pytest.fixture(scope="module")
def filled(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder as ``search`` and ``eval`` leave it; that of image hashes is kept for few images too."""
    folder = tmp_path_factory.mktemp("filled")
    with pytest.MonkeyPatch.context() as patch, sandbox(world) as box:
        patch.setattr(image_prints, "_WORTH_KEEPING", 1)
        for command in READERS[:2]:
            box.run(*command)
        shutil.copytree(box.cache, folder / "cache")
    return folder / "cache"


def files(filled: Path) -> list[str]:
    """List the files of the cache by their path in it."""
    return sorted(str(path.relative_to(filled)) for path in filled.rglob("*") if path.is_file())


@cache
def model(world: Path) -> tuple[Aligner, Recipe]:
    """Load the model once: what is attacked here are the files of the cache."""
    return checkpoint.load(world / "run")


def read(box: Sandbox, data: st.DataObject, world: Path) -> None:
    loaded = model(world)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_prints, "_WORTH_KEEPING", 1)
        patch.setattr(checkpoint, "load", lambda _, **__: loaded)
        box.run(*data.draw(st.sampled_from(READERS)))


def test_every_kind_of_store_is_there(filled: Path) -> None:
    assert {Path(name).name.partition("-")[0] for name in files(filled)} >= {"vision", "text", "prints"}


@cases(90)
@given(data=st.data())
def test_damaged_bytes(world: Path, filled: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(files(filled)))
    content = data.draw(mutated((filled / name).read_bytes()))
    with sandbox(world) as box:
        shutil.copytree(filled, box.cache, dirs_exist_ok=True)
        (box.cache / name).write_bytes(content)
        read(box, data, world)


@cases(90)
@given(data=st.data())
def test_edited_cards(world: Path, filled: Path, data: st.DataObject) -> None:
    """A card that says something else, with the checksum of what it says."""
    name = data.draw(st.sampled_from([name for name in files(filled) if name.endswith((".array", ".json"))]))
    whole = (filled / name).read_bytes()
    values, card, end = b"", whole, b""
    if name.endswith(".array"):
        length, _ = array_cache._END.unpack(whole[-array_cache._END.size :])
        start = len(whole) - array_cache._END.size - length
        values, card = whole[:start], whole[start : start + length]
    card = data.draw(json_file(json.loads(card)))
    if name.endswith(".array"):
        end = array_cache._END.pack(len(card), xxhash.xxh3_128_digest(card))
    with sandbox(world) as box:
        shutil.copytree(filled, box.cache, dirs_exist_ok=True)
        (box.cache / name).write_bytes(values + card + end)
        read(box, data, world)


@cases(60)
@given(data=st.data())
def test_swapped_and_missing_files(world: Path, filled: Path, data: st.DataObject) -> None:
    names = st.sampled_from(files(filled))
    one, other = data.draw(names), data.draw(names)
    with sandbox(world) as box:
        shutil.copytree(filled, box.cache, dirs_exist_ok=True)
        how = data.draw(st.sampled_from(("gone", "other", "folder", "empty", "broken link", "link out")))
        put_in_place(box.cache / one, how, box.work / "texts.txt" if how == "link out" else filled / other)
        read(box, data, world)
