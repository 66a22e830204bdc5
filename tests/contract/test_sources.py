"""What every source keeps: one small dataset each, built here, so that a new source without one fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image
from pydantic import BaseModel, ValidationError

from polyalign import lang as languages
from polyalign import plugins
from polyalign.errors import UserError
from polyalign.pairs import PairTable

NAMES = plugins.names("sources")
LANG = "de"


def _photos(folder: Path, names: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    for width, name in enumerate(names, start=8):
        Image.new("RGB", (width, 8), (width, 0, 0)).save(folder / name)


def _starter(root: Path) -> dict[str, Any]:
    return {"train_images": 6, "dev_images": 2, "test_images": 2, "captions_per_image": 2}


def _folder(root: Path) -> dict[str, Any]:
    _photos(root, [f"{i}.png" for i in range(40)])
    rows = [{"image": f"{i}.png", "captions": [f"Bild {i}", f"Foto {i}"]} for i in range(40)]
    (root / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {"root": root}


def _hub(root: Path) -> dict[str, Any]:
    datasets.disable_progress_bars()
    names = [f"{i}.png" for i in range(40)]
    _photos(root, names)
    rows = {"image": [str(root / name) for name in names], "caption": [f"Bild {name}" for name in names]}
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).save_to_disk(root / "saved")
    return {"dataset": str(root / "saved")}


def _flickr8k(root: Path) -> dict[str, Any]:
    splits = {"train": ["a.jpg", "b.jpg"], "dev": ["c.jpg"], "test": ["d.jpg"]}
    _photos(root / "images", [name for names in splits.values() for name in names])
    for folder in ("splits", "captions"):
        (root / folder).mkdir()
    for split, names in splits.items():
        (root / "splits" / f"{split}.txt").write_text("\n".join(names))
    tokens = [f"{name}#{k}\tBild {name} {k}" for names in splits.values() for name in names for k in range(2)]
    (root / "captions" / f"{LANG}.txt").write_text("\n".join(tokens))
    return {"root": root}


BUILD: dict[str, Callable[[Path], dict[str, Any]]] = {
    "starter": _starter,
    "folder": _folder,
    "hub": _hub,
    "flickr8k": _flickr8k,
}


@pytest.fixture(params=NAMES)
def sample(request, tmp_path):
    """A source's module, the options of its small dataset, and its tables by split."""
    module = plugins.load("sources", request.param)
    options = BUILD[request.param](tmp_path)
    return (
        module,
        options,
        {
            split: module.load(module.Config(**options), languages.load(LANG), split)
            for split in ("train", "dev", "test")
        },
    )


def test_every_source_has_a_small_dataset_here():
    assert sorted(BUILD) == NAMES
    assert len(NAMES) > 3


def test_tables_are_of_the_language_and_of_good_form(sample):
    for table in sample[2].values():
        assert isinstance(table, PairTable)
        assert table.lang == LANG
        assert table.name
        assert len(table) > 0
        assert set(table.image_of.tolist()) == set(range(len(table.images)))
        assert all(caption and caption == caption.strip() for caption in table.captions)


def test_loading_again_gives_the_same(sample):
    module, options, tables = sample
    for split, table in tables.items():
        again = module.load(module.Config(**options), languages.load(LANG), split)
        assert (again.image_ids, again.captions, again.image_of.tolist()) == (
            table.image_ids,
            table.captions,
            table.image_of.tolist(),
        )
        assert [image.key() for image in again.images] == [image.key() for image in table.images]


def test_images_are_rgb_and_open_the_same_each_time_and_keys_tell_them_apart(sample):
    for table in sample[2].values():
        for image in table.images:
            assert image.open().mode == "RGB"
            assert image.open().tobytes() == image.open().tobytes()
        assert len({image.key() for image in table.images}) == len(table.images)


def test_no_image_is_in_two_splits(sample):
    ids = [image_id for table in sample[2].values() for image_id in table.image_ids]
    keys = [image.key() for table in sample[2].values() for image in table.images]
    assert len(set(ids)) == len(ids)
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("name", NAMES)
def test_config_is_frozen_strict_and_leaves_the_plugin_name_free(name):
    config = plugins.load("sources", name).Config
    assert issubclass(config, BaseModel)
    assert config.model_config["frozen"]
    assert config.model_config["extra"] == "forbid"
    assert "name" not in config.model_fields
    with pytest.raises(ValidationError):
        config(no_such_option=1)


def test_options_survive_the_way_through_a_recipe(sample):
    module, options, _ = sample
    config = module.Config(**options)
    dumped = config.model_dump(mode="json", exclude_none=True)
    assert module.Config(**json.loads(json.dumps(dumped))) == config


def test_an_unknown_split_is_the_users_error(sample):
    module, options, _ = sample
    with pytest.raises(UserError, match="tset"):
        module.load(module.Config(**options), languages.load(LANG), "tset")
