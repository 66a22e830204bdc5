"""Flickr8k: the published token files, one a language, and the official splits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from polyalign.config.language import Lang
from polyalign.data.pairs import FileImage, Origin, PairTable
from polyalign.data.readers import files as _files
from polyalign.data.readers.gather import gather
from polyalign.data.readers.info import Info
from polyalign.utils.errors import UserError, did_you_mean

INFO = Info(
    title="Flickr8k",
    folder="flickr8k",
    languages="en zh (5 captions an image), ar (3), de fr cs qu gn (1, on 6,993 of the images)",
    size="6,000 train, 1,000 dev, 1,000 test images; 5,176, 867 and 871 of them with captions in every language",
    origin="human; qu and gn machine",
    licence="research only; photos belong to their Flickr authors",
    home="https://hockenmaier.cs.illinois.edu/8k-pictures.html (the form to ask for it: "
    "https://forms.illinois.edu/sec/1713398)",
    captions="the folder with captions/<language>.txt, splits/{train,dev,test}.txt and images/ "
    "(or the files as first published: Flickr8k.token.txt, Flickr_8k.trainImages.txt, Flicker8k_Dataset/)",
    note="243 of Flickr30k's 1,000 test images are among its photos, 173 of them in the training split.",
    checked="counts on the files themselves; the form as text books quote it, whether it still answers is not known; "
    "the other languages are of other publications, whose addresses were not found",
)

_SPLITS = {"train": "Flickr_8k.trainImages.txt", "dev": "Flickr_8k.devImages.txt", "test": "Flickr_8k.testImages.txt"}
_IMAGE_FOLDERS = ("images", "Flicker8k_Dataset", "Flickr8k_Dataset")
_MACHINE = ("qu", "gn")


class Config(BaseModel):
    """Where the files are, and which images are wanted.

    ``root`` holds ``captions/<lang>.txt`` (or the original ``Flickr8k.token.txt``, English), ``splits/<split>.txt``
    (or the original ``Flickr_8k.<split>Images.txt``) and ``images``. With ``images = "common"`` only those images are
    read that have captions in all of ``langs``, by default in every language there is a file of: 5,176, 867 and 871
    of the 6,000, 1,000 and 1,000, where the languages are ar, cs, de, en, fr, gn, qu and zh.

    ``origin`` says who wrote the captions: by default ``machine`` for Quechua and Guarani, ``human`` for the others.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: Path
    images: Literal["all", "common"] = "all"
    langs: tuple[str, ...] = ()
    origin: Origin | None = None


def load(config: Config, lang: Lang, split: str) -> PairTable:
    """Load all captions in a language of a split's images; an image without any in the language is not in the table.

    Raises:
        UserError: there is no such folder, language, split or caption, or a line is malformed.
    """
    root = _files.folder(config.root, "source.root, the folder with captions, splits and images")
    tokens = _token_file(root, lang.code)
    wanted = _split_ids(root, split)
    if config.images == "common":
        wanted &= _common_ids(root, config)
    folder = _image_folder(root)
    origin = config.origin or ("machine" if lang.code in _MACHINE else "human")
    pairs = ((name, text, folder / name) for name, text in _tokens(tokens) if name in wanted)
    table = gather(f"flickr8k-{split}", lang, origin, pairs, FileImage)
    if not len(table):
        raise UserError(f"{root} has no captions in {lang.code} for any image of the {split} split")
    return table


def languages(config: Config) -> list[str]:
    """List the languages that there are captions in."""
    return sorted(_token_files(config.root))


def _split_ids(root: Path, split: str) -> set[str]:
    if split not in _SPLITS:
        raise UserError(f'flickr8k has no split "{split}": {did_you_mean(split, _SPLITS)}')
    path = _files.existing(root / "splits" / f"{split}.txt", root / _SPLITS[split], what=f"list of the {split} images")
    return {line.strip() for line in _files.lines(path) if line.strip()}


def _common_ids(root: Path, config: Config) -> set[str]:
    langs = config.langs or tuple(_token_files(root))
    return set.intersection(*({name for name, _ in _tokens(_token_file(root, code))} for code in langs))


def _token_files(root: Path) -> dict[str, Path]:
    """Find the token file of every language there is."""
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


def _tokens(path: Path) -> Iterator[tuple[str, str]]:
    """Yield image name and caption of lines ``name.jpg#2<TAB>caption``."""
    for number, line in enumerate(_files.lines(path), start=1):
        token, tab, caption = line.partition("\t")
        name, hash_sign, _ = token.rpartition("#")
        if not tab or not hash_sign:
            raise UserError(f'{path}, line {number} is not "name.jpg#0<TAB>caption": {line[:60]!r}')
        yield name, caption.strip()


def _image_folder(root: Path) -> Path:
    for name in _IMAGE_FOLDERS:
        if (root / name).is_dir():
            return root / name
    raise UserError(f"{root} has no folder of images: put them into {root / 'images'}")
