"""Train/test leakage detection: photos in both tables, found by id and by perceptual hash."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from polyalign.data import image_ids, image_prints
from polyalign.data.image_prints import Print
from polyalign.data.pairs import EncodedImage, ImageRef, PairTable, count_images
from polyalign.utils.errors import UserError

# Measured on Flickr8k: copies re-encoded as JPEG of quality 10 to 30 or resized differ in at most 10 bits (of 64), 7
# gray levels of RMS and 40 of maximum difference; distinct photos within 12 bits differ by an RMS of at least 34, and
# distinct scenes of the starter world by at least 13.
_MAX_BITS = 10
_MAX_RMS = 10.0
_MAX_LEVELS = 60
# Images with equal names and a larger RMS are distinct; copies cropped by 5 % are within.
_NAMESAKE_RMS = 40.0
_BLOCK = 1 << 17

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class Leak(BaseModel, frozen=True):
    """An image of the training table that is also in the other table."""

    train_id: str
    test_id: str
    by: Literal["id", "pixels"]


class LeakageReport(BaseModel, frozen=True):
    """Images shared by two tables, ``train`` and ``test``. Every shared image of either table is in at least one leak.

    ``test`` may be any table whose images must not be trained on, such as a dev split. ``unopened`` counts the images
    of each table that could not be opened and were not compared by pixels.
    """

    train: str
    test: str
    train_images: int
    test_images: int
    compared_by_pixels: bool
    unopened: tuple[int, int] = (0, 0)
    leaks: tuple[Leak, ...]

    @property
    def train_ids(self) -> tuple[str, ...]:
        """Sorted ids of the shared images in ``train``."""
        return tuple(sorted({leak.train_id for leak in self.leaks}))

    @property
    def test_ids(self) -> tuple[str, ...]:
        """Sorted ids of the shared images in ``test``."""
        return tuple(sorted({leak.test_id for leak in self.leaks}))

    def describe(self) -> str:
        """Return a one-line summary: number of shared images, how they were found, and the first few."""
        unopened = zip(self.unopened, (self.train, self.test), strict=True)
        blind = " and ".join(f"{count_images(count)} of {name}" for count, name in unopened if count)
        note = f"; {blind} could not be opened and were compared by id only" if blind else ""
        test = f"the {count_images(self.test_images)} of {self.test}"
        train = f"the {count_images(self.train_images)} of {self.train}"
        if not self.leaks:
            how = "ids and pixels" if self.compared_by_pixels else "ids only"
            return f"none of {test} is among {train} (by {how}{note})"
        by_id = sum(leak.by == "id" for leak in self.leaks)
        first = ", ".join(f"{leak.train_id} = {leak.test_id}" for leak in self.leaks[:3])
        first += ", ..." if len(self.leaks) > 3 else ""
        shared = len(self.test_ids)
        return (
            f"{shared:,} of {test} {'is' if shared == 1 else 'are'} among {train} "
            f"({by_id:,} by id, {len(self.leaks) - by_id:,} by pixels: {first}{note})"
        )


def find_leaks(train: PairTable, test: PairTable, *, pixels: bool = True) -> LeakageReport:
    """Find the images that are in both ``train`` and ``test``.

    Images match if their ``key`` is equal or their ids identify the same photo (``image_ids.photo``). Other equal ids
    match unless both images can be opened and look clearly different. Images decoded from bytes
    (``pairs.EncodedImage``) are also compared by difference hash and then by thumbnail, so that uniform or small
    images do not collide. Rendered images are compared by key only.

    With ``pixels=False`` no image is opened. Images that cannot be opened are compared by id only.
    """
    matches: Iterator[tuple[int, int, Literal["id", "pixels"]]] = ((i, j, "id") for i, j in _by_id(train, test, pixels))
    unopened = (0, 0)
    if pixels:
        prints = image_prints.prints(train.images), image_prints.prints(test.images)
        ours, theirs = ({i: one for i, one in found.items() if one.problem is None} for found in prints)
        unopened = len(prints[0]) - len(ours), len(prints[1]) - len(theirs)
        matches = chain(matches, ((i, j, "pixels") for i, j in _by_pixels(ours, theirs)))
    leaks: list[Leak] = []
    seen: tuple[set[int], set[int]] = set(), set()
    for i, j, by in matches:
        if i not in seen[0] or j not in seen[1]:  # enough to contain every shared image
            seen[0].add(i)
            seen[1].add(j)
            leaks.append(Leak(train_id=train.image_ids[i], test_id=test.image_ids[j], by=by))
    return LeakageReport(
        train=train.name,
        test=test.name,
        train_images=len(train.images),
        test_images=len(test.images),
        compared_by_pixels=pixels,
        unopened=unopened,
        leaks=tuple(leaks),
    )


def near_duplicates(images: Sequence[ImageRef]) -> Ints:
    """Return a number for each image (N,), the same for images that look the same, directly or through others."""
    keys = [image_prints.key(image) for image in images]
    first_of = {key: i for i, key in reversed([*enumerate(keys)]) if key is not None}
    group_of = [i if key is None else first_of[key] for i, key in enumerate(keys)]
    distinct = sorted(set(group_of))
    prints = image_prints.prints([images[i] for i in distinct])
    seen = {distinct[i]: one for i, one in prints.items() if one.problem is None}

    def top(i: int) -> int:
        while group_of[i] != i:
            i = group_of[i]
        return i

    for i, j in _by_pixels(seen, seen):
        low, high = sorted((top(i), top(j)))
        group_of[high] = low
    return np.array([top(i) for i in range(len(images))], dtype=np.int64)


def refuse(report: LeakageReport) -> None:
    """Check that the tables share no images.

    Raises:
        UserError: images are shared; the message says how many and how to exclude them.
    """
    if report.leaks:
        raise UserError(
            f"leakage: {report.describe()}; leave them out of {report.train} with --set data.leakage=exclude, "
            "or keep them with --set data.leakage=allow"
        )


def _by_id(train: PairTable, test: PairTable, pixels: bool) -> Iterator[tuple[int, int]]:
    """Yield index pairs with equal key or photo, or with equal plain ids unless they look clearly different."""
    keys = {image_prints.key(image): i for i, image in enumerate(train.images)}
    named: dict[str, list[int]] = {}
    photos = [image_ids.photo(image_id) for image_id in train.image_ids]
    for i, image_id in enumerate(train.image_ids):
        named.setdefault(image_ids.plain(image_id), []).append(i)
    for j, (image_id, image) in enumerate(zip(test.image_ids, test.images, strict=True)):
        key = image_prints.key(image)
        if key is not None and key in keys:
            yield keys[key], j
        photo = image_ids.photo(image_id)
        for i in named.get(image_ids.plain(image_id), ()):
            both_known = photo is not None and photos[i] is not None
            if photo == photos[i] if both_known else not pixels or _may_be_one(train.images[i], test.images[j]):
                yield i, j


def _by_pixels(train: dict[int, Print], test: dict[int, Print]) -> Iterator[tuple[int, int]]:
    """Yield index pairs with similar hashes and thumbnails."""
    if not train or not test:
        return
    ours, theirs = _Side(train), _Side(test)
    step = max(1, _BLOCK // len(theirs.signs))
    for start in range(0, len(ours.signs), step):
        agreement = ours.signs[start : start + step] @ theirs.signs.T
        near_i, near_j = np.nonzero(agreement >= ours.signs.shape[1] - 2 * _MAX_BITS)
        near_i += start
        # Similar thumbnails have similar means, which are far cheaper to compare.
        likely = np.abs(ours.means[near_i] - theirs.means[near_j]) <= _MAX_RMS
        i, j = near_i[likely], near_j[likely]
        difference = ours.thumbs[i] - theirs.thumbs[j]
        alike = (_rms(difference) <= _MAX_RMS) & (np.abs(difference).max(axis=1) <= _MAX_LEVELS)
        for a, b in zip(i[alike], j[alike], strict=True):
            yield ours.index[a], theirs.index[b]


class _Side:
    """Fingerprints as arrays: hash bits as ±1 ``(N, 64)``, thumbnails ``(N, 768)`` and their means ``(N,)``."""

    def __init__(self, prints: dict[int, Print]) -> None:
        self.index = list(prints)
        self.signs: Floats = np.stack([one.bits for one in prints.values()]).astype(np.float32) * 2 - 1
        self.thumbs: Floats = np.stack([one.thumb for one in prints.values()]).astype(np.float32)
        self.means: Floats = self.thumbs.mean(axis=1)


def _rms(difference: Floats) -> Floats:
    """Return the root mean square of each row."""
    squares: Floats = (difference**2).mean(axis=-1)
    return np.sqrt(squares)


def _may_be_one(a: ImageRef, b: ImageRef) -> bool:
    """Return whether two images with equal names and different keys may be the same image.

    Rendered images are not; others are unless both can be opened and look clearly different.
    """
    if not isinstance(a, EncodedImage) and not isinstance(b, EncodedImage):
        return False
    prints = [one for one in image_prints.prints((a, b)).values() if one.problem is None]
    if len(prints) < 2:
        return True
    return bool(_rms(prints[0].thumb.astype(np.float32) - prints[1].thumb) <= _NAMESAKE_RMS)
