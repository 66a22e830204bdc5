"""Perceptual fingerprints of encoded images, computed once and cached on disk.

Every run opens all of its images before training to detect corrupt images and leakage, and a comparison has many runs
on the same images.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, NamedTuple

import imagehash
import numpy as np
import numpy.typing as npt
from PIL import Image

from polyalign.data.pairs import CorruptImageError, EncodedImage, ImageRef
from polyalign.utils import array_cache
from polyalign.utils.process import Spent
from polyalign.utils.progress import progress

_THUMB_PX = 16
_BITS = 64
_HASH_FROM_PX = 64
_VERSION = 2
# Fewer images are not worth caching on disk.
_WORTH_KEEPING = 100


class Print(NamedTuple):
    """Difference hash ``bits (64,)`` and thumbnail ``thumb (768,)`` of an image, or the ``problem`` with it."""

    bits: npt.NDArray[np.bool_] = np.zeros(64, np.bool_)
    thumb: npt.NDArray[np.uint8] = np.zeros(3 * _THUMB_PX**2, np.uint8)
    problem: str | None = None
    is_missing: bool = False


# Fingerprints by image key, shared by the tables of a run.
_KNOWN: dict[str, Print] = {}


def key(image: ImageRef) -> str | None:
    """Return the key of the image, or None if its file is missing, has an impossible name or is not in its row."""
    try:
        return image.key()
    except (OSError, ValueError):
        return None


def remember(name: str, one: Print) -> None:
    """Register a known fingerprint under an image key, so that the image is not opened."""
    _KNOWN[name] = one


def check_prints(bits: npt.NDArray[np.bool_], thumbs: npt.NDArray[np.uint8]) -> None:
    """Check the shapes and the type of stored fingerprints.

    Raises:
        ValueError: they are not fingerprints.
    """
    if bits.shape != (len(thumbs), _BITS) or thumbs.shape[1:] != (3 * _THUMB_PX**2,) or thumbs.dtype != np.uint8:
        raise ValueError(f"fingerprints of shape {bits.shape} and {thumbs.shape}")


def prints(images: Sequence[ImageRef]) -> dict[int, Print]:
    """Return the fingerprint of each encoded image by its index; other images have none.

    Fingerprints come from the cache or are computed on all cores; those of missing files are not cached.
    """
    encoded = {i: image for i, image in enumerate(images) if isinstance(image, EncodedImage)}
    keys = {i: key(image) for i, image in encoded.items()}
    new = [i for i, name in keys.items() if name is None or name not in _KNOWN]
    kept = _name([keys[i] for i in new]) if len(new) >= _WORTH_KEEPING else None
    found = None if kept is None else _load(kept, len(new))
    if found is None:
        began = Spent.until_now()
        found = _open_all([encoded[i] for i in new])
        if kept is not None and not any(one.is_missing for one in found):
            _save(kept, found, Spent.until_now() - began)
    fresh = dict(zip(new, found, strict=True))
    _KNOWN.update((name, one) for i, one in fresh.items() if (name := keys[i]) is not None and not one.is_missing)
    return {i: fresh[i] if i in fresh else _KNOWN[str(name)] for i, name in keys.items()}


def _open_all(images: Sequence[EncodedImage]) -> list[Print]:
    found = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for one in pool.map(_open, images):
            found.append(one)
            progress("checking images", len(found), len(images))
    return found


def _open(image: EncodedImage) -> Print:
    try:
        small = image.open_small(_HASH_FROM_PX)
    except FileNotFoundError as error:
        return Print(problem=str(error), is_missing=True)
    except CorruptImageError as error:
        return Print(problem=str(error))
    thumb = np.asarray(small.resize((_THUMB_PX, _THUMB_PX), Image.Resampling.BOX))
    return Print(imagehash.dhash(small).hash.ravel(), thumb.ravel())


def _name(keys: Sequence[str | None]) -> str:
    digest = hashlib.sha256("\0".join([str(_VERSION), *map(str, keys)]).encode())
    return f"prints-{digest.hexdigest()[:24]}"


def _save(name: str, prints: Sequence[Print], spent: Spent) -> None:
    problems = {i: one.problem for i, one in enumerate(prints) if one.problem is not None}

    def fill(rows: npt.NDArray[np.uint8]) -> dict[str, Any]:
        for row, one in zip(rows, prints, strict=True):
            row[:_BITS], row[_BITS:] = one.bits, one.thumb
        return {"what": "checks", "rows": len(prints), "notes": problems, **asdict(spent)}

    array_cache.write(name, (len(prints), _BITS + 3 * _THUMB_PX**2), np.uint8, fill)


def _load(name: str, count: int) -> list[Print] | None:
    found = array_cache.find(name)
    if found is None or found[0].shape != (count, _BITS + 3 * _THUMB_PX**2):
        return None
    rows, card = found
    return [Print(row[:_BITS] != 0, row[_BITS:], card.notes.get(i)) for i, row in enumerate(np.array(rows))]
