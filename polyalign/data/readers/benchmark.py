"""Shared code of the benchmark sources: image folders, line-aligned files, common file formats."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pydantic import BaseModel

from polyalign.config.language import Lang, language_codes, load_language
from polyalign.data import image_ids
from polyalign.data.pairs import IMAGE_SUFFIXES, EncodedImage, FileImage, ImageRef, Origin, PairTable
from polyalign.data.readers import files
from polyalign.utils.errors import AbsentError, UserError, did_you_mean

KARPATHY_PARTS = {"train": ("train", "restval"), "dev": ("val",), "test": ("test",)}
"""Karpathy's split names; the COCO training split includes the rest of val2014 (113,287 images in total)."""

_NAMED = 5
# Spaces between words, except those with a Latin word or a number on both sides.
_SEGMENTATION = re.compile(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])")


class Benchmark(BaseModel, frozen=True, extra="forbid"):
    """File locations of a benchmark.

    ``root`` contains the captions as published; ``images`` contains the photos under their original names, in any
    subfolder. Missing photos are an error unless ``allow_missing`` is set, which leaves them out with their captions.
    Without ``images`` captions can be read but images cannot be opened.

    ``load`` of a benchmark source raises UserError for an unknown split or language, a missing or malformed file, and
    missing images.
    """

    root: Path
    images: Path | None = None
    allow_missing: bool = False


def table(
    name: str, lang: Lang, origin: Origin, pairs: Iterable[tuple[str, str]], config: Benchmark, *, file_of: str = "{}"
) -> PairTable:
    """Build a table from ``(image id, caption)`` pairs; captions are stripped.

    ``file_of`` is the pattern of image file names, with ``{}`` for the image id.

    Raises:
        UserError: all images are missing, or some are and ``allow_missing`` is false.
    """
    pairs = list(pairs)
    ids = list(dict.fromkeys(image_id for image_id, _ in pairs))
    found = _find_images(name, ids, file_of, config)
    # A smaller gallery is easier, so its name reports the size wherever a result is shown.
    of = f" ({len(found):,} of {len(ids):,} images)" if len(found) < len(ids) else ""
    kept = ((image_id, caption.strip(), found[image_id]) for image_id, caption in pairs if image_id in found)
    return PairTable.from_pairs(f"{name}{of}", lang.code, origin, kept)


def fixed(*values: str) -> Callable[[BaseModel], tuple[str, ...]]:
    """Return a ``splits`` or ``languages`` function of a source for which they do not depend on the config."""
    return lambda config: values


def check(benchmark: str, lang: Lang, split: str, *, splits: Collection[str], languages: Collection[str]) -> None:
    """Check that a benchmark has the split and the language.

    Raises:
        UserError: the split or the language is missing.
    """
    if split not in splits:
        raise UserError(f'{benchmark} has no "{split}" split: it has {", ".join(splits)}')
    if lang.code not in languages:
        raise UserError(f'{benchmark} has no captions in "{lang.code}": {did_you_mean(lang.code, languages)}')


def aligned(names: Path, captions: Path) -> list[tuple[str, str]]:
    """Read image names, without caption numbers (``#3``), and captions from two line-aligned files.

    Raises:
        UserError: a file cannot be read, or the files differ in length.
    """
    ids = [line.strip().partition("#")[0] for line in files.lines(names)]
    texts = files.lines(captions)
    while ids and not ids[-1]:
        ids.pop()
    while len(texts) > len(ids) and not texts[-1].strip():
        texts.pop()
    if len(ids) != len(texts):
        raise UserError(
            f"{names} has {len(ids):,} lines and {captions} has {len(texts):,}: the files must be aligned line by line"
        )
    return list(zip(ids, texts, strict=True))


def tokens(path: Path) -> Iterable[tuple[str, str]]:
    """Yield image name and caption from lines of the form ``name#0<TAB>caption``.

    Raises:
        UserError: a line is malformed; the message names it.
    """
    for number, line in enumerate(files.lines(path), start=1):
        token, tab, caption = line.partition("\t")
        name, hash_sign, _ = token.rpartition("#")
        if not tab or not hash_sign:
            raise UserError(f'{path}, line {number} is not "name#0<TAB>caption": {line[:60]!r}')
        yield name, caption


