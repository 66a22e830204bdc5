from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from polyalign.config import language as lang
from polyalign.data import leakage
from polyalign.data.pairs import FileImage, ImageRef, PairTable
from polyalign.data.sources import starter
from polyalign.utils.errors import UserError


def table(name: str, images: dict[str, ImageRef]) -> PairTable:
    return PairTable(
        name=name,
        lang="en",
        origin="human",
        image_ids=tuple(images),
        images=tuple(images.values()),
        captions=tuple(f"{image_id} {k}" for image_id in images for k in "ab"),
        image_of=np.repeat(np.arange(len(images)), 2),
    )


def photo(seed: int, px: int = 160) -> Image.Image:
    """A picture with large and small structure, as photos have."""
    rng = np.random.default_rng(seed)
    layers = [
        Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8)).resize((px, px), Image.Resampling.BICUBIC)
        for n in (4, 12, 40)
    ]
    mixed = Image.blend(Image.blend(layers[0], layers[1], 0.4), layers[2], 0.25)
    return mixed.filter(ImageFilter.GaussianBlur(1))


class Folder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def put(self, name: str, image: Image.Image, **options: object) -> FileImage:
        image.save(self.path / name, **options)
        return FileImage(self.path / name)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def leaks(train, test, **options):
    report = leakage.find_leaks(table("train", train), table("test", test), **options)
    return {(leak.train_id, leak.test_id, leak.by) for leak in report.leaks}


def absent(*names):
    return {name: FileImage(Path("nowhere") / name) for name in names}


def test_a_photo_is_known_under_its_several_names_without_opening_it():
    train = absent(
        "1007129816_e794419615.jpg", "COCO_val2014_000000391895.jpg", "COCO_train2014_000000000009.jpg", "other.jpg"
    )
    test = absent("1007129816.jpg", "000000391895.jpg", "9", "another.jpg")
    assert leaks(train, test) == {
        ("1007129816_e794419615.jpg", "1007129816.jpg", "id"),
        ("COCO_val2014_000000391895.jpg", "000000391895.jpg", "id"),
        ("COCO_train2014_000000000009.jpg", "9", "id"),
    }


def test_one_number_in_flickr_and_in_coco_is_two_photos():
    assert leaks(absent("COCO_val2014_000000391895.jpg"), absent("391895_0123456789.jpg")) == set()


def test_two_images_named_alike_are_two_when_they_look_nothing_alike(folder):
    train = {"0001.jpg": folder.put("a.jpg", photo(1)), "0002.jpg": folder.put("b.jpg", photo(2))}
    test = {"0001.jpg": folder.put("c.jpg", photo(3)), "0002.jpg": folder.put("d.jpg", photo(2).resize((120, 90)))}
    assert leaks(train, test) == {("0002.jpg", "0002.jpg", "id")}
    assert leaks(train, test, pixels=False) == {("0001.jpg", "0001.jpg", "id"), ("0002.jpg", "0002.jpg", "id")}


def test_one_file_under_two_names_is_one_image(folder):
    one = folder.put("a.png", photo(1))
    assert leaks({"x": one}, {"y": one}, pixels=False) == {("x", "y", "id")}


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image,
        lambda image: image.resize((500, 375), Image.Resampling.BICUBIC),
        lambda image: image.resize((80, 80), Image.Resampling.LANCZOS),
    ],
)
@pytest.mark.parametrize("quality", [95, 20])
def test_a_copy_saved_anew_is_found_by_its_pixels_among_others(folder, change, quality):
    train = {f"t{i}": folder.put(f"t{i}.png", photo(i)) for i in range(20)}
    test = {f"e{i}": folder.put(f"e{i}.jpg", photo(i), quality=90) for i in range(100, 105)}
    test["copy"] = folder.put("copy.jpg", change(photo(7)), quality=quality)
    assert leaks(train, test) == {("t7", "copy", "pixels")}


def test_flat_pictures_of_different_colours_do_not_collide(folder):
    colors = [(r, g, b) for r in (0, 120, 255) for g in (0, 120, 255) for b in (0, 120, 255)]
    train = {f"t{c}": folder.put(f"t{i}.png", Image.new("RGB", (64, 64), c)) for i, c in enumerate(colors[::2])}
    test = {f"e{c}": folder.put(f"e{i}.png", Image.new("RGB", (64, 64), c)) for i, c in enumerate(colors[1::2])}
    test["same"] = folder.put("same.png", Image.new("RGB", (32, 32), colors[4]))
    assert leaks(train, test) == {(f"t{colors[4]}", "same", "pixels")}


