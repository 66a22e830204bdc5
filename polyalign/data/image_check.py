"""Detection of missing and corrupt images, which are left out with their captions before training."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import BaseModel, ConfigDict

from polyalign.data import image_prints
from polyalign.data.pairs import EncodedImage, PairTable
from polyalign.utils.errors import UserError

_NAMED = 5


class BadImage(BaseModel):
    """An image that cannot be opened, and the reason."""

    model_config = ConfigDict(frozen=True)

    image_id: str
    reason: str


class ImageReport(BaseModel):
    """Result of opening every image of a table."""

    model_config = ConfigDict(frozen=True)

    images: int
    missing: tuple[BadImage, ...]
    corrupt: tuple[BadImage, ...]

    @property
    def bad(self) -> tuple[BadImage, ...]:
        """Missing images followed by corrupt images."""
        return self.missing + self.corrupt

    def describe(self) -> str:
        """Return a one-line summary with the first few images of each kind."""
        parts = [
            f"{len(bad):,} {kind} ({_name(bad, name)})"
            for kind, bad, name in (
                ("missing", self.missing, lambda one: one.image_id),
                ("corrupt", self.corrupt, lambda one: f"{one.image_id}: {one.reason}"),
            )
            if bad
        ]
        return f"of {self.images:,} images {' and '.join(parts) or 'none is missing or corrupt'}"


def inspect_images(table: PairTable) -> ImageReport:
    """Open every encoded image and report missing and corrupt ones."""
    encoded = {i: image for i, image in enumerate(table.images) if isinstance(image, EncodedImage)}
    missing: list[BadImage] = []
    corrupt: list[BadImage] = []
    for i, one in zip(encoded, image_prints.look(list(encoded.values())), strict=True):
        if one.problem is not None:
            kind = missing if one.is_missing else corrupt
            kind.append(BadImage(image_id=table.image_ids[i], reason=one.problem))
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
        raise UserError(
            f"{name}: {report.describe()}; that is {len(report.bad) / report.images:.1%}, more than "
            f"data.max_corrupt = {max_corrupt:g} allows: {_remedy(report)}, or increase data.max_corrupt"
        )


def _remedy(report: ImageReport) -> str:
    if len(report.missing) == report.images:
        return "no image was found, check the image folder"
    return "repair them"


def _name(bad: tuple[BadImage, ...], describe: Callable[[BadImage], str]) -> str:
    more = ", ..." if len(bad) > _NAMED else ""
    return ", ".join(describe(one) for one in bad[:_NAMED]) + more
