"""Crossmodal-3600: 3,600 images from all over the world, captions written in 36 languages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from polyalign.config.language import Lang
from polyalign.data.pairs import PairTable
from polyalign.data.readers import benchmark as _benchmark
from polyalign.data.readers import files as _files
from polyalign.data.readers.benchmark import Benchmark
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

_CODES = {code: code for code in INFO.languages.split()} | {"qu": "quz"}


class Config(Benchmark):
    """``captions``: ``all`` of an image, or only the ``first``."""

    captions: Literal["all", "first"] = "all"


def load(config: Config, lang: Lang, split: str) -> PairTable:
    """Load the captions of a language.

    Raises:
        UserError: no such language or split, the file is missing or malformed, images are missing.
    """
    _benchmark.only_splits("xm3600", split, splits(config))
    code = _benchmark.pick("xm3600", lang, _CODES)
    path = _files.existing(config.root / "captions.jsonl", what="file of captions")
    wanted = slice(1) if config.captions == "first" else slice(None)
    pairs = [(key, caption) for key, captions in _captions(path, code) for caption in captions[wanted]]
    return _benchmark.table(f"xm3600-{config.captions}-{split}", lang, "human", pairs, config, file_of="{}.jpg")


def splits(config: Config) -> tuple[str, ...]:
    """List the splits that there are."""
    return ("test",)


def languages(config: Config) -> list[str]:
    """List the languages that there are captions in."""
    return sorted(_CODES)


def _captions(path: Path, code: str) -> Iterator[tuple[str, list[str]]]:
    for number, row in _files.json_lines(path):
        try:
            key, captions = row["image/key"], row[code]["caption"]
        except (KeyError, TypeError) as error:
            raise UserError(
                f'{path}, line {number} is not of the form {{"image/key", "{code}": {{"caption"}}}}'
            ) from error
        if not isinstance(captions, list):
            raise UserError(f"{path}, line {number}: the captions in {code} are not a list")
        yield str(key), captions
