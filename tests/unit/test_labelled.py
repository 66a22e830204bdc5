from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from polyalign.config import language as languages
from polyalign.data import labelled
from polyalign.data.readers.info import LABELLED
from polyalign.utils.errors import UserError

SW, DE = languages.load_language("sw"), languages.load_language("de")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "animals"
    for name in ("b/1.png", "b/deep/2.JPG", "a_cat/3.png", "c/notes.txt"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix != ".txt":
            Image.new("RGB", (4, 4), "red").save(path, format="PNG")
    return root


def test_a_folder_tree_is_read_in_order(tree: Path) -> None:
    got = labelled.from_folder(tree)
    assert (got.name, got.lang, got.classes) == ("animals", "en", ("a_cat", "b", "c"))
    assert got.names == (("a cat",), ("b",), ("c",))
    assert got.labels.tolist() == [0, 1, 1]
    assert all(image.open().size == (4, 4) for image in got.images)


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_a_folder_without_images_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty" / "class").mkdir(parents=True)
    with pytest.raises(UserError, match="contains no labelled images"):
        labelled.from_folder(tmp_path / name)


def test_names_leave_out_classes_that_have_none(tree: Path) -> None:
    got = labelled.from_folder(tree).named("sw", {"b": ["mbwa", "jibwa"], "c": ["nyoka"]}, "mine")
    assert (got.lang, got.classes, got.names) == ("sw", ("b", "c"), (("mbwa", "jibwa"), ("nyoka",)))
    assert got.named_by == "mine"
    assert got.labels.tolist() == [0, 0]
    assert len(got.images) == 2
    with pytest.raises(UserError, match="no class of"):
        got.named("sw", {"x": ["y"]}, "mine")


def test_a_dataset_saved_to_disk(tmp_path: Path) -> None:
    columns = {"image": [Image.new("RGB", (4, 4))] * 3, "label": [1, 0, 1], "kind": ["y", "x", "y"]}
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "big_dog"]),
            "kind": datasets.Value("string"),
        }
    )
    datasets.DatasetDict({"test": datasets.Dataset.from_dict(columns, features=features)}).save_to_disk(
        tmp_path / "pets"
    )
    got = labelled.from_hub(str(tmp_path / "pets"), "test")
    assert (got.name, got.labels.tolist(), got.names) == ("pets", [1, 0, 1], (("cat",), ("big dog",)))
    assert got.images[0].open().size == (4, 4)
    plain = labelled.from_hub(str(tmp_path / "pets"), "test", label_column="kind")
    assert (plain.classes, plain.labels.tolist()) == (("x", "y"), [1, 0, 1])
    with pytest.raises(UserError, match='no column "labl": did you mean "label"'):
        labelled.from_hub(str(tmp_path / "pets"), "test", label_column="labl")
    with pytest.raises(UserError, match='no split "train"'):
        labelled.from_hub(str(tmp_path / "pets"), "train")


def test_starter_objects_are_named_in_the_language() -> None:
    got = labelled.starter_objects(DE, each=2)
    assert len(got.images) == 48
    assert np.bincount(got.labels).tolist() == [2] * 24
    assert ("Fisch",) in got.names
    assert len({image.key() for image in got.images}) == 48
    assert np.array_equal(
        np.asarray(got.images[0].open()), np.asarray(labelled.starter_objects(SW, each=2).images[0].open())
    )


def test_every_starter_language_names_every_object() -> None:
    codes = [code for code in languages.language_codes() if languages.load_language(code).starter]
    assert len(codes) >= 8
    for code in codes:
        names = labelled.starter_objects(languages.load_language(code), each=1).names
        assert len({name for group in names for name in group}) >= 24


def test_imagenetv2s_numbers_are_sorted_by_their_value(tmp_path: Path) -> None:
    """Its folders are 0 to 999: sorted as text, class 2 would come after class 199."""
    for number in (0, 1, 2, 10, 100):
        (tmp_path / str(number)).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / str(number) / "a.png")
    got = labelled.from_folder(tmp_path)
    assert got.classes == ("0", "1", "2", "10", "100")
    assert got.names == ((),) * 5


def test_images_are_left_out_by_their_keys(tree: Path) -> None:
    found = labelled.from_folder(tree)
    left = found.without(frozenset({found.images[0].key()}))
    assert (left.labels.tolist(), left.classes) == ([1, 1], found.classes)


def test_a_known_dataset_is_loaded_from_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def from_hub(dataset, split, *, label_column="label"):
        asked.append((dataset, split, label_column))
        names = tuple(f"kind_{i}" for i in range(100))
        return labelled.Labelled("data", "en", (), np.array([], np.int64), names, tuple((n,) for n in names))

    monkeypatch.setattr(labelled, "from_hub", from_hub)
    monkeypatch.chdir(tmp_path)
    assert labelled.load("aircraft", None).name == "aircraft"
    assert labelled.load("user/other", None).name == "data"
    with pytest.raises(UserError, match=r"ethz/food101 has 100 classes, but Food101 has 101"):
        labelled.load("food101", "train")
    assert asked == [
        ("HuggingFaceM4/FGVC-Aircraft", "test", "variant"),
        ("user/other", "test", "label"),
        ("ethz/food101", "train", "label"),
    ]
    with pytest.raises(UserError, match=r"ImageNetV2 .* is read from a folder: imagenetv2-matched-frequency"):
        labelled.load("imagenetv2", None)


def test_every_dataset_of_the_paper_is_known() -> None:
    assert set(LABELLED) == {"imagenet", "imagenetv2", "cars", "caltech101", "food101", "cub", "aircraft", "pets"}
    for one in LABELLED.values():
        assert one.checked
        assert one.place
        assert not one.hub or one.hub.count("/") == 1
