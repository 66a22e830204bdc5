from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from polyalign.data.pairs import CorruptImageError, EncodedImage, FileImage, PairTable, decode


class Drawn:
    def __init__(self, color: int) -> None:
        self.color = color

    def open(self) -> Image.Image:
        return Image.new("RGB", (8, 8), (self.color,) * 3)

    def key(self) -> str:
        return f"grey:{self.color}"


def table(captions_of: list[list[str]]) -> PairTable:
    image_of = [i for i, captions in enumerate(captions_of) for _ in captions]
    return PairTable(
        name="t",
        lang="en",
        origin="human",
        image_ids=tuple(f"{i}.jpg" for i in range(len(captions_of))),
        images=tuple(Drawn(i) for i in range(len(captions_of))),
        captions=tuple(caption for captions in captions_of for caption in captions),
        image_of=np.array(image_of, dtype=np.int64),
    )


def pairs(t: PairTable) -> list[tuple[str, str]]:
    return [(t.image_ids[i], caption) for i, caption in zip(t.image_of, t.captions, strict=True)]


captions_of_images = st.lists(st.lists(st.text(max_size=3), max_size=3), max_size=6)


def test_taking_pairs_keeps_their_order_and_only_the_images_they_need():
    taken = table([["a", "b"], ["c"], ["d"]]).take_pairs([3, 0])
    assert pairs(taken) == [("2.jpg", "d"), ("0.jpg", "a")]
    assert taken.image_ids == ("0.jpg", "2.jpg")
    assert [image.key() for image in taken.images] == ["grey:0", "grey:2"]


def test_taking_images_takes_all_their_captions():
    assert pairs(table([["a", "b"], ["c"], ["d"]]).take_images([0, 2])) == [
        ("0.jpg", "a"),
        ("0.jpg", "b"),
        ("2.jpg", "d"),
    ]


def test_leaving_out_images_leaves_out_their_captions_and_ignores_strangers():
    left = table([["a", "b"], ["c"]]).without_images(["0.jpg", "stranger.jpg"])
    assert pairs(left) == [("1.jpg", "c")]
    assert left.image_ids == ("1.jpg",)


def test_an_image_whose_captions_are_all_empty_goes_with_them():
    left = table([["a", " \t"], ["", "\u3000"]]).without_empty_captions()
    assert pairs(left) == [("0.jpg", "a")]
    assert left.image_ids == ("0.jpg",)


@given(captions_of_images, st.randoms())
def test_caption_ranks_count_within_each_image_in_whatever_order(captions_of, random):
    t = table(captions_of)
    order = list(range(len(t)))
    random.shuffle(order)
    t = t.take_pairs(order)
    seen: dict[int, int] = {}
    for i, rank in zip(t.image_of, t.caption_ranks(), strict=True):
        assert rank == seen.get(i, 0)
        seen[i] = rank + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_ids": ("a", "a")}, "repeat"),
        ({"image_ids": ("a",)}, "1 ids for 2 images"),
        ({"captions": ("x",)}, "1 captions for 2"),
        ({"image_of": np.array([0, 2])}, "outside"),
        ({"image_of": np.array([-1, 0])}, "outside"),
    ],
)
def test_columns_that_do_not_fit_together_are_a_bug_of_the_source(change, message):
    good = {
        "image_ids": ("a", "b"),
        "images": (Drawn(0), Drawn(1)),
        "captions": ("x", "y"),
        "image_of": np.array([0, 1]),
    }
    with pytest.raises(ValueError, match=message):
        PairTable(name="t", lang="en", origin="human", **(good | change))


def test_a_turned_photo_is_opened_upright(tmp_path):
    image = Image.new("RGB", (40, 20))
    exif = image.getexif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "a.jpg", exif=exif)
    assert FileImage(tmp_path / "a.jpg").open().size == (20, 40)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F"])
