"""Flickr30k captions (English) in Karpathy's split."""

from __future__ import annotations

from polyalign.config.language import Lang
from polyalign.data.pairs import PairTable
from polyalign.data.readers import benchmark as _benchmark
from polyalign.data.readers import files as _files
from polyalign.data.readers import karpathy as _karpathy
from polyalign.data.readers.benchmark import Benchmark
from polyalign.data.readers.info import FLICKR30K_PHOTOS, KARPATHY, KARPATHY_SEEN, Download, Info

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
    downloads=(Download(url=KARPATHY, unpack=("dataset_flickr30k.json",), seen=KARPATHY_SEEN),),
)

_PARTS = {"train": ("train",), "dev": ("val",), "test": ("test",)}


class Config(Benchmark):
    """See ``Benchmark``."""


def load(config: Config, lang: Lang, split: str) -> PairTable:
    """Load a split.

    Raises:
        UserError: no such split, another language than English, the file is missing or malformed, or images are.
    """
    _benchmark.only_splits("flickr30k", split, _PARTS)
    _benchmark.pick("flickr30k", lang, {"en": "en"})
    path = _files.existing(config.root / "dataset_flickr30k.json", what="annotation file")
    images = _karpathy.read(path, _PARTS[split])
    pairs = [(image_id, caption) for image_id, captions in images for caption in captions]
    return _benchmark.table(f"flickr30k-{split}", lang, "human", pairs, config)


def languages(config: Config) -> list[str]:
    """List the languages that there are captions in."""
    return ["en"]
