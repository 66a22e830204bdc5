"""Perceptual fingerprints of encoded images, computed once and cached on disk.

Every run opens all of its images before training to detect corrupt images and leakage, and a comparison has many runs
on the same images.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import imagehash
import numpy as np
import numpy.typing as npt
from PIL import Image

from polyalign.data.pairs import CorruptImageError, EncodedImage, ImageRef
from polyalign.utils import row_store
from polyalign.utils.gathered import Ints
from polyalign.utils.progress import progress
from polyalign.utils.row_blocks import Space
from polyalign.utils.row_store import Batch

_THUMB_PX = 16
_BITS = 64
_HASH_FROM_PX = 64
_BATCH = 256
_SPACE = Space(name=f"prints-{'2':0>24}", what="checks")  # the digits are a version
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
    open_all = _stored if len(new) >= _WORTH_KEEPING else _open_all
    fresh = dict(zip(new, open_all([encoded[i] for i in new]), strict=True))
    _KNOWN.update((name, one) for i, one in fresh.items() if (name := keys[i]) is not None and not one.is_missing)
    return {i: fresh[i] if i in fresh else _KNOWN[str(name)] for i, name in keys.items()}


def _open_all(images: Sequence[EncodedImage]) -> Iterator[Print]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, one in enumerate(pool.map(_open, images), start=1):
            progress("checking images", done, len(images))
            yield one


def _open(image: EncodedImage) -> Print:
    try:
        small = image.open_small(_HASH_FROM_PX)
    except FileNotFoundError as error:
        return Print(problem=str(error), is_missing=True)
    except CorruptImageError as error:
        return Print(problem=str(error))
    thumb = np.asarray(small.resize((_THUMB_PX, _THUMB_PX), Image.Resampling.BOX))
    return Print(imagehash.dhash(small).hash.ravel(), thumb.ravel())


def _stored(images: Sequence[EncodedImage]) -> list[Print]:
    """Return fingerprints from disk, or computed and stored; those of missing files are not stored."""
    names = [key(image) for image in images]
    found: dict[int, Print] = {}
    here = [i for i, name in enumerate(names) if name is not None]

    def compute(rows: Ints) -> Iterator[Batch]:
        opened = zip(rows.tolist(), _open_all([images[here[row]] for row in rows]), strict=True)
        while some := list(islice(opened, _BATCH)):
            kept = [(row, one) for row, one in some if not one.is_missing]
            if kept:
                values = np.stack([np.concatenate([one.bits.astype(np.uint8), one.thumb]) for _, one in kept])
                notes = {row: one.problem for row, one in kept if one.problem is not None}
                yield Batch(np.array([row for row, _ in kept]), values, notes)

    table = row_store.fetch(_SPACE, [str(names[i]) for i in here], compute)
    there = np.flatnonzero(table.present).tolist()
    for row, values in zip(there, np.array(table.values), strict=True):
        found[here[row]] = Print(values[:_BITS] != 0, values[_BITS:], table.notes.get(row))
    lost = [i for i in range(len(images)) if i not in found]
    found.update(zip(lost, _open_all([images[i] for i in lost]), strict=True))
    return [found[i] for i in range(len(images))]
