"""Flickr8k: the published token files, one per language, and the official splits."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from polyalign.config.language import Lang
from polyalign.data.pairs import FileImage, Origin, PairTable
from polyalign.data.readers.benchmark import tokens
from polyalign.data.readers.files import existing, folder, lines
from polyalign.data.readers.info import PUBLISHED
from polyalign.utils.errors import UserError, did_you_mean

INFO = PUBLISHED["flickr8k"]

_SPLITS = {"train": "Flickr_8k.trainImages.txt", "dev": "Flickr_8k.devImages.txt", "test": "Flickr_8k.testImages.txt"}
_IMAGE_FOLDERS = ("images", "Flicker8k_Dataset", "Flickr8k_Dataset")
_ORIGINS: dict[str, Origin] = dict.fromkeys(("ar", "cs", "de", "en", "fr", "zh"), "human")
_ORIGINS |= dict.fromkeys(("gn", "qu"), "machine")

logger = logging.getLogger(__name__)


class Config(BaseModel, frozen=True, extra="forbid"):
    """Location of the files, and selection of images.

    ``root`` contains ``captions/<lang>.txt`` (or the original ``Flickr8k.token.txt``, English), ``splits/<split>.txt``
    (or the original ``Flickr_8k.<split>Images.txt``) and ``images``. With ``images = "common"`` only images that have
    captions in all of ``langs`` are read, by default in every language that has a file: 5,176, 867 and 871 of the
    6,000, 1,000 and 1,000 for ar, cs, de, en, fr, gn, qu and zh.

    ``origin`` is who wrote the captions. By default it is ``human`` for ar, cs, de, en, fr and zh (the Arabic was
    translated by machine and edited by people), ``machine`` for gn and qu. Any other language has no published
    captions known to polyalign and is labelled ``machine``, with a warning, unless ``origin`` is set.
    """

    root: Path
    images: Literal["all", "common"] = "all"
    langs: tuple[str, ...] = ()
    origin: Origin | None = None


def load(config: Config, lang: Lang, split: str) -> PairTable:
    """Load all captions in a language of a split's images; images without any in the language are left out.

    Raises:
        UserError: the folder, language, split or captions do not exist, or a line is malformed.
    """
    root = folder(config.root, "source.root, the folder with captions, splits and images")
    path = _token_file(root, lang.code)
    if split not in _SPLITS:
        raise UserError(f'flickr8k has no split "{split}": {did_you_mean(split, _SPLITS)}')
    split_lists = (root / "splits" / f"{split}.txt", root / _SPLITS[split])
    wanted = {line.strip() for line in lines(existing(*split_lists, what=f"list of the {split} images"))}
    if config.images == "common":
        codes = config.langs or tuple(_token_files(root))
        wanted = wanted.intersection(*({name for name, _ in tokens(_token_file(root, code))} for code in codes))
    images = next((root / name for name in _IMAGE_FOLDERS if (root / name).is_dir()), None)
    if images is None:
        raise UserError(f"{root} has no folder of images: put them into {root / 'images'}")
    pairs = ((name, text.strip(), FileImage(images / name)) for name, text in tokens(path) if name in wanted)
    origin = config.origin or _ORIGINS.get(lang.code, "machine")
    if config.origin is None and lang.code not in _ORIGINS:
        logger.warning(
            f"{path}: it is not known who wrote these captions; they are labelled machine-translated. "
            "If people wrote them, set source.origin=human"
        )
    table = PairTable.from_pairs(f"flickr8k-{split}", lang.code, origin, pairs)
    if not len(table):
        raise UserError(f"{root} has no captions in {lang.code} for any image of the {split} split")
    return table


def languages(config: Config) -> list[str]:
    """List the languages that have a file."""
    return sorted(_token_files(config.root))


def _token_files(root: Path) -> dict[str, Path]:
    """Return the token file of each language."""
    original = root / "Flickr8k.token.txt"
    files = {"en": original} if original.is_file() else {}
    return files | {path.stem: path for path in sorted((root / "captions").glob("*.txt"))}


def _token_file(root: Path, code: str) -> Path:
    files = _token_files(root)
    if code not in files:
        path = root / "captions" / f"{code}.txt"
        if not files:
            raise UserError(f"there is no {path}, nor any other flickr8k captions in {root}: is source.root right?")
        raise UserError(f'flickr8k has no captions in "{code}" ({path}): {did_you_mean(code, files)}')
    return files[code]