def karpathy(path: Path, split: str) -> list[tuple[str, list[str]]]:
    """Read file name and captions of the images in a split of a Karpathy JSON file, in file order.

    Raises:
        UserError: the file cannot be read, has another format, or has no image in the split.
    """
    parts = KARPATHY_PARTS[split]
    content = files.read_json(path)
    with files.expecting(path, "images[].{filename, split, sentences[].raw}"):
        found = [
            (files.string(image["filename"]), [files.string(sentence["raw"]) for sentence in image["sentences"]])
            for image in content["images"]
            if image["split"] in parts
        ]
    if not found:
        raise UserError(f"{path} has no images with split {' or '.join(parts)}")
    return found


def join_words(caption: str) -> str:
    """Remove word-segmentation spaces from a Chinese, Japanese or Thai caption."""
    return _SEGMENTATION.sub("", caption)


@dataclass(frozen=True)
class FloresFiles:
    """A benchmark machine-translated into 200 languages: one file per FLORES-200 code, one line per image.

    ``names`` is the file of image names, ``english`` the file of human captions that were translated.
    """

    benchmark: str
    names: str
    english: str

    def load(self, config: Benchmark, lang: Lang, split: str) -> PairTable:
        """Load the captions of a language, see ``Benchmark``."""
        check(self.benchmark, lang, split, splits=("test",), languages=(lang.code,))
        root = files.folder(config.root, f"source.root, the folder with {self.names}")
        if lang.flores is None:
            raise UserError(
                f'{self.benchmark} names languages by FLORES-200 codes, and langs/{lang.code}.toml has no "flores"'
            )
        captions = root / self._file(lang)
        if not captions.is_file():
            known = did_you_mean(lang.flores, (path.stem for path in root.glob("*_*.txt") if path.name != self.names))
            raise UserError(f"{self.benchmark} has no captions in {lang.code} ({captions}): {known}")
        pairs = aligned(files.existing(root / self.names, what="list of image names"), captions)
        return table(f"{self.benchmark}-{split}", lang, "human" if lang.code == "en" else "machine", pairs, config)

    def languages(self, config: Benchmark) -> list[str]:
        """Return the known languages that have a caption file."""
        known = (load_language(code) for code in language_codes())
        return [lang.code for lang in known if lang.flores and (config.root / self._file(lang)).is_file()]

    def _file(self, lang: Lang) -> str:
        return self.english if lang.code == "en" else f"{lang.flores}.txt"


class _Absent(EncodedImage):
    """An image whose folder is not configured."""

    def __init__(self, image_id: str, benchmark: str) -> None:
        self.image_id, self.benchmark = image_id, benchmark

    def open(self) -> NoReturn:
        raise UserError(f"{self.benchmark}: set the image folder (source.images, or --images FOLDER)")

    def source(self) -> NoReturn:
        raise FileNotFoundError(f"{self.image_id}: no image folder is set (source.images)")

    def key(self) -> NoReturn:
        self.source()


def _find_images(name: str, ids: Sequence[str], file_of: str, config: Benchmark) -> dict[str, ImageRef]:
    """Find images by file name, or by the photo that the name identifies (see ``image_ids.photo``)."""
    if config.images is None:
        return {image_id: _Absent(image_id, name) for image_id in ids}
    known = _index(files.folder(config.images, "source.images"))
    names = {image_id: file_of.format(image_id) for image_id in ids}
    paths = {image_id: known.get(file) or known.get(_key(file)) for image_id, file in names.items()}
    missing = [names[image_id] for image_id, path in paths.items() if path is None]
    if missing and len(missing) == len(ids):
        raise AbsentError(
            f"none of the {len(ids):,} images of {name} is in {config.images}: is this the right folder? "
            f"(looked for {missing[0]}, ...)"
        )
    if missing and not config.allow_missing:
        first = ", ".join(missing[:_NAMED]) + ", ..." * (len(missing) > _NAMED)
        raise UserError(
            f"{len(missing):,} of the {len(ids):,} images of {name} are not in {config.images} "
            f"({first}): add them, or leave them out with --allow-missing (allow_missing=true)"
        )
    return {image_id: FileImage(Path(path)) for image_id, path in paths.items() if path is not None}


def _index(folder: Path) -> dict[str, str]:
    """Index all images below a folder by file name and by photo or stem; the first of duplicates is kept."""
    found: dict[str, str] = {}
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for file in sorted(names):
            if file.lower().endswith(IMAGE_SUFFIXES):
                for name in (file, _key(file)):
                    found.setdefault(name, f"{parent}/{file}")
    return found


def _key(file: str) -> str:
    return image_ids.photo(file) or image_ids.stem(file)
