from __future__ import annotations

import time

import numpy as np
import pytest

from polyalign.config import language as languages
from polyalign.data.sources import starter
from polyalign.data.starter.world import Scene
from polyalign.utils.errors import UserError

SMALL = starter.Config(train_images=300, dev_images=50, test_images=100)
SWAHILI = languages.load_language("sw")


def scenes(split: str, config: starter.Config = SMALL) -> list[Scene]:
    return [image.draw.args[0] for image in starter.load(config, SWAHILI, split).images]


def test_splits_hold_what_was_asked_for_and_share_no_facts() -> None:
    splits = {split: [scene.facts() for scene in scenes(split)] for split in ("train", "dev", "test")}
    assert {split: len(found) for split, found in splits.items()} == {"train": 300, "dev": 50, "test": 100}
    assert len(set().union(*map(set, splits.values()))) == 450


def test_held_out_combinations_are_in_part_of_test_and_nowhere_else() -> None:
    config = starter.Config()
    share = {
        split: np.mean([scene.is_held_out() for scene in scenes(split, config)]) for split in ("train", "dev", "test")
    }
    assert share["train"] == share["dev"] == 0
    assert 0.2 < share["test"] < 0.36


def test_every_language_gets_the_same_images_under_the_same_ids() -> None:
    tables = [starter.load(SMALL, languages.load_language(code), "test") for code in ("sw", "en")]
    assert tables[0].image_ids == tables[1].image_ids
    assert tables[0].images == tables[1].images
    assert tables[0].captions != tables[1].captions
    assert [table.lang for table in tables] == ["sw", "en"]
    assert tables[0].origin == "generated"


def test_a_smaller_world_is_the_beginning_of_a_larger_one() -> None:
    smaller = starter.load(SMALL.model_copy(update={"train_images": 40}), SWAHILI, "train")
    larger = starter.load(SMALL, SWAHILI, "train")
    assert smaller.image_ids == larger.image_ids[:40]
    assert smaller.images == larger.images[:40]
    assert smaller.captions == larger.captions[:40]
    assert smaller.image_ids[39] == "starter-train-000039"


def test_another_seed_is_another_world() -> None:
    assert scenes("test") != scenes("test", SMALL.model_copy(update={"seed": 1}))


def test_several_captions_an_image_are_said_in_different_ways() -> None:
    table = starter.load(SMALL.model_copy(update={"captions_per_image": 3}), SWAHILI, "test")
    assert len(table) == 300
    assert table.image_of.tolist()[:7] == [0, 0, 0, 1, 1, 1, 2]
    assert table.captions[::3] == starter.load(SMALL, SWAHILI, "test").captions
    differing = sum(len(set(table.captions[i : i + 3])) > 1 for i in range(0, 300, 3))
    assert differing > 90


def test_images_open_lazily_to_what_their_key_names() -> None:
    table = starter.load(SMALL, SWAHILI, "test")
    keys = {image.key() for image in table.images}
    assert len(keys) == 100
    assert table.images[3].open().tobytes() == table.images[3].open().tobytes()
    assert table.images[3].open().size == (64, 64)


def test_an_unknown_split_is_an_error_that_names_the_known() -> None:
    with pytest.raises(UserError, match='did you mean "dev"'):
        starter.load(SMALL, SWAHILI, "devel")


def test_twelve_thousand_pairs_load_in_seconds() -> None:
    began = time.process_time()
    assert len(starter.load(starter.Config(seed=77), SWAHILI, "train")) == 12_000
    assert time.process_time() - began < 10
