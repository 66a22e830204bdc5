"""COCO captions (English) in Karpathy's split: the 5k test set, and the five folds of 1k."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import Field

from polyalign.config.language import Lang
from polyalign.data.pairs import PairTable
from polyalign.data.readers import benchmark as _benchmark
from polyalign.data.readers import files as _files
from polyalign.data.readers import karpathy as _karpathy
from polyalign.data.readers.benchmark import Benchmark
from polyalign.data.readers.info import COCO_ZIPS, KARPATHY, KARPATHY_SEEN, Download, Info, coco_photos

INFO = Info(
    title="COCO (Karpathy split)",
    folder="coco-karpathy",
    languages="en",
    size="113,287 train, 5,000 dev, 5,000 test images, five captions each (a few more on some)",
    origin="human",
    licence="captions CC BY 4.0; images under Flickr's terms",
    home="https://cs.stanford.edu/people/karpathy/deepimagesent/, https://cocodataset.org",
    captions="the folder with dataset_coco.json",
    images="COCO train2014 and val2014",
    note="protocol=1k searches five folds of 1,000 test images, in the file's order, each alone, and gives their mean "
    "(fold=0 to 4: one of them). 25,010 captions in the 5k test set; captions=first-5 keeps 25,000, as some peers do.",
    checked="sizes as the papers that use the split give them; the file itself and the licence page were not at hand",
    downloads=(Download(url=KARPATHY, unpack=("dataset_coco.json",), seen=KARPATHY_SEEN),),
    photos=COCO_ZIPS,
    single=coco_photos(),
)

_FOLD = 1000


class Config(Benchmark):
    """Which test set, and which of the captions of an image that has more than five.

    With ``protocol = "1k"`` the test set is five folds of 1,000 images, each searched alone, and a figure is the mean
    of the five; ``fold``, from 0, takes one of them.
    """

    protocol: Literal["5k", "1k"] = "5k"
    fold: int | None = Field(None, ge=0, le=4)
    captions: Literal["all", "first-5"] = "all"


def load(config: Config, lang: Lang, split: str) -> PairTable:
    """Load a split.

    Raises:
        UserError: no such split, another language than English, the file is missing or malformed, or images are.
    """
    _benchmark.only_splits("coco-karpathy", split, _karpathy.COCO_PARTS)
    _benchmark.pick("coco-karpathy", lang, {"en": "en"})
    path = _files.existing(config.root / "dataset_coco.json", what="annotation file")
    images = _karpathy.read(path, _karpathy.COCO_PARTS[split])
    name = f"coco-karpathy-{split}"
    if split == "test":
        name += f"-{config.protocol}"
        if config.protocol == "1k" and config.fold is not None:
            name += f"-fold{config.fold}"
            images = images[config.fold * _FOLD : (config.fold + 1) * _FOLD]
    most = 5 if config.captions == "first-5" else None
    pairs = [(image_id, caption) for image_id, captions in images for caption in captions[:most]]
    table = _benchmark.table(name, lang, "human", pairs, config)
    if split != "test" or config.protocol != "1k" or config.fold is not None:
        return table
    fold = {image_id: place // _FOLD for place, (image_id, _) in enumerate(images)}
    return replace(table, fold_of=np.array([fold[image_id] for image_id in table.image_ids]))


def languages(config: Config) -> list[str]:
    """List the languages that there are captions in."""
    return ["en"]
