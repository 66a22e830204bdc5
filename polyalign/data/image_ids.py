"""Identification of a photo from its file name, which differs between datasets."""

from __future__ import annotations

import re

_COCO = re.compile(r"COCO_(?:train|val|test)\d{4}_(\d{12})")
_COCO_2017 = re.compile(r"0{6}\d{6}")
_FLICKR = re.compile(r"(\d{5,12})_[0-9a-f]{10}(?:_[a-z])?")
_BARE_FLICKR = re.compile(r"[1-9]\d{6,11}")


def stem(image_id: str) -> str:
    """Remove folders, the file extension and a caption number (``#3``)."""
    name = image_id.partition("#")[0].replace("\\", "/").rpartition("/")[2]
    return name.rpartition(".")[0] or name


def photo(image_id: str) -> str | None:
    """Return the photo, such as ``coco:391895`` or ``flickr:1007129816``, or None if the id is ambiguous.

    COCO uses ``COCO_val2014_000000391895.jpg`` and, since 2017, ``000000391895.jpg``; Flickr8k and Multi30k use
    Flickr's ``1007129816_e794419615.jpg``, Flickr30k only the number. Numbers of fewer than seven digits are ambiguous.
    """
    name = stem(image_id)
    if match := _COCO.fullmatch(name):
        return f"coco:{int(match[1])}"
    if _COCO_2017.fullmatch(name):
        return f"coco:{int(name)}"
    if match := _FLICKR.fullmatch(name):
        return f"flickr:{match[1]}"
    return f"flickr:{name}" if _BARE_FLICKR.fullmatch(name) else None


def plain(image_id: str) -> str:
    """Reduce an id to its number or stem; equal results may be the same photo or a coincidence."""
    known = photo(image_id)
    return known.partition(":")[2] if known else stem(image_id)
