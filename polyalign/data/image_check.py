"""Detection of missing and corrupt images, which are left out with their captions before training."""

from __future__ import annotations

from pydantic import BaseModel

from polyalign.data import image_prints
from polyalign.data.pairs import PairTable, count_images
from polyalign.utils.errors import UserError

_NAMED = 5


class BadImage(BaseModel, frozen=True):
    """An image that cannot be opened, and the reason."""

    image_id: str
    reason: str


class ImageReport(BaseModel, frozen=True):
    """Result of opening every image of a table."""

    images: int
    missing: tuple[BadImage, ...]
    corrupt: tuple[BadImage, ...]

    @property
    def bad(self) -> tuple[BadImage, ...]:
        """Missing images followed by corrupt images."""
        return self.missing + self.corrupt

    def describe(self) -> str:
        """Return a one-line summary with the first few images of each kind."""
        missing = [one.image_id for one in self.missing]
        corrupt = [f"{one.image_id}: {one.reason}" for one in self.corrupt]
        parts = [
            f"{len(bad):,} {kind} ({', '.join(bad[:_NAMED])}{', ...' if len(bad) > _NAMED else ''})"
            for kind, bad in (("missing", missing), ("corrupt", corrupt))
            if bad
        ]
        return f"of {count_images(self.images)} {' and '.join(parts) or 'none is missing or corrupt'}"


def inspect_images(table: PairTable) -> ImageReport:
    """Open every encoded image and report missing and corrupt ones."""
    missing: list[BadImage] = []
    corrupt: list[BadImage] = []
    for i, one in image_prints.prints(table.images).items():
        if one.problem is not None:
            (missing if one.is_missing else corrupt).append(BadImage(image_id=table.image_ids[i], reason=one.problem))
    return ImageReport(images=len(table.images), missing=tuple(missing), corrupt=tuple(corrupt))


def check_images(table: PairTable, *, max_corrupt: float = 0.01) -> tuple[PairTable, ImageReport]:
    """Return the table without images that cannot be opened and their captions, and a report.

    Raises:
        UserError: the share of missing or corrupt images exceeds ``max_corrupt``.
    """
    report = inspect_images(table)
    refuse_corrupt(table.name, report, max_corrupt)
    return (table.without_images(bad.image_id for bad in report.bad) if report.bad else table), report


def refuse_corrupt(name: str, report: ImageReport, max_corrupt: float) -> None:
    """Check the share of missing and corrupt images.

    Raises:
        UserError: the share exceeds ``max_corrupt``.
    """
    if len(report.bad) > max_corrupt * report.images:
        none_found = len(report.missing) == report.images
        remedy = "no image was found, check the image folder" if none_found else "repair them"
        raise UserError(
            f"{name}: {report.describe()}; that is {len(report.bad) / report.images:.1%}, more than "
            f"data.max_corrupt = {max_corrupt:g} allows: {remedy}, or increase data.max_corrupt"
        )
