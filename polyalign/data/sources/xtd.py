"""XTD10 (with MIC's German and French and STAIR's Japanese: XTD11): 1,000 COCO images, one caption each."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from polyalign.config.language import Lang
from polyalign.data.pairs import PairTable
from polyalign.data.readers import benchmark
from polyalign.data.readers.files import existing
from polyalign.data.readers.info import PUBLISHED

INFO = PUBLISHED["xtd"]

_LANGUAGES = ("de", "en", "es", "fr", "it", "ja", "ko", "pl", "ru", "tr", "zh")


class Config(benchmark.Benchmark):
    """``protocol``: ``1k`` tests on all 1,000 images; ``lilt-200`` trains on the 800 of train2014, tests on the 200."""

    protocol: Literal["1k", "lilt-200"] = "1k"


def splits(config: Config) -> tuple[str, ...]:
    """List the splits."""
    return ("train", "test") if config.protocol == "lilt-200" else ("test",)


def languages(config: Config) -> list[str]:
    """List the languages that have a file."""
    return [code for code in _LANGUAGES if any(path.is_file() for path in _caption_files(config, code))]


def load(config: Config, lang: Lang, split: str) -> PairTable:
    """Load the captions of a language, see ``Benchmark``."""
    benchmark.check("xtd", lang, split, splits=splits(config), languages=_LANGUAGES)
    captions = existing(*_caption_files(config, lang.code), what=f"file of captions in {lang.code}")
    names = existing(config.root / "XTD10" / "test_image_names.txt", what="list of image names")
    pairs = benchmark.aligned(names, captions)
    if config.protocol == "lilt-200":
        part = {"train": "COCO_train2014", "test": "COCO_val2014"}[split]
        pairs = [(image_id, caption) for image_id, caption in pairs if image_id.startswith(part)]
    return benchmark.table(f"xtd-{config.protocol}-{split}", lang, "human", pairs, config)


def _caption_files(config: Config, code: str) -> list[Path]:
    file = f"test_1kcaptions_{'jp' if code == 'ja' else code}.txt"
    return [config.root / folder / file for folder in ("XTD10", "MIC", "STAIR")]
