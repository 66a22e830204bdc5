"""Thumbnails of photos."""

from __future__ import annotations

import io
import logging
import os
from contextlib import suppress
from pathlib import Path

import xxhash
from PIL import Image

from polyalign.data.pairs import FileImage, decode
from polyalign.utils.errors import UserError
from polyalign.utils.storage import write

logger = logging.getLogger(__name__)

_PER_FOLDER = 100  # thumbnails in each of 256 folders


def thumbnail(path: Path, px: int) -> bytes:
    """Return a photo as a JPEG file whose longer side has at most ``px`` pixels, rotated by the EXIF orientation.

    Raises:
        FileNotFoundError: the file does not exist.
        CorruptImageError: it cannot be decoded, or has more than 90 million pixels.
    """
    return as_jpeg(decode(path, px), px)


def as_jpeg(image: Image.Image, px: int) -> bytes:
    """Return an image as a JPEG file whose longer side has at most ``px`` pixels; it is made smaller in place."""
    image.thumbnail((px, px), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=75)
    return out.getvalue()


class Thumbnails:
    """Thumbnails that are made once and kept in a folder, at most about 25,000; the oldest are deleted first.

    They are named after path, size and modification time of the photo, so that a changed photo gets a new one.
    """

    def __init__(self, folder: Path, px: int) -> None:
        """Keep thumbnails of ``px`` in a folder, which is created when needed."""
        self._folder, self._px = folder, px
        self._is_kept = True

    def get(self, path: Path) -> bytes:
        """Return the thumbnail of a photo.

        Raises:
            FileNotFoundError: the photo does not exist.
            CorruptImageError: it cannot be decoded.
        """
        name = xxhash.xxh3_128_hexdigest(f"{FileImage(path).key()}:{self._px}".encode("utf-8", "surrogateescape"))
        kept = self._folder / name[:2] / f"{name}.jpg"
        links = list(filter(os.path.islink, (self._folder, kept.parent, kept)))  # an index can come from a stranger
        if not links:
            with suppress(OSError):  # not made yet, or the folder cannot be used, which writing to it tells
                return kept.read_bytes()
        made = thumbnail(path, self._px)
        if self._is_kept:
            try:
                if links:
                    raise UserError(f"{links[0]} is a link: delete it")
                _make_room(kept.parent)
                write(kept, lambda partial: partial.write_bytes(made))
            except (OSError, UserError) as error:
                self._is_kept = False
                logger.warning(f"{error}; until the next start thumbnails are made again for every request")
        return made


def _make_room(folder: Path) -> None:
    """Delete the oldest half of a folder of thumbnails that is full."""
    kept = sorted(folder.glob(f"{'[0-9a-f]' * 32}.jpg"), key=_time)
    for path in kept[: _PER_FOLDER // 2] if len(kept) >= _PER_FOLDER else ():
        path.unlink(missing_ok=True)


def _time(path: Path) -> int:
    """Return the modification time of a file, 0 if another thread has deleted it."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
