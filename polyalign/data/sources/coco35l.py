"""COCO-35L: COCO's English captions translated by machine into 34 languages; a source to train on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from polyalign.config.language import Lang
from polyalign.data.pairs import Origin, PairTable
from polyalign.data.readers import benchmark
from polyalign.data.readers.benchmark import Benchmark
from polyalign.data.readers.files import existing, expecting, json_lines
from polyalign.data.readers.info import COCO_PHOTOS, COCO_ZIPS, Download, Info

INFO = Info(
    title="COCO-35L",
    folder="coco35l",
    languages="ar bn cs da de el en es fa fi fil fr he hi hr hu id it ja ko mi nl no pl pt ro ru sv sw te th tr uk "
    "vi zh",
    size="113,287 train images (566,435 captions a language) and 5,000 dev images (25,000), of Karpathy's COCO split",
    origin="machine (Google Translate); English human",
    licence="CC BY 4.0; images under Flickr's terms",
    home="https://google.github.io/crossmodal-3600/",
    captions="the folder with coco_mt_{train,dev}.jsonl.bz2 (or unpacked, which reads faster)",
    images=COCO_PHOTOS,
    note="XTD's images are among the training images: leave them out (data.leakage). "
    "Punctuation stands apart from words; Chinese, Japanese and Thai are joined again.",
    checked="languages in big_vision's coco35l.py; origin and licence in SEACrowd's coco_35l.py; sizes are in neither",
    downloads=tuple(
        Download(
            url=f"https://storage.googleapis.com/crossmodal-3600/coco_mt_{part}.jsonl.bz2",
            to=f"coco_mt_{part}.jsonl.bz2",
            seen="big_vision's coco35l.py names it; no hash is published",
        )
        for part in ("train", "dev")
    ),
    photos=COCO_ZIPS,
)

Config = Benchmark
splits = benchmark.fixed("train", "dev")
languages = benchmark.fixed(*INFO.languages.split())

_SEGMENTED = ("ja", "th", "zh")
_PIVOT = "de"


def load(config: Benchmark, lang: Lang, split: str) -> PairTable:
    """Load a split, see ``Benchmark``; an image's id is its COCO number in twelve digits."""
    benchmark.check("coco35l", lang, split, splits=splits(config), languages=languages(config))
    name = f"coco_mt_{split}.jsonl"
    path = existing(*(config.root / f"{name}{end}" for end in ("", ".bz2", ".gz")), what="file of captions")
    pairs = _captions(path, lang.code)
    origin: Origin = "human" if lang.code == "en" else "machine"
    return benchmark.table(f"coco35l-{split}", lang, origin, pairs, config, file_of="{}.jpg")


def _captions(path: Path, code: str) -> Iterator[tuple[str, str]]:
    """Read the lines of one language; English is no target language but the source of every translation."""
    target, field = (_PIVOT, "caption_tokenized") if code == "en" else (code, "translation_tokenized")
    for number, row in json_lines(path, containing=f'"{target}"'):
        with expecting(f"{path}, line {number}", f"COCO-35L's image_id, trg_lang, {field}"):
            if row["trg_lang"] == target:
                # "391895_2" is the third caption of image 391895
                image = int(str(row["image_id"]).partition("_")[0])
                caption = str(row[field])
                yield f"{image:012d}", benchmark.join_words(caption) if code in _SEGMENTED else caption
