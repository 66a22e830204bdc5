"""Crossmodal-3600: 3,600 images from all over the world, captions written in 36 languages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from polyalign.config.language import Lang
from polyalign.data.pairs import PairTable
from polyalign.data.readers import benchmark
from polyalign.data.readers.benchmark import Benchmark
from polyalign.data.readers.files import existing, expecting, json_lines
from polyalign.data.readers.info import Download, Info
from polyalign.utils.errors import UserError

INFO = Info(
    title="Crossmodal-3600",
    folder="xm3600",
    languages="ar bn cs da de el en es fa fi fil fr he hi hr hu id it ja ko mi nl no pl pt qu ro ru sv sw te th tr uk "
    "vi zh",
    size="3,600 images, 261,375 captions, about two an image (bn and mi nearer one)",
    origin="human",
    licence="captions CC BY 4.0, images CC BY 2.0 (Open Images)",
    home="https://google.github.io/crossmodal-3600/",
    captions="the folder with captions.jsonl",
    images="the folder with <key>.jpg",
    note="Peers differ: captions=all searches with every caption, captions=first with the first of each image, "
    "as CLIP_benchmark does.",
    checked="sizes and languages in arXiv 2205.12522; the captions' licence as SEACrowd's loader gives it, "
    "that of the images is Open Images' own and was not looked up for these 3,600",
    downloads=(
        Download(
            url="https://google.github.io/crossmodal-3600/web-data/captions.zip",
            unpack=("captions.jsonl",),
            seen="the loaders of CLIP_benchmark, SEACrowd and HELM name it; no hash is published",
        ),
    ),
    photos=(
        Download(
            url="https://open-images-dataset.s3.amazonaws.com/crossmodal-3600/images.tgz",
            to="xm3600",
            unpack=("*",),
            seen="the loaders of CLIP_benchmark, SEACrowd and HELM name it; no hash is published",
        ),
    ),
)


class Config(Benchmark):
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
        with expecting(f"{path}, line {number}", f'{{"image/key", "{code}": {{"caption"}}}}'):
            key, captions = str(row["image/key"]), row[code]["caption"]
        if not isinstance(captions, list):
            raise UserError(f"{path}, line {number}: the captions in {code} are not a list")
        yield key, captions
