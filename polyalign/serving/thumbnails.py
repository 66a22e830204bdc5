"""Thumbnails of photos."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from polyalign.data.pairs import decode


def thumbnail(path: Path, px: int) -> bytes:
    """Return a photo as a JPEG file whose longer side has at most ``px`` pixels, rotated by the EXIF orientation.

    Raises:
        FileNotFoundError: the file does not exist.
        CorruptImageError: it cannot be decoded, or has more than 90 million pixels.
    """
    image = decode(path, px)
    image.thumbnail((px, px), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=85)
    return out.getvalue()
