"""COCO-35L: COCO's English captions translated by machine into 34 languages; a source to train on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from polyalign.config.language import Lang
from polyalign.data.pairs import Origin, PairTable
from polyalign.data.readers import benchmark
from polyalign.data.readers.files import existing, expecting, json_lines, string
from polyalign.data.readers.info import PUBLISHED

INFO = PUBLISHED["coco35l"]

Config = benchmark.Benchmark
splits = benchmark.fixed("train", "dev")
languages = benchmark.fixed(*INFO.languages.split())

_SEGMENTED = ("ja", "th", "zh")
_PIVOT = "de"


def load(config: benchmark.Benchmark, lang: Lang, split: str) -> PairTable:
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
                caption = string(row[field])
                yield f"{image:012d}", benchmark.join_words(caption) if code in _SEGMENTED else caption
