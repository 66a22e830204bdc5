"""XTD200: XTD10's English captions translated into 200 languages by NLLB."""

from __future__ import annotations

from polyalign.config.language import Lang
from polyalign.data.pairs import PairTable
from polyalign.data.readers import flores as _flores
from polyalign.data.readers.benchmark import Benchmark
from polyalign.data.readers.info import Download, Info, coco_photos

INFO = Info(
    title="XTD200",
    folder="xtd200",
    languages="201, by FLORES-200 code",
    size="1,000 COCO 2014 images (those of XTD10), one caption each",
    origin="machine (NLLB); English human",
    licence="none stated for the translations; XTD10's is non-commercial research",
    home="https://github.com/visheratin/nllb-clip (data/xtd200)",
    captions="the folder with test_image_names.txt and <flores code>.txt",
    images="COCO train2014 and val2014",
    note="800 of the images are in COCO train2014: leave them out of training (data.leakage).",
    checked="languages and sizes in the repository's files at commit 5cad452, which has no licence file",
    downloads=(
        Download(
            url="https://raw.githubusercontent.com/visheratin/nllb-clip/5cad452a374adb2dbfbb23fb2f19d24e3959c719/"
            "data/xtd200/",
            seen="CLIP_benchmark's xtd200.py names it (branch main); hashes are of the repository's files",
        ),
    ),
    single=coco_photos(),
)

_ENGLISH = "eng_Latn.txt"


class Config(Benchmark):
    """See ``Benchmark``."""


def load(config: Config, lang: Lang, split: str) -> PairTable:
    """Load the captions of a language, see ``_flores.load``."""
    return _flores.load("xtd200", config, lang, split, names="test_image_names.txt", english=_ENGLISH)


def splits(config: Config) -> tuple[str, ...]:
    """List the splits that there are."""
    return ("test",)


def languages(config: Config) -> list[str]:
    """List the languages, of those polyalign knows, that there are captions in."""
    return _flores.languages(config, english=_ENGLISH)
