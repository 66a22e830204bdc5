"""xFlickr&CO (IGLUE): 1,000 Flickr30k and 1,000 COCO images, one caption each, written in 8 languages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from polyalign.config.language import Lang
from polyalign.data.pairs import PairTable
from polyalign.data.readers import benchmark as _benchmark
from polyalign.data.readers import files as _files
from polyalign.data.readers.benchmark import Benchmark
from polyalign.data.readers.info import FLICKR30K_PHOTOS, Download, Info, coco_photos
from polyalign.utils.errors import UserError

INFO = Info(
    title="xFlickr&CO",
    folder="xflickrco",
    languages="de en es id ja ru tr zh",
    size="test 2,000 images (1,000 Flickr30k test, 1,000 COCO val2014), one caption each; few-shot training files "
    "(not in English)",
    origin="human",
    licence="MIT (the IGLUE repository); Flickr30k's and COCO's terms for what comes from them",
    home="https://github.com/e-bug/iglue (datasets/xFlickrCO/annotations)",
    captions="the folder with <language>/test.jsonl",
    images=f"{FLICKR30K_PHOTOS}; COCO val2014",
    note="The Japanese Flickr captions carry entity digits: clean=true takes them out. One German and one Indonesian "
    "caption were published empty and stay so. The Flickr half is Multi30k test 2016 and Flickr30k-200; the COCO half "
    "shares 7 images with XTD.",
    checked="all in the repository's files and LICENSE at commit 43cbac9",
    downloads=(
        Download(
            url="https://raw.githubusercontent.com/e-bug/iglue/43cbac91513388d40b2c6d93925f00ca9fc08a98/"
            "datasets/xFlickrCO/annotations/",
            seen="hashes are of the repository's files; the address is GitHub's for any file of a commit",
        ),
    ),
    single=coco_photos(part="coco"),
)

_CODES = {code: code for code in ("de", "en", "es", "id", "ja", "ru", "tr", "zh")}
_ENTITY_DIGITS = re.compile("[0-9]+")


class Config(Benchmark):
    """Which half of the test set, how many training images, and whether entity digits are taken out.

    ``clean`` removes ASCII digits from the Japanese Flickr captions, where they number entities ("1男が、3メガネ");
    real numbers are written there in kanji or full-width digits and stay. ``shots`` chooses ``train_<shots>.jsonl``.
    """

    part: Literal["both", "flickr", "coco"] = "both"
    shots: Literal[1, 5, 10, 25, 50, 100] = 100
    clean: bool = False


def load(config: Config, lang: Lang, split: str) -> PairTable:
    """Load the captions of a language.

    Raises:
        UserError: no such language or split, a file is missing or malformed, images are missing.
    """
    _benchmark.only_splits("xflickrco", split, splits(config))
    code = _benchmark.pick("xflickrco", lang, _CODES)
    file = "test.jsonl" if split == "test" else f"train_{config.shots}.jsonl"
    path = _files.existing(config.root / code / file, what=f"file of captions in {code}")
    pairs = [(image, caption) for image, caption in _captions(path) if config.part in ("both", _part(image))]
    if config.clean and code == "ja":
        pairs = [(image, _clean(caption) if _part(image) == "flickr" else caption) for image, caption in pairs]
    name = "xflickrco" if config.part == "both" else f"xflickrco-{config.part}"
    return _benchmark.table(f"{name}-{split}{'-clean' if config.clean else ''}", lang, "human", pairs, config)


def splits(config: Config) -> tuple[str, ...]:
    """List the splits that there are."""
    return ("train", "test")


def languages(config: Config) -> list[str]:
    """List the languages that there are captions in."""
    return sorted(lang for lang, code in _CODES.items() if (config.root / code / "test.jsonl").is_file())


def _captions(path: Path) -> Iterator[tuple[str, str]]:
    for number, row in _files.json_lines(path):
        image, sentences = row.get("img_path"), row.get("sentences")
        if not isinstance(image, str) or not isinstance(sentences, list):
            raise UserError(f'{path}, line {number} is not of the form {{"img_path": ..., "sentences": [...]}}')
        for sentence in sentences:
            yield image, str(sentence)


def _part(image: str) -> str:
    return "coco" if image.startswith("COCO_") else "flickr"


def _clean(caption: str) -> str:
    return _ENTITY_DIGITS.sub("", caption)
