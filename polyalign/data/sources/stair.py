"""STAIR: Japanese captions of all COCO 2014 images."""

from __future__ import annotations

from pathlib import Path

from polyalign.config.language import Lang
from polyalign.data.pairs import PairTable
from polyalign.data.readers import benchmark
from polyalign.data.readers.files import existing, expecting, read_json, string
from polyalign.data.readers.info import PUBLISHED
from polyalign.utils.errors import UserError

INFO = PUBLISHED["stair"]

_FILES = {"train": "train", "dev": "val"}


class Config(benchmark.Benchmark):
    """``karpathy`` is the path of ``dataset_coco.json``; without it train and dev are COCO's train2014 and val2014."""

    karpathy: Path | None = None


languages = benchmark.fixed("ja")


def splits(config: Config) -> tuple[str, ...]:
    """List the splits."""
    return ("train", "dev") if config.karpathy is None else ("train", "dev", "test")


def load(config: Config, lang: Lang, split: str) -> PairTable:
    """Load a split, see ``Benchmark``."""
    if split == "test" and config.karpathy is None:
        raise UserError("stair has no test split of its own: use Karpathy's with source.karpathy=dataset_coco.json")
    benchmark.check("stair", lang, split, splits=splits(config), languages=languages(config))
    if config.karpathy is None:
        return benchmark.table(f"stair-{split}", lang, "human", _captions(config.root, _FILES[split]), config)
    wanted = {image_id for image_id, _ in benchmark.karpathy(config.karpathy, split)}
    both = _captions(config.root, "train") + _captions(config.root, "val")
    pairs = [(image_id, caption) for image_id, caption in both if image_id in wanted]
    return benchmark.table(f"stair-karpathy-{split}", lang, "human", pairs, config)


def _captions(root: Path, part: str) -> list[tuple[str, str]]:
    """Read COCO's format, in which annotations refer to their image by number."""
    path = existing(root / f"stair_captions_v1.2_{part}.json", what="annotation file")
    content = read_json(path)
    with expecting(path, "annotations[].{image_id, caption}"):
        rows = content["annotations"]
        return [(f"COCO_{part}2014_{int(one['image_id']):012d}.jpg", string(one["caption"])) for one in rows]
