"""XTD10 (with MIC's German and French and STAIR's Japanese: XTD11): 1,000 COCO images, one caption each."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from polyalign.config.language import Lang
from polyalign.data.pairs import PairTable
from polyalign.data.readers import benchmark
from polyalign.data.readers.benchmark import Benchmark
from polyalign.data.readers.files import existing
from polyalign.data.readers.info import COCO_PHOTOS, Info, coco_photos, github

INFO = Info(
    title="XTD10 / XTD11",
    folder="xtd10",
    languages="en es it ko pl ru tr zh (XTD10), de fr (MIC), ja (STAIR)",
    size="1,000 COCO 2014 images (800 train, 200 val), one caption each, the same images in every language",
    origin="human",
    licence="Adobe Research License: non-commercial research",
    home="https://github.com/adobe-research/Cross-lingual-Test-Dataset-XTD10",
    captions="the repository (XTD10/, MIC/, STAIR/)",
    images=COCO_PHOTOS,
    note="800 of the images are in COCO train2014: leave them out of training (data.leakage). "
    "LilT trained on those 800 and tested on the 200 others: protocol lilt-200, not comparable with 1k.",
    checked="all in the repository's files, README.md and LICENSE.md at commit d77ff16",
    downloads=github(
        "adobe-research/Cross-lingual-Test-Dataset-XTD10/d77ff16148468c84287f3efcbf602a015c5e4954",
        seen="CLIP_benchmark's xtd10.py names it (branch main)",
    ),
    single=coco_photos(),
)

_LANGUAGES = ("de", "en", "es", "fr", "it", "ja", "ko", "pl", "ru", "tr", "zh")


class Config(Benchmark):
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
