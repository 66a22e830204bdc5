from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from polyalign import labelled
from polyalign import lang as languages
from polyalign.errors import UserError

SW, DE = languages.load("sw"), languages.load("de")


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
    with pytest.raises(UserError, match="holds no labelled images"):
        labelled.from_folder(tmp_path / name)


def test_names_leave_out_classes_that_have_none(tree: Path) -> None:
    got = labelled.from_folder(tree).named("sw", {"b": ["mbwa", "jibwa"], "c": ["nyoka"]})
    assert (got.lang, got.classes, got.names) == ("sw", ("b", "c"), (("mbwa", "jibwa"), ("nyoka",)))
    assert got.labels.tolist() == [0, 0]
    assert len(got.images) == 2
    with pytest.raises(UserError, match="none of the classes"):
        got.named("sw", {"x": ["y"]})


def test_names_from_tsv_and_json(tmp_path: Path) -> None:
    (tmp_path / "n.tsv").write_bytes("\ufeffa\tpaka\r\nb\tmbwa\na\tnyau\n\n".encode())
    (tmp_path / "n.json").write_text(json.dumps({"a": ["paka", "nyau"], "b": "mbwa"}), encoding="utf-8")
    for name in ("n.tsv", "n.json"):
        assert labelled.read_names(tmp_path / name, SW, ["a", "b"]) == {"a": ("paka", "nyau"), "b": ("mbwa",)}


@pytest.mark.parametrize(("name", "text"), [("n.tsv", "a\n"), ("n.json", "{"), ("none.tsv", None)])
def test_a_bad_file_of_names_is_an_error(tmp_path: Path, name: str, text: str | None) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match="cannot read names of classes"):
        labelled.read_names(tmp_path / name, SW, ["a"])


def test_babel_imagenet_goes_by_index(tmp_path: Path) -> None:
    path = tmp_path / "babel.json"
    path.write_text(json.dumps({"SW": [[2, 0], ["nyoka", "paka"]], "DE": [[1], ["Hund"]]}))
    classes = [f"n{i:04d}" for i in range(1000)]
    assert labelled.read_names(path, SW, classes) == {"n0002": ("nyoka",), "n0000": ("paka",)}
    with pytest.raises(UserError, match="1000 classes, and here are 3"):
        labelled.read_names(path, SW, classes[:3])
    with pytest.raises(UserError, match=r"no Hindi \(HI\)"):
        labelled.read_names(path, languages.load("hi"), classes)


def test_the_real_babel_imagenet(real_data: Path) -> None:
    path = real_data / "data" / "benchmarks" / "babel-imagenet" / "babel_imagenet.json"
    classes = [f"n{i:08d}" for i in range(1000)]
    found = {code: len(labelled.read_names(path, languages.load(code), classes)) for code in ("sw", "am", "de")}
    assert found == {"sw": 220, "am": 85, "de": 738}


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
    codes = [code for code in languages.names() if languages.load(code).starter]
    assert len(codes) >= 8
    for code in codes:
        names = labelled.starter_objects(languages.load(code), each=1).names
        assert len({name for group in names for name in group}) >= 24
