"""COCO captions (English) in Karpathy's split: the 5k test set, and the five folds of 1k."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import Field

from polyalign.config.language import Lang
from polyalign.data.pairs import PairTable
from polyalign.data.readers import benchmark
from polyalign.data.readers.files import existing
from polyalign.data.readers.info import PUBLISHED

INFO = PUBLISHED["coco-karpathy"]

_FOLD = 1000


class Config(benchmark.Benchmark):
    """Test protocol, and captions of images with more than five.

    With ``protocol = "1k"`` the test set is five folds of 1,000 images, each searched separately, and a metric is the
    mean over the folds; ``fold`` (0 to 4) selects one of them.
    """

    protocol: Literal["5k", "1k"] = "5k"
    fold: int | None = Field(None, strict=True, ge=0, le=4)
    captions: Literal["all", "first-5"] = "all"


languages = benchmark.fixed("en")


def load(config: Config, lang: Lang, split: str) -> PairTable:
    """Load a split, see ``Benchmark``."""
    benchmark.check("coco-karpathy", lang, split, splits=benchmark.KARPATHY_PARTS, languages=languages(config))
    images = benchmark.karpathy(existing(config.root / "dataset_coco.json", what="annotation file"), split)
    name = f"coco-karpathy-{split}"
    folds = split == "test" and config.protocol == "1k"
    if split == "test":
        name += f"-{config.protocol}"
    if folds and config.fold is not None:
        name += f"-fold{config.fold}"
        images = images[config.fold * _FOLD : (config.fold + 1) * _FOLD]
    most = 5 if config.captions == "first-5" else None
    pairs = [(image_id, caption) for image_id, captions in images for caption in captions[:most]]
    table = benchmark.table(name, lang, "human", pairs, config)
    if not folds or config.fold is not None:
        return table
    fold = {image_id: place // _FOLD for place, (image_id, _) in enumerate(images)}
    return replace(table, fold_of=np.array([fold[image_id] for image_id in table.image_ids]))