def test_every_mode_is_opened_as_rgb(tmp_path, mode):
    Image.new(mode, (5, 4)).save(tmp_path / "a.tif")
    opened = FileImage(tmp_path / "a.tif").open()
    assert (opened.mode, opened.size) == ("RGB", (5, 4))


@pytest.mark.parametrize(
    ("mode", "values", "expected"),
    [
        ("I;16", [0, 257, 32_896, 65_535], [0, 1, 128, 255]),
        ("I", [0, 1, 128, 255], [0, 1, 128, 255]),
        ("I", [0, 257, 32_896, 65_535], [0, 1, 128, 255]),
        ("F", [0.0, 0.25, 0.5, 1.0], [0, 64, 128, 255]),
        ("F", [-3.0, 1.0, 128.0, 255.0], [0, 1, 128, 255]),
        ("F", [0.0, 100_000.0, 50_000.0, 200_000.0], [0, 128, 64, 255]),
    ],
)
def test_grey_of_more_than_eight_bits_is_scaled_and_not_clipped(tmp_path, mode, values, expected):
    dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    image = Image.fromarray(np.array([values], dtype))
    assert image.mode == mode
    image.save(tmp_path / "a.tif")
    opened = np.asarray(FileImage(tmp_path / "a.tif").open())
    assert opened[0, :, 0].tolist() == expected
    assert (opened == opened[..., :1]).all()


def test_a_small_version_is_a_scale_of_the_format_and_no_smaller_than_asked(tmp_path):
    Image.linear_gradient("L").resize((800, 400)).save(tmp_path / "a.jpg")
    small = FileImage(tmp_path / "a.jpg").open_small(64)
    assert small.size == (200, 100)
    Image.new("L", (800, 400)).save(tmp_path / "a.png")
    assert FileImage(tmp_path / "a.png").open_small(64).size == (800, 400)


def test_what_is_drawn_has_no_small_version():
    assert not isinstance(Drawn(1), EncodedImage)
    assert isinstance(FileImage(Path("a.jpg")), EncodedImage)


def test_a_key_changes_with_the_file(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (2, 2)).save(path)
    before = FileImage(path).key()
    assert FileImage(path).key() == before
    Image.new("RGB", (200, 2)).save(path)
    assert FileImage(path).key() != before


def test_a_missing_file_is_told_from_a_corrupt_one(tmp_path):
    with pytest.raises(FileNotFoundError):
        FileImage(tmp_path / "none.jpg").open()
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(CorruptImageError, match="identify"):
        FileImage(tmp_path / "empty.jpg").open()
    with pytest.raises(CorruptImageError):
        FileImage(tmp_path).open()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
@given(cut=st.floats(0, 1), flips=st.lists(st.tuples(st.floats(0, 0.99), st.integers(0, 255)), max_size=4))
def test_broken_bytes_are_an_image_or_the_one_error(form, cut, flips):
    whole = io.BytesIO()
    Image.linear_gradient("L").resize((30, 20)).convert("RGB").save(whole, form)
    broken = bytearray(whole.getvalue())
    for place, value in flips:
        broken[int(place * len(broken))] = value
    with contextlib.suppress(CorruptImageError):
        assert decode(io.BytesIO(broken[: int(cut * len(broken))]), 1).mode == "RGB"


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_truncated_file_is_corrupt_even_when_opened_small(form):
    whole = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(whole, form)
    with pytest.raises(CorruptImageError):
        decode(io.BytesIO(whole.getvalue()[:-200]), 1)


@pytest.mark.parametrize(
    ("size", "is_refused"), [((1, 101), True), ((200, 2), False), ((203, 2), True), ((1, 100), False)]
)
def test_an_image_of_extreme_shape_is_refused(size, is_refused):
    content = io.BytesIO()
    Image.new("RGB", size).save(content, "PNG")
    told = pytest.raises(CorruptImageError, match=f"{size[0]} x {size[1]} pixels: one side is over 100 times the other")
    with told if is_refused else contextlib.nullcontext():
        decode(content)
