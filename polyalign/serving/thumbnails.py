"""Small pictures of photos."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from polyalign.data.pairs import FileImage


def thumbnail(path: Path, px: int) -> bytes:
    """Return a photo as a JPEG of at most ``px`` on the longer side, rotated by its EXIF orientation.

    Raises:
        FileNotFoundError: the file does not exist.
        CorruptImageError: the image cannot be decoded.
    """
    image = FileImage(path).open_small(px)
    image.thumbnail((px, px), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    image.save(content, "JPEG", quality=80)
    return content.getvalue()
