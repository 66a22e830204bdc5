"""What a run was trained on is kept with it, and an evaluation on those images says so."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from polyalign.data.trained_images import (
    TRAINED_IMAGES,
    load_trained_images,
    save_trained_images,
    warn_if_trained_on,
)
from polyalign.evaluation.evaluate import evaluate
from polyalign.experiments.run_folders import train_into
from polyalign.utils.errors import UserError
from polyalign.utils.storage import load_tensors, save_tensors
from tests import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    train_into(folder, tiny.resolved(), resume=False, overwrite=False)
    return folder


def warnings(caplog):
    return [line for line in caplog.messages if line.startswith("warning: the model was trained on images")]


def test_it_holds_ids_and_hashes_and_no_image_or_path(run):
    table = load_trained_images(run)
    assert table.image_ids == tiny.table("train").image_ids
    assert (run / TRAINED_IMAGES).stat().st_size < 64 * 1200
    assert str(tiny.data()).encode() not in (run / TRAINED_IMAGES).read_bytes()
    with pytest.raises(FileNotFoundError):
        table.images[0].open()


def test_copies_of_training_images_under_other_names_are_found(run, tmp_path, caplog):
    """One training image saved anew at another size, among unseen ones."""
    rows = ["image,caption,split"]
    for number, image in enumerate([tiny.table("train").images[5], *tiny.table("test").images[:3]]):
        image.open().resize((40, 40), Image.Resampling.BICUBIC).save(tmp_path / f"other{number}.png")
        rows.append(f"other{number}.png,a scene,test")
    (tmp_path / "captions.csv").write_text("\n".join(rows), encoding="utf-8")
    evaluate(run, overrides={"source": {"name": "folder", "root": str(tmp_path)}})
    [line] = warnings(caplog)
    assert "1 of the 4 images" in line


def test_the_training_split_is_named_and_own_test_images_are_not(run, caplog):
    evaluate(run)
    evaluate(run, split="dev")
    assert not warnings(caplog)
    evaluate(run, split="train")
    [line] = warnings(caplog)
    assert "64 of the 64 images" in line


def test_a_run_from_before_says_that_it_cannot_be_compared(run, tmp_path, caplog):
    old = shutil.copytree(run, tmp_path / "old")
    (old / TRAINED_IMAGES).unlink()
    warn_if_trained_on(old, tiny.table("train"))
    assert not warnings(caplog)
    assert "was trained before training images were recorded" in caplog.messages[-1]


def test_a_damaged_file_is_an_error_of_one_line(run, tmp_path):
    old = shutil.copytree(run, tmp_path / "old")
    (old / TRAINED_IMAGES).write_bytes(b"no tensors")
    with pytest.raises(UserError, match="cannot read"):
        warn_if_trained_on(old, tiny.table("train"))


def test_images_that_are_drawn_have_ids_alone(tmp_path):
    table = tiny.table("train").take_images(np.arange(3))
    drawn = [type("Drawn", (), {"open": image.open, "key": image.key})() for image in table.images]
    save_trained_images(tmp_path, type(table)(**{**vars(table), "images": tuple(drawn)}))
    assert load_trained_images(tmp_path).image_ids == table.image_ids


@pytest.mark.parametrize(
    "change",
    [
        {"ids": None},
        {"ids": "{"},
        {"ids": "3"},
        {"ids": '["x", "x"]'},
        {"index": torch.tensor([10**6])},
        {"bits": torch.ones(2, 8)},
        {"bits": None},
        {"thumbs": torch.zeros(1, 3, dtype=torch.uint8)},
    ],
)
def test_a_list_that_was_edited_with_its_checksum_is_one_line(change, tmp_path):
    save_trained_images(tmp_path, tiny.table())
    tensors, facts = load_tensors(tmp_path / TRAINED_IMAGES)
    for name, value in change.items():
        held = facts if name == "ids" else tensors
        held.pop(name)
        held |= {} if value is None else {name: value}
    save_tensors(tmp_path / TRAINED_IMAGES, tensors, facts)
    with pytest.raises(UserError, match=f"{TRAINED_IMAGES} is not a list of training images"):
        load_trained_images(tmp_path)
