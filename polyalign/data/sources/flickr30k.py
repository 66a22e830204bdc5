"""Flickr30k captions (English) in Karpathy's split."""

from __future__ import annotations

from polyalign.config.language import Lang
from polyalign.data.pairs import PairTable
from polyalign.data.readers import benchmark
from polyalign.data.readers.files import existing
from polyalign.data.readers.info import PUBLISHED

INFO = PUBLISHED["flickr30k"]

Config = benchmark.Benchmark
languages = benchmark.fixed("en")


def load(config: benchmark.Benchmark, lang: Lang, split: str) -> PairTable:
    """Load a split, see ``Benchmark``."""
    benchmark.check("flickr30k", lang, split, splits=benchmark.KARPATHY_PARTS, languages=languages(config))
    path = existing(config.root / "dataset_flickr30k.json", what="annotation file")
    pairs = [(image_id, text) for image_id, texts in benchmark.karpathy(path, split) for text in texts]
    return benchmark.table(f"flickr30k-{split}", lang, "human", pairs, config)
