"""Perceptual fingerprints of encoded images, computed once and cached on disk.

Every run opens all of its images before training to detect corrupt images and leakage, and a comparison has many runs
on the same images.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import imagehash
import numpy as np
import numpy.typing as npt
from PIL import Image

from polyalign.data.pairs import CorruptImageError, EncodedImage, ImageRef
from polyalign.utils import storage
from polyalign.utils.progress import progress
from polyalign.utils.text import clean

_THUMB_PX = 16
_HASH_FROM_PX = 64
_VERSION = 1
_ROW = np.dtype([("bits", np.bool_, 64), ("thumb", np.uint8, 3 * _THUMB_PX**2)])
# Fewer images are not worth caching on disk.
_WORTH_KEEPING = 100


class Print(NamedTuple):
    """Difference hash ``bits (64,)`` and thumbnail ``thumb (768,)`` of an image, or the ``problem`` with it."""

    bits: npt.NDArray[np.bool_] = np.zeros(64, np.bool_)
    thumb: npt.NDArray[np.uint8] = np.zeros(3 * _THUMB_PX**2, np.uint8)
    problem: str | None = None
    is_missing: bool = False


logger = logging.getLogger(__name__)

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


def prints(images: Sequence[ImageRef]) -> dict[int, Print]:
    """Return the fingerprint of each encoded image by its index; other images have none.

    Fingerprints come from the cache or are computed on all cores; those of missing files are not cached.
    """
    encoded = {i: image for i, image in enumerate(images) if isinstance(image, EncodedImage)}
    keys = {i: key(image) for i, image in encoded.items()}
    new = [i for i, name in keys.items() if name is None or name not in _KNOWN]
    kept = _path([keys[i] for i in new]) if len(new) >= _WORTH_KEEPING else None
    found = _load(kept, len(new)) if kept is not None and kept.with_suffix(".json").is_file() else None
    if found is None:
        began = time.monotonic()
        found = _open_all([encoded[i] for i in new])
        if kept is not None and not any(one.is_missing for one in found):
            _save(kept, found, time.monotonic() - began)
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


def _path(keys: Sequence[str | None]) -> Path:
    digest = hashlib.sha256("\0".join([str(_VERSION), *map(str, keys)]).encode())
    return storage.cache_folder() / f"prints-{digest.hexdigest()[:24]}.npy"


def _save(path: Path, prints: Sequence[Print], seconds: float) -> None:
    rows = np.zeros(len(prints), _ROW)
    for row, one in zip(rows, prints, strict=True):
        row["bits"], row["thumb"] = one.bits, one.thumb

    def fill(partial: Path) -> None:
        with partial.open("wb") as file:
            np.save(file, rows, allow_pickle=False)

    storage.write(path, fill)
    problems = {i: one.problem for i, one in enumerate(prints) if one.problem is not None}
    card = {"what": "checks", "rows": len(prints), "seconds": round(seconds, 3), "problems": problems}
    storage.write_text(path.with_suffix(".json"), json.dumps(card))


def _load(path: Path, count: int) -> list[Print] | None:
    """Return the cached fingerprints of ``count`` images, or None if their files are damaged, with a message."""
    try:
        problems = dict(json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["problems"])
        rows = np.load(path, allow_pickle=False)
        if rows.dtype != _ROW or rows.shape != (count,):
            raise ValueError(f"{rows.shape} rows")
    except (OSError, EOFError, ValueError, LookupError, TypeError) as error:
        logger.warning(f"{path} is damaged ({clean(error, 80)}): the images are checked again")
        return None
    return [Print(row["bits"], row["thumb"], problems.get(str(i))) for i, row in enumerate(rows)]
