"""Thumbnails: the right way up, small, and without anything else of the photo."""

from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from polyalign.data.pairs import CorruptImageError
from polyalign.serving import thumbnails
from polyalign.serving.thumbnails import Thumbnails, thumbnail


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


@pytest.mark.parametrize(
    ("mode", "name"), [("RGB", "a.jpg"), ("L", "a.jpg"), ("RGBA", "a.png"), ("P", "a.gif"), ("I;16", "a.tif")]
)
def test_a_thumbnail_is_a_jpeg_in_rgb_of_the_wanted_size(tmp_path: Path, mode: str, name: str) -> None:
    Image.new(mode, (800, 600)).save(tmp_path / name)
    made = opened(thumbnail(tmp_path / name, 200))
    assert (made.format, made.mode, made.size) == ("JPEG", "RGB", (200, 150))


@pytest.mark.parametrize(("size", "expected"), [((30, 20), (30, 20)), ((400, 4), (200, 2))])
def test_small_photos_are_not_enlarged_and_thin_ones_not_lost(
    tmp_path: Path, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    Image.new("RGB", size).save(tmp_path / "a.png")
    assert opened(thumbnail(tmp_path / "a.png", 200)).size == expected


def test_a_thumbnail_is_rotated_and_its_own_exif_is_gone(tmp_path: Path) -> None:
    photo = Image.new("RGB", (80, 40), "white")
    photo.paste("red", (0, 0, 40, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise
    exif[0x010E] = "at my home"
    photo.save(tmp_path / "a.jpg", exif=exif)
    made = opened(thumbnail(tmp_path / "a.jpg", 200))
    assert made.size == (40, 80)
    top = made.getpixel((20, 10))
    assert isinstance(top, tuple)
    assert top[1] < 50  # the red half is on top
    assert not made.getexif()


def test_a_file_that_is_no_photo_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    with pytest.raises(CorruptImageError):
        thumbnail(tmp_path / "a.jpg", 200)
    with pytest.raises(FileNotFoundError):
        thumbnail(tmp_path / "none.jpg", 200)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.new("RGB", (400, 300), "red").save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_a_full_folder_of_thumbnails_loses_the_oldest_half(photo: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(thumbnails, "_PER_FOLDER", 4)
    monkeypatch.setattr("polyalign.serving.thumbnails.xxhash.xxh3_128_hexdigest", lambda key: f"00{key[-15:].hex()}")
    kept = Thumbnails(tmp_path / "kept", 100)
    sizes = []
    for number in range(10):
        os.utime(photo, ns=(0, number))
        kept.get(photo)
        newest = max((tmp_path / "kept" / "00").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, ns=(0, number))
        sizes.append(len(list((tmp_path / "kept" / "00").iterdir())))
    assert sizes == [1, 2, 3, 4, 3, 4, 3, 4, 3, 4]


def test_threads_that_fill_a_folder_do_not_disturb_each_other(tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(thumbnails, "_PER_FOLDER", 2)
    monkeypatch.setattr(
        "polyalign.serving.thumbnails.xxhash.xxh3_128_hexdigest", lambda key: f"00{abs(hash(key)):030x}"
    )
    paths = [tmp_path / f"{number}.png" for number in range(20)]
    for path in paths:
        Image.new("RGB", (4, 4)).save(path)
    kept = Thumbnails(tmp_path / "kept", 100)
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(kept.get, paths * 5))
    assert not caplog.messages


def test_thumbnails_that_cannot_be_kept_are_still_made_and_told_once(photo: Path, tmp_path: Path, caplog) -> None:
    (tmp_path / "kept").write_text("not a folder")
    kept = Thumbnails(tmp_path / "kept", 100)
    assert kept.get(photo) == kept.get(photo) == thumbnail(photo, 100)
    assert len(caplog.messages) == 1
    assert "until the next start thumbnails are made again for every request" in caplog.messages[0]


@pytest.mark.parametrize("place", ["kept", "kept/{name[0]}{name[1]}", "kept/{name[0]}{name[1]}/{name}.jpg"])
def test_links_in_an_index_of_a_stranger_are_not_followed(
    photo: Path, tmp_path: Path, place: str, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(thumbnails, "_PER_FOLDER", 2)
    name = "ab" * 16
    monkeypatch.setattr("polyalign.serving.thumbnails.xxhash.xxh3_128_hexdigest", lambda _: name)
    private = tmp_path / "private"
    link = tmp_path / place.format(name=name)
    link.parent.mkdir(parents=True, exist_ok=True)
    inside = private / f"{name}.jpg" if link.suffix else private
    for one in (private / f"{name}.jpg", private / "ab" / f"{name}.jpg", *(private / f"{n}.jpg" for n in range(9))):
        one.parent.mkdir(parents=True, exist_ok=True)
        one.write_bytes(b"private")
    link.symlink_to(inside)
    before = sorted(private.rglob("*"))
    kept = Thumbnails(tmp_path / "kept", 100)
    assert kept.get(photo) == kept.get(photo) == thumbnail(photo, 100)
    assert sorted(private.rglob("*")) == before
    assert [f"{link} is a link" in message for message in caplog.messages] == [True]


def test_only_thumbnails_make_room(photo: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(thumbnails, "_PER_FOLDER", 2)
    monkeypatch.setattr("polyalign.serving.thumbnails.xxhash.xxh3_128_hexdigest", lambda _: "ab" * 16)
    (tmp_path / "kept/ab").mkdir(parents=True)
    others = [tmp_path / "kept/ab" / name for name in ("me.jpg", f"{'AB' * 16}.jpg", f"{'a' * 33}.jpg")]
    for one in others:
        one.touch()
    Thumbnails(tmp_path / "kept", 100).get(photo)
    assert all(one.exists() for one in others)


def test_a_name_that_is_not_utf8_has_a_thumbnail(photo: Path, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
    photo.rename(odd)
    assert Thumbnails(tmp_path / "kept", 100).get(odd)
