from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from polyalign.data import image_prints
from polyalign.data.pairs import FileImage
from polyalign.utils import row_blocks, row_files, row_store


class Counted(FileImage):
    """A file that counts how often it is opened."""

    opened = 0

    def open_small(self, px: int) -> Image.Image:
        Counted.opened += 1
        return super().open_small(px)


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(image_prints, "_WORTH_KEEPING", 4)
    monkeypatch.setattr(Counted, "opened", 0)
    forget(monkeypatch)


@pytest.fixture
def images(tmp_path) -> list[Counted]:
    """Five noisy pictures, the third of them broken."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(path)
    paths[2].write_bytes(paths[2].read_bytes()[:100])
    return [Counted(path) for path in paths]


def look(images):
    return list(image_prints.prints(images).values())


def forget(monkeypatch):
    """Stand for the process that a later run is."""
    monkeypatch.setattr(image_prints, "_KNOWN", {})


def same(a, b):
    return [shown(one) for one in a] == [shown(one) for one in b]


def shown(one):
    return one.bits.tolist(), one.thumb.tolist(), one.problem


def test_an_image_is_opened_once_and_in_a_later_run_not_at_all(images, monkeypatch):
    first = look(images)
    assert Counted.opened == 5
    assert same(look(images[::-1]), first[::-1])
    forget(monkeypatch)
    assert same(look(images), first)
    assert Counted.opened == 5


def test_what_is_broken_is_remembered_as_broken(images, monkeypatch):
    look(images)
    forget(monkeypatch)
    problems = [one.problem for one in look(images)]
    assert [problem is None for problem in problems] == [True, True, False, True, True]
    assert problems[2]


def test_a_file_that_changed_is_looked_at_again(images):
    before = look(images)
    Image.new("RGB", (9, 9), "red").save(images[2].path)
    after = look(images)
    assert (before[2].is_missing, after[2].problem) == (False, None)
    assert after[2].thumb.reshape(16, 16, 3).mean((0, 1)).tolist() == [255, 0, 0]
    assert same(before[3:], after[3:])


def test_what_is_missing_is_said_and_is_looked_for_each_time(images, monkeypatch):
    content = images[1].path.read_bytes()
    images[1].path.unlink()
    found = look(images)
    assert [one.is_missing for one in found] == [False, True, False, False, False]
    assert "1.png" in str(found[1].problem)
    images[1].path.write_bytes(content)
    assert look(images)[1].problem is None
    forget(monkeypatch)
    assert look(images)[1].problem is None


def test_only_images_that_were_added_are_opened(images, tmp_path, monkeypatch):
    first = look(images[:4])
    Image.new("RGB", (9, 9), "red").save(tmp_path / "0.png")  # changed
    forget(monkeypatch)
    found = look(images)
    assert Counted.opened == 4 + 2
    assert same(found[1:4], first[1:])


def test_the_hash_and_thumbnail_are_those_of_the_picture(tmp_path):
    ramp = np.tile(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (64, 1, 3))
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    (one,) = look([FileImage(tmp_path / "ramp.png")])
    assert one.bits.shape == (64,)
    assert one.bits.all()  # brighter from left to right everywhere
    assert one.thumb.reshape(16, 16, 3)[0, :, 0].tolist() == [int(4 * (4 * i + 1.5)) for i in range(16)]


def test_what_is_kept_is_listed_and_cleared_with_the_rest_of_the_cache(images):
    look(images)
    (entry,) = row_blocks.entries()
    assert (entry.space.what, entry.rows) == ("checks", 5)
    assert row_files.clear() > 0
    assert row_blocks.entries() == []


@pytest.mark.parametrize("name", ["rows.sqlite", ""])
@pytest.mark.parametrize("content", [b"[]", b"\x93NUMPY\x01\x00", b"\0" * 5000])
def test_a_damaged_cache_is_told_and_made_again(images, monkeypatch, caplog, content, name):
    first = look(images)
    (kept,) = row_files.folder().glob("prints-*")
    name = name or next(kept.glob("*.rows")).name
    (kept / name).write_bytes(content)
    monkeypatch.setattr(row_store, "_CHECKED", set())
    for opened in (10, 10):
        forget(monkeypatch)
        assert same(look(images), first)
        assert Counted.opened == opened
    assert len([one for one in caplog.messages if str(kept) in one]) == (0 if name == "rows.sqlite" else 1)
