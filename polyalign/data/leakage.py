"""Train/test leakage detection: photos in both tables, found by id and by perceptual hash."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from polyalign.data import image_ids, image_prints
from polyalign.data.image_prints import Print
from polyalign.data.pairs import EncodedImage, ImageRef, PairTable
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


class Leak(BaseModel):
    """A training image that is also a test image."""

    model_config = ConfigDict(frozen=True)

    train_id: str
    test_id: str
    by: Literal["id", "pixels"]


class LeakageReport(BaseModel):
    """Images shared by two tables. Every shared image of either table is in at least one leak.

    ``unopened`` counts the training and test images that could not be opened and were not compared by pixels.
    """

    model_config = ConfigDict(frozen=True)

    train: str
    test: str
    train_images: int
    test_images: int
    compared_by_pixels: bool
    unopened: tuple[int, int] = (0, 0)
    leaks: tuple[Leak, ...]

    @property
    def train_ids(self) -> tuple[str, ...]:
        """Sorted ids of the training images to leave out."""
        return tuple(sorted({leak.train_id for leak in self.leaks}))

    @property
    def test_ids(self) -> tuple[str, ...]:
        """Sorted ids of the test images that are in the training set."""
        return tuple(sorted({leak.test_id for leak in self.leaks}))

    def describe(self) -> str:
        """Return a one-line summary: number of shared images, how they were found, and the first few."""
        how = "ids and pixels" if self.compared_by_pixels else "ids only"
        blind = self._blind()
        sides = f"of the {self.test_images:,} test images of {self.test}"
        if not self.leaks:
            return f"none {sides} is among the {self.train_images:,} training images of {self.train} (by {how}{blind})"
        by_id = sum(leak.by == "id" for leak in self.leaks)
        first = ", ".join(f"{leak.train_id} = {leak.test_id}" for leak in self.leaks[:3])
        first += ", ..." if len(self.leaks) > 3 else ""
        return (
            f"{len(self.test_ids):,} {sides} are among the {self.train_images:,} training images of {self.train} "
            f"({by_id:,} by id, {len(self.leaks) - by_id:,} by pixels: {first}{blind})"
        )

    def _blind(self) -> str:
        """Return a note on images that could not be opened and were compared by id only, or an empty string."""
        sides = zip(self.unopened, ("training", "test"), strict=True)
        told = " and ".join(f"{count:,} {side} images" for count, side in sides if count)
        return f"; {told} could not be opened and were compared by id only" if told else ""


def find_leaks(train: PairTable, test: PairTable, *, pixels: bool = True) -> LeakageReport:
    """Find the images of ``train`` that are in ``test``.

    Images match if their ``key`` is equal or their ids identify the same photo (``image_ids.photo``). Other equal ids
    match unless both images can be opened and look clearly different. Images decoded from bytes
    (``pairs.EncodedImage``) are also compared by difference hash and then by thumbnail, so that uniform or small
    images do not collide. Rendered images are compared by key only.

    With ``pixels=False`` no image is opened. Images that cannot be opened are compared by id only.
    """
    found = _Found(train, test)
    for i, j, certain in _by_id(train, test):
        if certain or not pixels or _may_be_one(train.images[i], test.images[j]):
            found.add(i, j, "id")
    unopened = (0, 0)
    if pixels:
        ours, theirs = (_prints(table.images) for table in (train, test))
        unopened = _encoded(train) - len(ours), _encoded(test) - len(theirs)
        for i, j in _by_pixels(ours, theirs):
            found.add(i, j, "pixels")
    return LeakageReport(
        train=train.name,
        test=test.name,
        train_images=len(train.images),
        test_images=len(test.images),
        compared_by_pixels=pixels,
        unopened=unopened,
        leaks=tuple(found.leaks),
    )


def refuse(report: LeakageReport) -> None:
    """Check that the tables share no images.

    Raises:
        UserError: images are shared; the message says how many and how to exclude them.
    """
    if report.leaks:
        raise UserError(
            f"leakage: {report.describe()}; exclude them from training with --set data.leakage=exclude, "
            "or train on them anyway with --set data.leakage=allow"
        )


def exclude(train: PairTable, report: LeakageReport) -> PairTable:
    """Return ``train`` without the leaked images and their captions."""
    return train.without_images(report.train_ids) if report.leaks else train


class _Found:
    """Collects leaks, only as many as needed to contain every shared image of either table."""

    def __init__(self, train: PairTable, test: PairTable) -> None:
        self.train, self.test = train, test
        self.leaks: list[Leak] = []
        self.seen: tuple[set[int], set[int]] = set(), set()

    def add(self, i: int, j: int, by: Literal["id", "pixels"]) -> None:
        if i in self.seen[0] and j in self.seen[1]:
            return
        self.seen[0].add(i)
        self.seen[1].add(j)
        self.leaks.append(Leak(train_id=self.train.image_ids[i], test_id=self.test.image_ids[j], by=by))


def _by_id(train: PairTable, test: PairTable) -> Iterator[tuple[int, int, bool]]:
    """Yield index pairs with equal key, photo or plain id, and whether the match is certain."""
    keys = {image_prints.key(image): i for i, image in enumerate(train.images)}
    named: dict[str, list[int]] = {}
    photos = [image_ids.photo(image_id) for image_id in train.image_ids]
    for i, image_id in enumerate(train.image_ids):
        named.setdefault(image_ids.plain(image_id), []).append(i)
    for j, (image_id, image) in enumerate(zip(test.image_ids, test.images, strict=True)):
        key = image_prints.key(image)
        if key is not None and key in keys:
            yield keys[key], j, True
        photo = image_ids.photo(image_id)
        for i in named.get(image_ids.plain(image_id), ()):
            both_known = photo is not None and photos[i] is not None
            if not both_known or photo == photos[i]:
                yield i, j, both_known


def _encoded(table: PairTable) -> int:
    return sum(isinstance(image, EncodedImage) for image in table.images)


def _prints(images: Sequence[ImageRef]) -> dict[int, Print]:
    """Return the fingerprints of readable encoded images by index."""
    encoded = {i: image for i, image in enumerate(images) if isinstance(image, EncodedImage)}
    found = image_prints.look(list(encoded.values()))
    return {i: one for i, one in zip(encoded, found, strict=True) if one.problem is None}


def _by_pixels(train: dict[int, Print], test: dict[int, Print]) -> Iterator[tuple[int, int]]:
    """Yield index pairs with similar hashes and thumbnails."""
    if not train or not test:
        return
    sides = _Side.of(train), _Side.of(test)
    for i, j in _near(sides[0].signs, sides[1].signs):
        # Similar thumbnails have similar means, which are far cheaper to compare.
        likely = np.abs(sides[0].means[i] - sides[1].means[j]) <= _MAX_RMS
        pairs = i[likely], j[likely]
        difference = sides[0].thumbs[pairs[0]] - sides[1].thumbs[pairs[1]]
        alike = (_rms(difference) <= _MAX_RMS) & (np.abs(difference).max(axis=1) <= _MAX_LEVELS)
        for a, b in zip(pairs[0][alike], pairs[1][alike], strict=True):
            yield sides[0].index[a], sides[1].index[b]


@dataclass(frozen=True)
class _Side:
    """Fingerprints as arrays: hash bits as ±1 ``(N, 64)``, thumbnails ``(N, 768)`` and their means ``(N,)``."""

    index: list[int]
    signs: Floats
    thumbs: Floats
    means: Floats

    @classmethod
    def of(cls, prints: dict[int, Print]) -> _Side:
        bits = np.stack([one.bits for one in prints.values()])
        thumbs = np.stack([one.thumb for one in prints.values()]).astype(np.float32)
        return cls(list(prints), bits.astype(np.float32) * 2 - 1, thumbs, thumbs.mean(axis=1))


def _near(a: Floats, b: Floats) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Yield the indices of rows of ``a`` and ``b`` that differ in at most ``_MAX_BITS`` bits, block by block."""
    step = max(1, _BLOCK // len(b))
    for start in range(0, len(a), step):
        i, j = np.nonzero(a[start : start + step] @ b.T >= a.shape[1] - 2 * _MAX_BITS)
        yield i + start, j


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
    prints = _prints((a, b))
    if len(prints) < 2:
        return True
    return bool(_rms(prints[0].thumb.astype(np.float32) - prints[1].thumb) <= _NAMESAKE_RMS)
