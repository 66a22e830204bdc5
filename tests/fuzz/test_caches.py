"""Files of the cache, damaged: they are computed again or refused, never believed to the point of a crash."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyalign.data import image_prints
from tests.fuzz.harness import Sandbox, cases, sandbox
from tests.fuzz.mutate import json_file, mutated

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


def read(box: Sandbox, data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_prints, "_WORTH_KEEPING", 1)
        box.run(*data.draw(st.sampled_from(READERS)))


def test_both_kinds_of_store_are_there(filled: Path) -> None:
    assert {path.name.partition("-")[0] for path in filled.glob("*.npy")} == {"vision", "text", "prints"}
    assert list(filled.glob("*.json"))


@cases(120)
@given(data=st.data())
def test_damaged_bytes(world: Path, filled: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(path.name for path in filled.iterdir())))
    content = data.draw(mutated((filled / name).read_bytes()))
    with sandbox(world) as box:
        shutil.copytree(filled, box.cache, dirs_exist_ok=True)
        (box.cache / name).write_bytes(content)
        read(box, data)


@cases(80)
@given(data=st.data())
def test_edited_cards(world: Path, filled: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(path.name for path in filled.glob("*.json"))))
    content = data.draw(json_file(json.loads((filled / name).read_text(encoding="utf-8"))))
    with sandbox(world) as box:
        shutil.copytree(filled, box.cache, dirs_exist_ok=True)
        (box.cache / name).write_bytes(content)
        read(box, data)


@cases(60)
@given(data=st.data())
def test_swapped_and_missing_files(world: Path, filled: Path, data: st.DataObject) -> None:
    names = sorted(path.name for path in filled.iterdir())
    one, other = (data.draw(st.sampled_from(names)) for _ in range(2))
    with sandbox(world) as box:
        shutil.copytree(filled, box.cache, dirs_exist_ok=True)
        path = box.cache / one
        path.unlink()
        match data.draw(st.sampled_from(("gone", "other", "folder", "empty", "broken link"))):
            case "other":
                shutil.copy(filled / other, path)
            case "folder":
                path.mkdir()
            case "empty":
                path.touch()
            case "broken link":
                path.symlink_to("absent")
        read(box, data)
