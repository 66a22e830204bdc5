"""Thumbnails: the right way up, small, and without anything else of the photo."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from polyalign.data.pairs import CorruptImageError
from polyalign.serving.thumbnails import thumbnail


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


@pytest.mark.parametrize(
    ("mode", "name"), [("RGB", "a.jpg"), ("L", "a.jpg"), ("RGBA", "a.png"), ("P", "a.gif"), ("I;16", "a.tif")]
)
def test_a_thumbnail_is_a_jpeg_in_rgb_of_the_wanted_size(tmp_path: Path, mode: str, name: str) -> None:
    Image.new(mode, (800, 600)).save(tmp_path / name)
    made = opened(thumbnail(tmp_path / name, 200))
    assert (made.format, made.mode, made.size) == ("JPEG", "RGB", (200, 150))


@pytest.mark.parametrize(("size", "expected"), [((30, 20), (30, 20)), ((4000, 1), (200, 1))])
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
