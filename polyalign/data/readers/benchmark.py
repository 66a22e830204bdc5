"""What the published benchmarks share: images in the user's folder, lines that belong together."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image
from pydantic import BaseModel, ConfigDict

from polyalign.config.language import Lang
from polyalign.data import image_ids
from polyalign.data.pairs import FileImage, ImageRef, Origin, PairTable
from polyalign.data.readers import files as _files
from polyalign.data.readers.gather import gather
from polyalign.utils.errors import AbsentError, UserError, did_you_mean

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
_NAMED = 5


class Benchmark(BaseModel):
    """Where a benchmark's files are.

    ``root`` holds the captions as published, ``images`` the photos under the benchmark's own names, in whatever
    sub-folders. A photo that is not there is an error, or with ``allow_missing`` left out with its captions. Without
    ``images`` the captions can be read, but no image opened.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: Path
    images: Path | None = None
    allow_missing: bool = False


def table(
    name: str, lang: Lang, origin: Origin, pairs: Iterable[tuple[str, str]], config: Benchmark, *, file_of: str = "{}"
) -> PairTable:
    """Make a table of ``(image id, caption)``; a caption loses the white space around it, and nothing else.

    ``file_of`` is the name of an image's file, where ``{}`` stands for its id.

    Raises:
        UserError: images are missing and ``allow_missing`` is false, or all are.
    """
    pairs = list(pairs)
    ids = list(dict.fromkeys(image_id for image_id, _ in pairs))
    found = _find_images(name, ids, file_of, config)
    kept = ((image_id, caption.strip(), image_id) for image_id, caption in pairs if image_id in found)
    # A smaller gallery is an easier one: the name says so wherever a number of it is shown.
    of = f" ({len(found):,} of {len(ids):,} images)" if len(found) < len(ids) else ""
    return gather(f"{name}{of}", lang, origin, kept, found.__getitem__)


def pick(benchmark: str, lang: Lang, codes: Mapping[str, str]) -> str:
    """Give the benchmark's own code of a language.

    Raises:
        UserError: the benchmark does not have it.
    """
    if lang.code not in codes:
        raise UserError(f'{benchmark} has no captions in "{lang.code}": {did_you_mean(lang.code, codes)}')
    return codes[lang.code]


def only_splits(benchmark: str, split: str, known: Iterable[str]) -> None:
    """Do nothing if the benchmark has this split.

    Raises:
        UserError: it does not.
    """
    splits = list(known)
    if split not in splits:
        raise UserError(f'{benchmark} has no "{split}" split: it has {", ".join(splits)}')


def aligned(names: Path, captions: Path) -> list[tuple[str, str]]:
    """Read two files of which line i belongs to line i: image names, less a caption's number (``#3``), and captions.

    Raises:
        UserError: a file cannot be read, or they are of different length.
    """
    ids = [line.strip().partition("#")[0] for line in _files.lines(names)]
    texts = _files.lines(captions)
    while ids and not ids[-1]:
        ids.pop()
    while len(texts) > len(ids) and not texts[-1].strip():
        texts.pop()
    if len(ids) != len(texts):
        raise UserError(
            f"{names} has {len(ids):,} lines and {captions} {len(texts):,}: they must belong together line by line"
        )
    return list(zip(ids, texts, strict=True))


class _Absent:
    """An image of which nobody has said where it is."""

    def __init__(self, image_id: str, benchmark: str) -> None:
        self.image_id, self.benchmark = image_id, benchmark

    def open(self) -> Image.Image:
        raise UserError(f"{self.benchmark}: say which folder the images are in (source.images)")

    def open_small(self, px: int) -> Image.Image:
        raise FileNotFoundError(f"{self.image_id}: no image folder was given (source.images)")

    def key(self) -> str:
        raise FileNotFoundError(f"{self.image_id}: no image folder was given (source.images)")


def _find_images(name: str, ids: Sequence[str], file_of: str, config: Benchmark) -> dict[str, ImageRef]:
    """Find the images by file name, or by the photo that it names (see ``image_ids.photo``)."""
    if config.images is None:
        return {image_id: _Absent(image_id, name) for image_id in ids}
    known = _index(_files.folder(config.images, "source.images"))
    files = {image_id: file_of.format(image_id) for image_id in ids}
    paths = {image_id: known.get(file) or known.get(_key(file)) for image_id, file in files.items()}
    missing = [image_id for image_id, path in paths.items() if path is None]
    if missing and len(missing) == len(ids):
        raise AbsentError(
            f"none of the {len(ids):,} images of {name} is in {config.images}: is it the right one? "
            f"(looked for {files[ids[0]]}, ...)"
        )
    if missing and not config.allow_missing:
        first = ", ".join(files[image_id] for image_id in missing[:_NAMED]) + ", ..." * (len(missing) > _NAMED)
        raise UserError(
            f"{len(missing):,} of the {len(ids):,} images of {name} are not in {config.images} "
            f"({first}): put them there, or leave them out with --allow-missing (allow_missing=true)"
        )
    return {image_id: FileImage(Path(path)) for image_id, path in paths.items() if path is not None}


def _index(folder: Path) -> dict[str, str]:
    """List all images in and below a folder by file name, and by the photo or bare name; the first of each wins."""
    found: dict[str, str] = {}
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for file in sorted(files):
            if file.lower().endswith(_IMAGE_SUFFIXES):
                for name in (file, _key(file)):
                    found.setdefault(name, f"{parent}/{file}")
    return found


def _key(file: str) -> str:
    return image_ids.photo(file) or image_ids.stem(file)
