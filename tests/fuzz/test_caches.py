"""Files of the cache, damaged: they are computed again or refused, never believed to the point of a crash."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyalign.config.schema import Recipe
from polyalign.data import image_prints
from polyalign.models import checkpoint
from polyalign.models.aligner import Aligner
from polyalign.utils import row_blocks, row_files, row_store
from tests.fuzz.harness import Sandbox, cases, sandbox
from tests.fuzz.mutate import json_file, mutated, put_in_place

READERS = (
    ("search", "run", "red", "--images", "photos/images"),
    ("eval", "run"),
    ("cache", "list"),
    ("cache", "list", "--json"),
    ("cache", "clear"),
    ("cache", "prune", "--max-gib", "0"),
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
        patch.setattr(row_store, "_CHECKED", set())
        patch.setattr(checkpoint, "load", lambda _, **__: loaded)
        box.run(*data.draw(st.sampled_from(READERS)))


def test_every_kind_of_store_is_there(filled: Path) -> None:
    assert {Path(name).parent.name.partition("-")[0] for name in files(filled)} >= {"vision", "text", "prints"}


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
    """The entry of a block that says something else, with the checksum of what it says; rows keep their shape."""
    name = data.draw(st.sampled_from([name for name in files(filled) if name.endswith(row_files.DATABASE)]))
    with sandbox(world) as box:
        shutil.copytree(filled, box.cache, dirs_exist_ok=True)
        with closing(sqlite3.connect(box.cache / name, isolation_level=None)) as database:
            ((facts,),) = database.execute("SELECT facts FROM space").fetchall()
            number, card, keys, lengths = data.draw(
                st.sampled_from(database.execute("SELECT id, card, keys, lengths FROM blocks").fetchall())
            )
            if data.draw(st.booleans()):
                facts = data.draw(json_file(json.loads(facts))).decode(errors="replace")
                database.execute("UPDATE space SET facts = ?", (facts,))
            else:
                edited = data.draw(json_file(json.loads(card))).decode(errors="replace")
                card = edited if _shape(edited) in (None, _shape(card)) else card
                keys, lengths = data.draw(mutated(keys)), data.draw(mutated(lengths or b"\1\0\0\0"))
            entry = (card, keys, lengths, row_blocks._mark(facts, card, keys, lengths), number)
            database.execute("UPDATE blocks SET card = ?, keys = ?, lengths = ?, mark = ? WHERE id = ?", entry)
        read(box, data, world)


def _shape(card: str) -> object:
    try:
        return row_blocks.Card.model_validate_json(card).shape
    except ValueError:
        return None


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
