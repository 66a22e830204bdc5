"""Test every source on a small dataset built here; a source without one fails."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import pytest
from PIL import Image
from pydantic import BaseModel, ValidationError

from polyalign.config import language as languages
from polyalign.config import plugins
from polyalign.data import image_prints
from polyalign.data.pairs import PairTable
from polyalign.utils.errors import UserError

NAMES = plugins.plugin_names("sources")
ALL = ("train", "dev", "test")
COCO_NUMBERS = {"train": (9, 25, 30), "val": (42, 73, 74)}
COCO = [f"COCO_{part}2014_{number:012d}.jpg" for part, numbers in COCO_NUMBERS.items() for number in numbers]
FLICKR = ["1007129816.jpg", "1009434119.jpg", "101362133.jpg"]


@dataclass(frozen=True)
class Sample:
    """The options of a small dataset, one of its languages, and its splits."""

    options: dict[str, Any]
    lang: str = "de"
    splits: tuple[str, ...] = ALL


def _photos(folder: Path, names: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    for width, name in enumerate(names, start=8):
        Image.new("RGB", (width, 8), (width, 0, 0)).save(folder / name)


def _lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "\n".join(lines).encode() + b"\n"
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def _published(root: Path, photos: list[str]) -> dict[str, Any]:
    _photos(root / "photos", photos)
    return {"root": root, "images": root / "photos"}


def _starter(root: Path) -> Sample:
    return Sample({"train_images": 6, "dev_images": 2, "test_images": 2, "captions_per_image": 2})


def _folder(root: Path) -> Sample:
    _photos(root, [f"{i}.png" for i in range(40)])
    rows = [{"image": f"{i}.png", "captions": [f"Bild {i}", f"Foto {i}"]} for i in range(40)]
    _lines(root / "captions.jsonl", [json.dumps(row) for row in rows])
    return Sample({"root": root})


def _hub(root: Path) -> Sample:
    datasets.disable_progress_bars()
    names = [f"{i}.png" for i in range(40)]
    _photos(root, names)
    rows = {"image": [str(root / name) for name in names], "caption": [f"Bild {name}" for name in names]}
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).save_to_disk(root / "saved")
    return Sample({"dataset": str(root / "saved")})


def _flickr8k(root: Path) -> Sample:
    splits = {"train": ["a.jpg", "b.jpg"], "dev": ["c.jpg"], "test": ["d.jpg"]}
    _photos(root / "images", [name for names in splits.values() for name in names])
    for split, names in splits.items():
        _lines(root / "splits" / f"{split}.txt", names)
    tokens = [f"{name}#{k}\tBild {name} {k}" for names in splits.values() for name in names for k in range(2)]
    _lines(root / "captions" / "de.txt", tokens)
    return Sample({"root": root})


def _xtd(root: Path) -> Sample:
    _lines(root / "XTD10" / "test_image_names.txt", COCO)
    _lines(root / "MIC" / "test_1kcaptions_de.txt", [f"Bild {name}" for name in COCO])
    return Sample(_published(root, COCO) | {"protocol": "lilt-200"}, splits=("train", "test"))


def _flores(names: str) -> Callable[[Path], Sample]:
    def build(root: Path) -> Sample:
        _lines(root / names, FLICKR)
        _lines(root / "deu_Latn.txt", [f"Bild {name}" for name in FLICKR])
        return Sample(_published(root, FLICKR), splits=("test",))

    return build


def _multi30k(root: Path) -> Sample:
    for name, part in zip(FLICKR, ("train", "val", "test_2016_flickr"), strict=True):
        _lines(root / "image_splits" / f"{part}.txt", [name])
        _lines(root / "task1" / f"{part}.de.gz", [f"Bild {name}"])
    return Sample(_published(root, FLICKR))


def _xflickrco(root: Path) -> Sample:
    rows = [json.dumps({"sentences": [f"Bild {name}"], "id": name, "img_path": name}) for name in FLICKR + COCO]
    _lines(root / "de" / "train_100.jsonl", rows[:2])
    _lines(root / "de" / "test.jsonl", rows[2:])
    return Sample(_published(root, FLICKR + COCO), splits=("train", "test"))


def _xm3600(root: Path) -> Sample:
    rows = [{"image/key": f"{i:016x}", "de": {"caption": [f"Bild {i}", f"Foto {i}"]}} for i in range(3)]
    _lines(root / "captions.jsonl", [json.dumps(row) for row in rows])
    return Sample(_published(root, [f"{i:016x}.jpg" for i in range(3)]), splits=("test",))


def _karpathy(path: Path, photos: list[str]) -> None:
    splits = ("train", "val", "test")
    images = [
        {"filename": n, "split": s, "sentences": [{"raw": f"A {n}."}]} for n, s in zip(photos, splits * 2, strict=False)
    ]
    path.write_text(json.dumps({"images": images}))


def _coco_karpathy(root: Path) -> Sample:
    _karpathy(root / "dataset_coco.json", COCO)
    return Sample(_published(root, COCO), "en")


def _flickr30k(root: Path) -> Sample:
    _karpathy(root / "dataset_flickr30k.json", FLICKR)
    return Sample(_published(root, FLICKR), "en")


def _stair(root: Path) -> Sample:
    for part, numbers in COCO_NUMBERS.items():
        rows = [{"image_id": number, "caption": f"写真 {number}"} for number in numbers]
        (root / f"stair_captions_v1.2_{part}.json").write_text(json.dumps({"annotations": rows}))
    _karpathy(root / "dataset_coco.json", COCO)
    return Sample(_published(root, COCO) | {"karpathy": root / "dataset_coco.json"}, "ja")


def _coco_cn(root: Path) -> Sample:
    for name, part in zip(COCO, ("train", "val", "test"), strict=False):
        _lines(root / f"coco-cn_{part}.txt", [name.removesuffix(".jpg")])
    tokens = [f"{name.removesuffix('.jpg')}#0\t照片 {name}" for name in COCO]
    _lines(root / "imageid.human-written-caption.txt", tokens)
    return Sample(_published(root, COCO), "zh")


def _coco35l(root: Path) -> Sample:
    for number, split in ((9, "train"), (25, "dev")):
        row = {"image_id": f"{number}_0", "trg_lang": "de", "translation_tokenized": f"Bild {number} ."}
        _lines(root / f"coco_mt_{split}.jsonl", [json.dumps(row)])
    return Sample(_published(root, COCO[:3]), splits=("train", "dev"))


BUILD: dict[str, Callable[[Path], Sample]] = {
    "starter": _starter,
    "folder": _folder,
    "hub": _hub,
    "flickr8k": _flickr8k,
    "xtd": _xtd,
    "xtd200": _flores("test_image_names.txt"),
    "flickr30k-200": _flores("filenames.txt"),
    "multi30k": _multi30k,
    "xflickrco": _xflickrco,
    "xm3600": _xm3600,
    "coco-karpathy": _coco_karpathy,
    "flickr30k": _flickr30k,
    "stair": _stair,
    "coco-cn": _coco_cn,
    "coco35l": _coco35l,
}


def _load(module: ModuleType, sample: Sample, split: str) -> PairTable:
    return module.load(module.Config(**sample.options), languages.load_language(sample.lang), split)


@pytest.fixture(params=NAMES)
def source(request, tmp_path):
    """Return the module of a source, its small dataset, and the tables of the dataset by split."""
    module = plugins.load_plugin("sources", request.param)
    sample = BUILD[request.param](tmp_path)
    return module, sample, {split: _load(module, sample, split) for split in sample.splits}


def test_every_source_has_a_small_dataset_here():
    assert sorted(BUILD) == NAMES
    assert len(NAMES) > 3


def test_tables_are_of_the_language_and_of_good_form(source):
    _, sample, tables = source
    assert len({table.name for table in tables.values()}) == len(tables)
    for table in tables.values():
        assert isinstance(table, PairTable)
        assert table.lang == sample.lang
        assert table.name
        assert len(table) > 0
        assert set(table.image_of.tolist()) == set(range(len(table.images)))
        assert all(caption and caption == caption.strip() for caption in table.captions)


def test_loading_again_gives_the_same(source):
    module, sample, tables = source
    for split, table in tables.items():
        again = _load(module, sample, split)
        assert (again.image_ids, again.captions, again.image_of.tolist()) == (
            table.image_ids,
            table.captions,
            table.image_of.tolist(),
        )
        assert [image.key() for image in again.images] == [image.key() for image in table.images]


def test_images_are_rgb_and_open_the_same_each_time_and_keys_tell_them_apart(source):
    for table in source[2].values():
        for image in table.images:
            assert image.open().mode == "RGB"
            assert image.open().tobytes() == image.open().tobytes()
        assert len({image.key() for image in table.images}) == len(table.images)


def test_no_image_is_in_two_splits(source):
    ids = [image_id for table in source[2].values() for image_id in table.image_ids]
    keys = [image.key() for table in source[2].values() for image in table.images]
    assert len(set(ids)) == len(ids)
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("name", NAMES)
def test_config_is_frozen_strict_and_leaves_the_plugin_name_free(name):
    config = plugins.load_plugin("sources", name).Config
    assert issubclass(config, BaseModel)
    assert config.model_config["frozen"]
    assert config.model_config["extra"] == "forbid"
    assert "name" not in config.model_fields
    with pytest.raises(ValidationError):
        config(no_such_option=1)


def test_options_survive_the_way_through_a_recipe(source):
    module, sample, _ = source
    config = module.Config(**sample.options)
    dumped = config.model_dump(mode="json", exclude_none=True)
    assert module.Config(**json.loads(json.dumps(dumped))) == config


def test_an_unknown_split_is_the_users_error(source):
    module, sample, _ = source
    with pytest.raises(UserError, match="tset"):
        _load(module, sample, "tset")


def test_a_source_that_lacks_a_split_says_which_it_has(source):
    module, sample, _ = source
    said = module.splits(module.Config(**sample.options)) if hasattr(module, "splits") else ALL
    assert said == sample.splits


def test_a_dataset_lists_languages_that_it_then_has(source):
    module, sample, _ = source
    if hasattr(module, "INFO"):
        assert sample.lang in module.languages(module.Config(**sample.options))


def test_a_missing_language_is_the_users_error(source):
    module, sample, _ = source
    if hasattr(module, "INFO"):
        with pytest.raises(UserError, match="zu"):
            module.load(module.Config(**sample.options), languages.load_language("zu"), sample.splits[0])


def test_a_missing_folder_is_the_users_error(source, tmp_path):
    module, sample, _ = source
    if "root" in sample.options:
        moved = module.Config(**sample.options | {"root": tmp_path / "nowhere"})
        with pytest.raises(UserError, match="nowhere"):
            module.load(moved, languages.load_language(sample.lang), sample.splits[0])


ODD_JSON = [None, 7, float("inf"), 10**400, True, "", "\0", "x" * 100, [], [None], {}, {"a": None}]


def _with_another_value(value: Any, rng: random.Random) -> Any:
    """Replace one value somewhere in a JSON value."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        return rng.choice(ODD_JSON)
    place, chosen = rng.choice(list(value.items() if isinstance(value, dict) else enumerate(value)))
    if isinstance(value, dict) and rng.random() < 0.2:
        return {key: other for key, other in value.items() if key != place}
    changed = value.copy()
    changed[place] = _with_another_value(chosen, rng)
    return changed


def _damaged(content: bytes, ending: str, rng: random.Random) -> bytes:
    if ending.startswith(".json") and rng.random() < 0.8:
        lines = content.splitlines() if ending == ".jsonl" else [content]
        place = rng.randrange(len(lines))
        lines[place] = json.dumps(_with_another_value(json.loads(lines[place]), rng)).encode()
        return b"\n".join(lines)
    start = rng.randrange(len(content) + 1)
    return content[:start] + rng.randbytes(rng.randrange(4)) + content[start + rng.randrange(20) :]


def test_damaged_files_are_the_users_error_or_are_read(source, tmp_path):
    module, sample, _ = source
    files = [file for file in tmp_path.rglob("*") if file.suffix in (".txt", ".json", ".jsonl", ".gz", ".arrow")]
    rng = random.Random(0)
    for _ in range(150 if files else 0):
        file = rng.choice(files)
        whole = file.read_bytes()
        file.write_bytes(_damaged(whole, file.suffix, rng))
        for split in sample.splits:
            with suppress(UserError):
                image_prints.prints(_load(module, sample, split).images)
        file.write_bytes(whole)
