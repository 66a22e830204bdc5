"""STAIR: Japanese captions of all COCO 2014 images."""

from __future__ import annotations

from pathlib import Path

from polyalign.config.language import Lang
from polyalign.data.pairs import PairTable
from polyalign.data.readers import benchmark as _benchmark
from polyalign.data.readers import files as _files
from polyalign.data.readers import karpathy as _karpathy
from polyalign.data.readers.benchmark import Benchmark
from polyalign.data.readers.info import COCO_ZIPS, Download, Info
from polyalign.utils.errors import UserError

INFO = Info(
    title="STAIR Captions",
    folder="stair",
    languages="ja",
    size="82,783 train2014 and 40,504 val2014 images, five captions each",
    origin="human",
    licence="CC BY 4.0; images under Flickr's terms",
    home="https://github.com/STAIR-Lab-CIT/STAIR-captions",
    captions="the folder with stair_captions_v1.2_{train,val}.json",
    images="COCO train2014 and val2014",
    note="karpathy=dataset_coco.json gives Karpathy's splits, which its 5,000 test images are of.",
    checked="licence in the repository's README.md at commit b888953; image counts are COCO 2014's own",
    downloads=(
        Download(
            url="https://github.com/STAIR-Lab-CIT/STAIR-captions/raw/b888953f398cb058ab6e6244cf8ccbe4cceb47f4/"
            "stair_captions_v1.2.tar.gz",
            unpack=("stair_captions_v1.2_train.json", "stair_captions_v1.2_val.json"),
            seen="public loaders name it, and the commit holds it; it is too large for its hash to be at hand",
        ),
    ),
    photos=COCO_ZIPS,
)

_FILES = {"train": "train", "dev": "val"}


class Config(Benchmark):
    """``karpathy`` is the path of ``dataset_coco.json``; without it train and dev are COCO's train2014 and val2014."""

    karpathy: Path | None = None


def load(config: Config, lang: Lang, split: str) -> PairTable:
    """Load a split.

    Raises:
        UserError: no such split, another language than Japanese, a file is missing or malformed, or images are.
    """
    if split == "test" and config.karpathy is None:
        raise UserError("stair has no test split of its own: give Karpathy's with source.karpathy=dataset_coco.json")
    _benchmark.only_splits("stair", split, splits(config))
    _benchmark.pick("stair", lang, {"ja": "ja"})
    if config.karpathy is None:
        pairs = _captions(config.root, _FILES[split])
        return _benchmark.table(f"stair-{split}", lang, "human", pairs, config)
    wanted = {image_id for image_id, _ in _karpathy.read(config.karpathy, _karpathy.COCO_PARTS[split])}
    both = _captions(config.root, "train") + _captions(config.root, "val")
    pairs = [(image_id, caption) for image_id, caption in both if image_id in wanted]
    return _benchmark.table(f"stair-karpathy-{split}", lang, "human", pairs, config)


def splits(config: Config) -> tuple[str, ...]:
    """List the splits that there are."""
    return ("train", "dev") if config.karpathy is None else ("train", "dev", "test")


def languages(config: Config) -> list[str]:
    """List the languages that there are captions in."""
    return ["ja"]


def _captions(root: Path, part: str) -> list[tuple[str, str]]:
    """Read COCO's form: annotations know their image by its number."""
    path = _files.existing(root / f"stair_captions_v1.2_{part}.json", what="annotation file")
    try:
        return [
            (f"COCO_{part}2014_{int(one['image_id']):012d}.jpg", str(one["caption"]))
            for one in _files.read_json(path)["annotations"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not of COCO's form, annotations[].{{image_id, caption}}") from error
