"""Flickr30k captions (English) in Karpathy's split."""

from __future__ import annotations

from polyalign.config.language import Lang
from polyalign.data.pairs import PairTable
from polyalign.data.readers import benchmark
from polyalign.data.readers.benchmark import Benchmark
from polyalign.data.readers.files import existing
from polyalign.data.readers.info import FLICKR30K_PHOTOS, Info, karpathy

INFO = Info(
    title="Flickr30k (Karpathy split)",
    folder="flickr30k",
    languages="en",
    size="29,000 train, 1,014 dev, 1,000 test images, five captions each",
    origin="human",
    licence="research and education, non-commercial; images under Flickr's terms",
    home="https://cs.stanford.edu/people/karpathy/deepimagesent/",
    captions="the folder with dataset_flickr30k.json",
    images=FLICKR30K_PHOTOS,
    note="The test images are those of Multi30k test 2016, Flickr30k-200 and xFlickr&CO's Flickr half.",
    checked="sizes agree with Multi30k's lists of the same images; terms as Flickr30K Entities' README quotes them",
    downloads=karpathy("dataset_flickr30k.json"),
)

Config = Benchmark
languages = benchmark.fixed("en")


def load(config: Benchmark, lang: Lang, split: str) -> PairTable:
    """Load a split, see ``Benchmark``."""
    benchmark.check("flickr30k", lang, split, splits=benchmark.KARPATHY_PARTS, languages=languages(config))
    path = existing(config.root / "dataset_flickr30k.json", what="annotation file")
    pairs = [(image_id, text) for image_id, texts in benchmark.karpathy(path, split) for text in texts]
    return benchmark.table(f"flickr30k-{split}", lang, "human", pairs, config)
