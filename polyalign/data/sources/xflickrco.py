"""xFlickr&CO (IGLUE): 1,000 Flickr30k and 1,000 COCO images, one caption each, written in 8 languages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from polyalign.config.language import Lang
from polyalign.data.pairs import PairTable
from polyalign.data.readers import benchmark
from polyalign.data.readers.files import existing, expecting, json_lines, string, strings
from polyalign.data.readers.info import PUBLISHED

INFO = PUBLISHED["xflickrco"]

_ENTITY_DIGITS = re.compile("[0-9]+")


class Config(benchmark.Benchmark):
    """Part of the test set, number of training images, and removal of entity digits.

    ``clean`` removes ASCII digits from the Japanese Flickr captions, where they number entities ("1男が、3メガネ");
    real numbers are written in kanji or full-width digits and stay. ``shots`` selects ``train_<shots>.jsonl``.
    """

    part: Literal["both", "flickr", "coco"] = "both"
    shots: Literal[1, 5, 10, 25, 50, 100] = 100
    clean: bool = False


splits = benchmark.fixed("train", "test")


def languages(config: Config) -> list[str]:
    """List the languages that have a test file."""
    return [code for code in INFO.languages.split() if (config.root / code / "test.jsonl").is_file()]


def load(config: Config, lang: Lang, split: str) -> PairTable:
    """Load the captions of a language, see ``Benchmark``."""
    benchmark.check("xflickrco", lang, split, splits=splits(config), languages=INFO.languages.split())
    file = "test.jsonl" if split == "test" else f"train_{config.shots}.jsonl"
    path = existing(config.root / lang.code / file, what=f"file of captions in {lang.code}")
    pairs = [(image, caption) for image, caption in _captions(path) if config.part in ("both", _part(image))]
    if config.clean and lang.code == "ja":
        pairs = [(image, _ENTITY_DIGITS.sub("", text) if _part(image) == "flickr" else text) for image, text in pairs]
    name = "xflickrco" if config.part == "both" else f"xflickrco-{config.part}"
    return benchmark.table(f"{name}-{split}{'-clean' if config.clean else ''}", lang, "human", pairs, config)


def _captions(path: Path) -> Iterator[tuple[str, str]]:
    for number, row in json_lines(path):
        with expecting(f"{path}, line {number}", '{"img_path": ..., "sentences": [...]}'):
            image, sentences = string(row["img_path"]), strings(row["sentences"])
        yield from ((image, sentence) for sentence in sentences)


def _part(image: str) -> str:
    return "coco" if image.startswith("COCO_") else "flickr"
