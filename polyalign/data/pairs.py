"""Tables of image-caption pairs, the common format of all sources."""

from __future__ import annotations

import hashlib
import struct
import warnings
import zlib
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

Origin = Literal["human", "machine", "generated", "unknown"]
Split = Literal["train", "dev", "test"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""File name endings of images, in lower case."""

# Pillow has no common error for corrupt images: a broken PNG raises SyntaxError, a broken AVIF RuntimeError, and other
# formats fail while parsing their headers.
_DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, RuntimeError, TypeError, LookupError, ArithmeticError, struct.error, zlib.error,
    Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip
# Not EPS and the like, which Pillow gives to other programs.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO")
_LARGEST_RATIO = 100  # of the sides: an image is resized by its shorter one, so that a thin one would fill the memory
# Pillow only warns of images of 90 to 180 million pixels.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


class CorruptImageError(ValueError):
    """Bytes that cannot be decoded as an image, with Pillow's message."""


class ImageRef(Protocol):
    """Reference to an image; opening it repeatedly gives the same result."""

    def open(self) -> Image.Image:
        """Decode the image to RGB."""
        ...

    def key(self) -> str:
        """Return a cache key of the content: equal keys imply equal pixels."""
        ...


class EncodedImage(ImageRef):
    """An image decoded from bytes: it can be missing or corrupt, and is cheaper to decode at a reduced scale."""

    @abstractmethod
    def source(self) -> Path | BinaryIO:
        """Return the file, or its content."""

    def open(self) -> Image.Image:
        """Decode to RGB, rotated by the EXIF orientation."""
        return decode(self.source())

    def open_small(self, px: int) -> Image.Image:
        """Decode to RGB at the smallest scale of the format with sides of at least ``px``."""
        return decode(self.source(), px)


def decode(source: Path | BinaryIO, px: int | None = None) -> Image.Image:
    """Decode to RGB, rotated by the EXIF orientation; for ``px`` see ``EncodedImage.open_small``.

    Only JPEG supports reduced scales. The whole file is always read, so that truncated files are detected.

    Raises:
        FileNotFoundError: the file does not exist.
        CorruptImageError: the image cannot be decoded, or one side is over 100 times as long as the other.
    """
    try:
        if isinstance(source, Path) and source.exists() and not source.is_file():
            raise ValueError("not a file but a folder, pipe or device")
        with Image.open(source, formats=_readable()) as image:
            if max(image.size) > _LARGEST_RATIO * min(image.size):
                width, height = image.size
                raise ValueError(f"{width:,} x {height:,} pixels: one side is over {_LARGEST_RATIO} times the other")
            if px is not None:
                image.draft(None, (px, px))
            return _eight_bit(ImageOps.exif_transpose(image)).convert("RGB")
    except FileNotFoundError:
        raise
    except _DECODE_ERRORS as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CorruptImageError(reason) from error


@cache
def _readable() -> list[str]:
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _eight_bit(image: Image.Image) -> Image.Image:
    """Scale grey images of more than 8 bits, which Pillow would clip, to 8; other images stay as they are.

    The full range is 65,535 for 16-bit modes. Modes ``I`` and ``F`` do not state theirs: it is the first of 1 (``F``
    only), 255 and 65,535 that holds the largest value, or else that value.
    """
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    full = [65_535] if image.mode.startswith("I;16") else [*([1] if image.mode == "F" else []), 255, 65_535]
    largest = next((limit for limit in full if values.max() <= limit), values.max())
    return Image.fromarray((values.clip(0) * (255 / largest)).round().astype(np.uint8))


@dataclass(frozen=True)
class FileImage(EncodedImage):
    """An image file."""

    path: Path

    def source(self) -> Path:
        """Return the path."""
        return self.path

    def key(self) -> str:
        """Return path, size and modification time."""
        stat = self.path.stat()
        return f"{self.path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"


@dataclass(frozen=True)
class PairTable:
    """Images and their captions in one language, for training or as a retrieval gallery.

    ``image_of[c]`` is the index of caption ``c``'s image, so ``(images[image_of[c]], captions[c])`` is pair ``c``.
    An image may have several captions; in a gallery every image has at least one. ``image_ids`` are the ids of the
    dataset: tables that share an id share the image. ``fold_of`` ``(I,)`` is the fold of each image of a gallery whose
    folds are searched separately. In a table of several languages (see ``merge``) ``caption_langs`` has that of each
    caption, and ``lang`` is the first.
    """

    name: str
    lang: str
    origin: Origin
    image_ids: tuple[str, ...]
    images: tuple[ImageRef, ...]
    captions: tuple[str, ...]
    image_of: npt.NDArray[np.int64]
    fold_of: npt.NDArray[np.int64] | None = None
    caption_langs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that the columns are consistent; a mismatch is a bug in the source."""
        if len(self.image_ids) != len(self.images):
            raise ValueError(f"{len(self.image_ids)} ids for {len(self.images)} images")
        if len(set(self.image_ids)) != len(self.image_ids):
            raise ValueError("image ids repeat")
        if len(self.captions) != len(self.image_of):
            raise ValueError(f"{len(self.captions)} captions for {len(self.image_of)} image indices")
        if len(self.image_of) and not (0 <= self.image_of.min() and self.image_of.max() < len(self.images)):
            raise ValueError("image_of points outside the images")
        if self.caption_langs and len(self.caption_langs) != len(self.captions):
            raise ValueError(f"{len(self.caption_langs)} languages for {len(self.captions)} captions")
        if self.fold_of is not None and len(self.fold_of) != len(self.images):
            raise ValueError(f"{len(self.fold_of)} folds for {len(self.images)} images")

    @classmethod
    def from_pairs(cls, name: str, lang: str, origin: Origin, pairs: Iterable[tuple[str, str, ImageRef]]) -> PairTable:
        """Build a table from ``(image id, caption, image)`` rows in their order; the first image of an id is used."""
        rows = list(pairs)
        images: dict[str, ImageRef] = {}
        for image_id, _, image in rows:
            images.setdefault(image_id, image)
        index = {image_id: place for place, image_id in enumerate(images)}
        return cls(
            name=name,
            lang=lang,
            origin=origin,
            image_ids=tuple(images),
            images=tuple(images.values()),
            captions=tuple(caption for _, caption, _ in rows),
            image_of=np.array([index[image_id] for image_id, _, _ in rows], dtype=np.int64),
        )

    def __len__(self) -> int:
        """Return the number of pairs, that is, of captions."""
        return len(self.captions)

    def take_pairs(self, pairs: Sequence[int] | npt.NDArray[np.int64]) -> PairTable:
        """Return the table with these captions, in this order, and their images, in the original order."""
        index = np.asarray(pairs, dtype=np.int64)
        kept = np.unique(self.image_of[index])
        return replace(
            self,
            image_ids=tuple(self.image_ids[i] for i in kept),
            images=tuple(self.images[i] for i in kept),
            captions=tuple(self.captions[c] for c in index),
            caption_langs=tuple(self.caption_langs[c] for c in index) if self.caption_langs else (),
            image_of=np.searchsorted(kept, self.image_of[index]),
            fold_of=None if self.fold_of is None else self.fold_of[kept],
        )

    def take_images(self, images: Sequence[int] | npt.NDArray[np.int64]) -> PairTable:
        """Return the table with these images and all their captions."""
        return self.take_pairs(np.flatnonzero(np.isin(self.image_of, np.asarray(images, dtype=np.int64))))

    def without_images(self, ids: Iterable[str]) -> PairTable:
        """Return the table without these images and their captions; unknown ids are ignored."""
        out = set(ids)
        return self.take_images([i for i, image_id in enumerate(self.image_ids) if image_id not in out])

    def without_empty_captions(self) -> PairTable:
        """Return the table without blank captions, and without images that have no other caption."""
        return self.take_pairs([c for c, caption in enumerate(self.captions) if caption.strip()])

    def caption_ranks(self) -> npt.NDArray[np.int64]:
        """Return each caption's position among the captions of its image, from 0: shape ``(C,)``."""
        order = np.argsort(self.image_of, kind="stable")
        grouped = self.image_of[order]
        ranks = np.empty(len(order), dtype=np.int64)
        ranks[order] = np.arange(len(order)) - np.searchsorted(grouped, grouped)
        return ranks


def captions_by(origin: Origin) -> str:
    """Return ``human captions`` and the like."""
    return "captions of unknown origin" if origin == "unknown" else f"{origin} captions"


def _common_origin(origins: set[Origin]) -> Origin:
    if len(origins) == 1:
        return next(iter(origins))
    return "unknown" if "unknown" in origins else "machine"


def merge(tables: Sequence[PairTable]) -> PairTable:
    """Return the pairs of tables of one source in several languages; images with the same id are one image.

    The captions keep the order of the tables, without their folds. Captions of several origins count as ``machine``, or
    ``unknown`` if some are.
    """
    first = tables[0]
    if len(tables) == 1:
        return first
    images = {i: image for table in reversed(tables) for i, image in zip(table.image_ids, table.images, strict=True)}
    index = {image_id: place for place, image_id in enumerate(images)}
    return PairTable(
        name=first.name,
        lang=first.lang,
        origin=_common_origin({table.origin for table in tables}),
        image_ids=tuple(images),
        images=tuple(images.values()),
        captions=tuple(caption for table in tables for caption in table.captions),
        image_of=np.array([index[table.image_ids[i]] for table in tables for i in table.image_of], dtype=np.int64),
        caption_langs=tuple(table.lang for table in tables for _ in table.captions),
    )


def count_images(count: int) -> str:
    """Return "1 image", "2 images" and so on, for messages."""
    return f"{count:,} image{'' if count == 1 else 's'}"


def stable_hash(text: str) -> int:
    """Return a 64-bit hash of a text that is the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
