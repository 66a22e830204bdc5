"""XTD10 (with MIC's German and French and STAIR's Japanese: XTD11): 1,000 COCO images, one caption each."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from polyalign.config.language import Lang
from polyalign.data.pairs import PairTable
from polyalign.data.readers import benchmark as _benchmark
from polyalign.data.readers import files as _files
from polyalign.data.readers.benchmark import Benchmark
from polyalign.data.readers.info import Download, Info, coco_photos

INFO = Info(
    title="XTD10 / XTD11",
    folder="xtd10",
    languages="en es it ko pl ru tr zh (XTD10), de fr (MIC), ja (STAIR)",
    size="1,000 COCO 2014 images (800 train, 200 val), one caption each, the same images in every language",
    origin="human",
    licence="Adobe Research License: non-commercial research",
    home="https://github.com/adobe-research/Cross-lingual-Test-Dataset-XTD10",
    captions="the repository (XTD10/, MIC/, STAIR/)",
    images="COCO train2014 and val2014",
    note="800 of the images are in COCO train2014: leave them out of training (data.leakage). "
    "LilT trained on those 800 and tested on the 200 others: protocol lilt-200, not comparable with 1k.",
    checked="all in the repository's files, README.md and LICENSE.md at commit d77ff16",
    downloads=(
        Download(
            url="https://raw.githubusercontent.com/adobe-research/Cross-lingual-Test-Dataset-XTD10/"
            "d77ff16148468c84287f3efcbf602a015c5e4954/",
            seen="CLIP_benchmark's xtd10.py names it (branch main); hashes are of the repository's files",
        ),
    ),
    single=coco_photos(),
)

_FOLDERS = ("XTD10", "MIC", "STAIR")
_CODES = {code: code for code in ("de", "en", "es", "fr", "it", "ko", "pl", "ru", "tr", "zh")} | {"ja": "jp"}


class Config(Benchmark):
    """``protocol``: ``1k`` tests on all 1,000 images; ``lilt-200`` trains on the 800 of train2014, tests on the 200."""

    protocol: Literal["1k", "lilt-200"] = "1k"


def load(config: Config, lang: Lang, split: str) -> PairTable:
    """Load the captions of a language.

    Raises:
        UserError: no such language or split, a file is missing, lines do not belong together, images are missing.
    """
    _benchmark.only_splits("xtd", split, splits(config))
    code = _benchmark.pick("xtd", lang, _CODES)
    captions = _files.existing(*_caption_files(config, code), what=f"file of captions in {lang.code}")
    names = _files.existing(config.root / "XTD10" / "test_image_names.txt", what="list of image names")
    pairs = _benchmark.aligned(names, captions)
    if config.protocol == "lilt-200":
        part = {"train": "COCO_train2014", "test": "COCO_val2014"}[split]
        pairs = [(image_id, caption) for image_id, caption in pairs if image_id.startswith(part)]
    return _benchmark.table(f"xtd-{config.protocol}-{split}", lang, "human", pairs, config)


def splits(config: Config) -> tuple[str, ...]:
    """List the splits that there are."""
    return ("train", "test") if config.protocol == "lilt-200" else ("test",)


def languages(config: Config) -> list[str]:
    """List the languages that there are captions in."""
    return sorted(lang for lang, code in _CODES.items() if any(path.is_file() for path in _caption_files(config, code)))


def _caption_files(config: Config, code: str) -> list[Path]:
    return [config.root / folder / f"test_1kcaptions_{code}.txt" for folder in _FOLDERS]
