"""Images from a stranger: real files of each format, damaged."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.fuzz.harness import cases, sandbox
from tests.fuzz.mutate import mutated

# How Pillow writes each kind.
KINDS = {
    "png": {"format": "PNG"}, "png16": {"format": "PNG", "mode": "I;16"}, "png-palette": {"format": "PNG", "mode": "P"},
    "jpeg": {"format": "JPEG"}, "jpeg-cmyk": {"format": "JPEG", "mode": "CMYK"},
    "jpeg-exif": {"format": "JPEG", "exif": True},
    "tiff": {"format": "TIFF"}, "tiff-lzw": {"format": "TIFF", "compression": "tiff_lzw"},
    "tiff-float": {"format": "TIFF", "mode": "F"}, "gif": {"format": "GIF", "frames": 3}, "webp": {"format": "WEBP"},
    "webp-lossless": {"format": "WEBP", "lossless": True}, "bmp": {"format": "BMP"},
}  # fmt: skip


@cache
def picture(kind: str) -> bytes:
    """Write an image of 24 by 20 pixels of every colour."""
    how = dict(KINDS[kind])
    pixels = np.random.default_rng(0).integers(0, 255, (20, 24, 3), np.uint8)
    image, mode = Image.fromarray(pixels), how.pop("mode", None)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    elif mode is not None:
        image = image.convert(str(mode))
    if how.pop("exif", False):
        exif = Image.Exif()
        exif[0x0112], exif[0x010E] = 6, "a description"
        how["exif"] = exif
    if frames := how.pop("frames", 0):
        how |= {"save_all": True, "append_images": [image] * (int(str(frames)) - 1)}
    file = io.BytesIO()
    image.save(file, **how)  # type: ignore[arg-type]
    return file.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_the_undamaged_image_is_read(world: Path, kind: str) -> None:
    with sandbox(world) as box:
        (box.work / "few").mkdir()
        (box.work / "few" / "x.png").write_bytes(picture(kind))
        assert "few/x.png" in box.run("search", "run", "red", "--images", "few").out


@pytest.mark.parametrize("kind", KINDS)
@cases(8)
@given(data=st.data())
def test_a_damaged_image(world: Path, kind: str, data: st.DataObject) -> None:
    content = data.draw(mutated(picture(kind)))
    suffix = data.draw(st.sampled_from((".png", ".jpg", ".tif", ".gif", ".webp")))
    to_search = data.draw(st.booleans())
    with sandbox(world) as box:
        folder = box.work / "few"
        folder.mkdir()
        (folder / f"x{suffix}").write_bytes(content)
        (folder / "y.png").write_bytes(picture("png"))
        if to_search:
            box.run("search", "run", "red", "--images", "few")
        else:
            (folder / "captions.csv").write_text(f"image,caption\nx{suffix},red\ny.png,green\n", encoding="utf-8")
            box.run("data", "check", "--lang", "en", "--data", "few", "--set=source.dev_share=0.3")


@cases(15)
@given(
    name=st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=20), as_json=st.booleans()
)
def test_any_file_name(world: Path, name: str, as_json: bool) -> None:
    with sandbox(world) as box:
        (box.work / "few").mkdir()
        (box.work / "few" / f"{name}.png").write_bytes(picture("png"))
        box.run("search", "run", "red", "--images", "few", *(("--json",) if as_json else ()))
