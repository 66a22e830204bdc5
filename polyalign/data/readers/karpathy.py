"""Karpathy's JSON files: the splits of COCO and Flickr30k that retrieval is measured on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyalign.data.readers import files as _files
from polyalign.utils.errors import UserError

COCO_PARTS = {"train": ("train", "restval"), "dev": ("val",), "test": ("test",)}
"""Splits of COCO; the training split takes in the rest of val2014, 113,287 images in all, as is usual."""


def read(path: Path, parts: tuple[str, ...]) -> list[tuple[str, list[str]]]:
    """Read file name and captions of the images that are in one of these parts, in the file's order.

    Raises:
        UserError: the file cannot be read, is of another form, or has no such image.
    """
    try:
        images = _files.read_json(path)["images"]
        found = [_image(image) for image in images if image["split"] in parts]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is not of Karpathy's form, images[].{{filename, split, sentences[].raw}}") from error
    if not found:
        raise UserError(f"{path} has no image with split {' or '.join(parts)}")
    return found


def _image(image: Mapping[str, Any]) -> tuple[str, list[str]]:
    return str(image["filename"]), [str(sentence["raw"]) for sentence in image["sentences"]]