def test_a_small_object_of_another_colour_makes_another_picture(folder):
    def scene(color):
        image = Image.new("RGB", (64, 64), (120, 180, 90))
        image.paste(color, (20, 20, 30, 30))
        return image

    assert (
        leaks({"red": folder.put("r.png", scene((200, 30, 30)))}, {"blue": folder.put("b.png", scene((30, 30, 200)))})
        == set()
    )


def test_scenes_of_the_starter_world_raise_no_alarm_drawn_or_saved(folder):
    config = starter.Config(train_images=150, dev_images=1, test_images=50)
    train, test = (starter.load(config, lang.load_language("sw"), split) for split in ("train", "test"))
    assert leakage.find_leaks(train, test).leaks == ()
    saved = [
        table(
            t.name,
            {name: folder.put(f"{name}.png", image.open()) for name, image in zip(t.image_ids, t.images, strict=True)},
        )
        for t in (train, test)
    ]
    assert leakage.find_leaks(*saved).leaks == ()
    assert len(leakage.find_leaks(saved[0], saved[0]).train_ids) == 150


def test_missing_and_corrupt_images_are_compared_by_id_alone(folder):
    (folder.path / "broken.jpg").write_bytes(b"no image")
    train = {"x.jpg": FileImage(folder.path / "broken.jpg"), "y.jpg": FileImage(folder.path / "none.jpg")}
    test = {"x.jpg": folder.put("x.jpg", photo(1)), "z.jpg": folder.put("z.jpg", photo(2))}
    assert leaks(train, test) == {("x.jpg", "x.jpg", "id")}
    blind = leakage.find_leaks(table("train", train), table("test", test)).describe()
    assert blind.endswith("; 2 images of train could not be opened and were compared by id only)")
    nothing = leakage.find_leaks(table("train", absent("p.jpg")), table("test", absent("q.jpg", "r.jpg"))).describe()
    assert nothing.endswith(
        "(by ids and pixels; 1 image of train and 2 images of test could not be opened and were compared by id only)"
    )
    assert "could not" not in leakage.find_leaks(table("a", train), table("b", test), pixels=False).describe()


def test_every_shared_image_of_either_side_is_named(folder):
    train = {f"t{i}": folder.put(f"t{i}.png", photo(1)) for i in range(3)}
    test = {f"e{i}": folder.put(f"e{i}.png", photo(1)) for i in range(5)}
    report = leakage.find_leaks(table("train", train), table("test", test))
    assert report.train_ids == tuple(train)
    assert report.test_ids == tuple(test)
    assert len(report.leaks) < 15


def test_the_report_says_it_in_a_line_and_goes_through_json(folder):
    same = folder.put("a.png", photo(1))
    report = leakage.find_leaks(
        table("train", {"a": same, "b": folder.put("b.png", photo(2))}), table("test", {"c": same})
    )
    assert report.describe() == (
        "1 of the 1 image of test is among the 2 images of train (1 by id, 0 by pixels: a = c)"
    )
    assert leakage.LeakageReport.model_validate_json(report.model_dump_json()) == report


def test_a_leak_is_refused_with_the_way_out_and_can_be_excluded(folder):
    same = folder.put("a.png", photo(1))
    train = table("train", {"a": same, "b": folder.put("b.png", photo(2))})
    report = leakage.find_leaks(train, table("test", {"c": same}))
    with pytest.raises(UserError, match=r"leakage: 1 of the 1 .*data\.leakage=exclude.*data\.leakage=allow"):
        leakage.refuse(report)
    left = train.without_images(report.train_ids)
    assert left.image_ids == ("b",)
    assert left.captions == ("b a", "b b")


def test_nothing_shared_is_not_refused(folder):
    train = table("train", {"a": folder.put("a.png", photo(1))})
    report = leakage.find_leaks(train, table("test", {"b": folder.put("b.png", photo(2))}))
    leakage.refuse(report)
    assert report.describe().startswith("none of the 1 image of test")


def test_empty_tables_share_nothing():
    empty = table("none", {})
    assert leakage.find_leaks(empty, empty).leaks == ()
