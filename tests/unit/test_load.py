"""The splits of a recipe: no image in two of them, and a budget drawn before images are opened."""

from __future__ import annotations

import shutil

import pandas as pd
import pytest

from polyalign.config.budget import PairBudget
from polyalign.data import image_prints
from polyalign.data.load import draw, load_split, load_tables
from polyalign.utils.errors import UserError
from tests import tiny


@pytest.fixture
def folder(tmp_path):
    """A copy of the tiny data set, to be damaged."""
    return shutil.copytree(tiny.data(), tmp_path / "data")


@pytest.fixture
def opened(monkeypatch):
    """The images that are opened from here on, none of them known from before."""
    seen: list[str] = []
    whole = image_prints._open_all

    def noted(images):
        seen.extend(image.path.name for image in images)
        return whole(images)

    monkeypatch.setattr(image_prints, "_KNOWN", {})
    monkeypatch.setattr(image_prints, "_open_all", noted)
    return seen


def recipe(folder, **data):
    return tiny.resolved(source={"root": str(folder)}, data=data)


def test_only_what_is_drawn_is_opened(folder, opened):
    tables = load_tables(recipe(folder, budget="10-pairs"))
    assert len(tables.train) == 10
    assert len(opened) == 24 + 24 + len(tables.train.images)


def test_a_draw_over_corrupt_and_leaking_images_is_that_of_the_clean_split(folder):
    """Three of the images that would be drawn are corrupt, missing or a dev image: others come in their place."""
    first = load_tables(recipe(folder, budget="20-pairs")).train
    corrupt, lost, leaked = (image.path for image in first.images[:3])
    corrupt.write_bytes(b"no image")
    lost.unlink()
    shutil.copy(tiny.table("dev").images[0].path, leaked)
    asked = recipe(folder, budget="20-pairs", max_corrupt=0.2, leakage="exclude")
    drawn = load_tables(asked).train
    whole = load_split(asked, "train").without_images([first.image_ids[2]])
    expected = draw(whole, PairBudget(pairs=20), 0)
    assert (drawn.image_ids, drawn.captions) == (expected.image_ids, expected.captions)
    assert not {first.image_ids[i] for i in range(3)} & set(drawn.image_ids)


def test_corrupt_images_are_a_share_of_those_looked_at(folder):
    drawn = load_tables(recipe(folder, budget="10-pairs")).train
    drawn.images[0].path.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"1 corrupt .* more than data.max_corrupt = 0.01"):
        load_tables(recipe(folder, budget="10-pairs"))


def test_a_dev_image_that_is_a_test_image_is_refused_or_left_out(folder, caplog):
    dev, test = (tiny.table(split).images[0].path.name for split in ("dev", "test"))
    shutil.copy(folder / "images" / test, folder / "images" / dev)
    with pytest.raises(UserError, match=r"leakage: 1 of the 24 images"):
        load_tables(recipe(folder))
    tables = load_tables(recipe(folder, leakage="exclude"))
    assert (len(tables.dev["en"].images), len(tables.test["en"].images)) == (23, 24)
    assert any(line.startswith("left out of dev: 1 of the 24") for line in caplog.messages)
    assert len(load_tables(recipe(folder, leakage="allow")).dev["en"].images) == 24


def test_a_budget_that_is_more_than_is_left_is_refused(folder):
    with pytest.raises(UserError, match="has 128 pairs for en, fewer than 1k-pairs"):
        load_tables(recipe(folder, budget="1k-pairs"))


def relabelled(folder, change):
    """Rewrite the rows of every split of the captions file."""
    file = next(folder.glob("*.csv"))
    frame = pd.read_csv(file)
    for split in ("train", "dev", "test"):
        frame.loc[frame["split"] == split] = change(split, frame[frame["split"] == split].copy())
    frame.to_csv(file, index=False)


def test_training_pairs_that_are_all_the_same_are_refused(folder):
    def one(column):
        def change(split, rows):
            if split == "train":
                rows[column] = rows[column].iloc[0]
            return rows

        return change

    whole = next(folder.glob("*.csv")).read_text()
    relabelled(folder, one("image"))
    with pytest.raises(UserError, match="all there is to train on is one image: nothing can be learned"):
        load_tables(recipe(folder))
    next(folder.glob("*.csv")).write_text(whole)
    relabelled(folder, one("caption"))
    with pytest.raises(UserError, match="all there is to train on are equal captions"):
        load_tables(recipe(folder))
    next(folder.glob("*.csv")).write_text(whole)
    with pytest.raises(UserError, match="all there is to train on is one pair"):
        load_tables(recipe(folder, budget="1-pairs"))
    first = tiny.table().images[0].path
    for other in tiny.table().images[1:]:
        shutil.copy(first, folder / "images" / other.path.name)
    with pytest.raises(UserError, match="all there is to train on is one image"):
        load_tables(recipe(folder))


def test_few_test_images_are_told_with_what_they_mean(folder, caplog):
    file = next(folder.glob("*.csv"))
    frame = pd.read_csv(file)
    few = frame[frame["split"] == "test"]["image"].unique()[4:]
    frame[~frame["image"].isin(few)].to_csv(file, index=False)
    load_tables(recipe(folder))
    assert [one for one in caplog.messages if "only" in one] == [
        "warning: data-test has only 4 images: each image is 25% of a recall, which says little"
    ]
