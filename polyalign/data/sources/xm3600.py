"""Crossmodal-3600: 3,600 images from all over the world, captions written in 36 languages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from polyalign.config.language import Lang
from polyalign.data.pairs import PairTable
from polyalign.data.readers import benchmark
from polyalign.data.readers.files import existing, expecting, json_lines, string, strings
from polyalign.data.readers.info import PUBLISHED

INFO = PUBLISHED["xm3600"]


class Config(benchmark.Benchmark):
    """``captions``: ``all`` of an image, or only the ``first``."""

    captions: Literal["all", "first"] = "all"


splits = benchmark.fixed("test")
languages = benchmark.fixed(*INFO.languages.split())


def load(config: Config, lang: Lang, split: str) -> PairTable:
    """Load the captions of a language, see ``Benchmark``."""
    benchmark.check("xm3600", lang, split, splits=splits(config), languages=languages(config))
    path = existing(config.root / "captions.jsonl", what="file of captions")
    most = 1 if config.captions == "first" else None
    code = {"qu": "quz"}.get(lang.code, lang.code)
    pairs = [(key, caption) for key, captions in _captions(path, code) for caption in captions[:most]]
    return benchmark.table(f"xm3600-{config.captions}-{split}", lang, "human", pairs, config, file_of="{}.jpg")


def _captions(path: Path, code: str) -> Iterator[tuple[str, list[str]]]:
    for number, row in json_lines(path):
        with expecting(f"{path}, line {number}", f'{{"image/key", "{code}": {{"caption": [...]}}}}'):
            key, captions = string(row["image/key"]), strings(row[code]["caption"])
        yield key, captions
