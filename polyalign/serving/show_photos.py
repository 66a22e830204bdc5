"""What a run finds on its test set, as photos: examples, the worst failures, and misses that are no errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from polyalign.data.leakage import near_duplicates
from polyalign.data.pairs import EncodedImage, ImageRef, PairTable
from polyalign.evaluation import html
from polyalign.evaluation.encoders import Vectors
from polyalign.serving.thumbnails import as_jpeg

SHOWN = 5
"""Photos of each search."""

_SAMPLES, _FAILURES, _LOOKALIKES = 6, 5, 3
_ABOVE = 3  # photos shown above the right one in a failure
_PX = 176


@dataclass(frozen=True)
class Photo:
    """A photo as it is shown; ``caption`` is one of its captions, or None."""

    uri: str
    label: str
    alt: str
    is_right: bool
    caption: str | None
    lang: str


@dataclass(frozen=True)
class Query:
    """A caption, and photos that the model ranks for it."""

    caption: str
    lang: str
    note: str
    photos: tuple[Photo, ...]


@dataclass(frozen=True)
class Examples:
    """Searches as they come, the worst failures, and misses after a photo that looks or reads the same."""

    samples: tuple[Query, ...]
    failures: tuple[Query, ...]
    lookalikes: tuple[Query, ...]
    missed: int
    excused: int


class Finder:
    """The photos of a gallery, ranked for each of its captions; those of other folds are not searched."""

    def __init__(self, gallery: PairTable, images: Vectors, captions: Vectors) -> None:
        self.gallery = gallery
        self._images, self._captions = images, captions
        self._fold_of = np.zeros(len(images), np.int64) if gallery.fold_of is None else gallery.fold_of
        self._look_of = near_duplicates(gallery.images).tolist()
        self._captions_of: dict[int, list[int]] = {}
        self._photos_with: dict[str | int, set[int]] = {}  # by caption and by look
        for caption, photo in enumerate(gallery.image_of.tolist()):
            self._captions_of.setdefault(photo, []).append(caption)
            for key in (_plain(gallery.captions[caption]), self._look_of[photo]):
                self._photos_with.setdefault(key, set()).add(photo)

    def ranked(self, caption: int) -> npt.NDArray[np.int64]:
        """Return the photos, best first; of equal ones the right one is last, as in the recalls."""
        right = self.gallery.image_of[caption]
        searched = np.flatnonzero(self._fold_of == self._fold_of[right])
        scores = self._images[searched] @ self._captions[caption]
        order: npt.NDArray[np.int64] = searched[np.lexsort((searched == right, -scores))]
        return order

    def why_no_error(self, caption: int, rank: int) -> str | None:
        """Say why the photos above the right one are not wrong, None if one of them is."""
        right = int(self.gallery.image_of[caption])
        alike = self._photos_with[self._look_of[right]]
        same = self._photos_with[_plain(self.gallery.captions[caption])]
        if len(alike | same) < rank:  # together with the right one
            return None
        above = set(self.ranked(caption)[: rank - 1].tolist())
        if not above <= alike | same:
            return None
        return "looks the same" if above <= alike else "has the very same caption"

    def query(self, caption: int, photos: Sequence[int], places: dict[int, int], note: str, *, said: bool) -> Query:
        """Return a caption with photos; ``said`` shows what a caption of each of the others says."""
        gallery = self.gallery
        right = int(gallery.image_of[caption])
        shown = tuple(
            Photo(
                uri=html.data_uri(thumbnail(gallery.images[photo]), "image/jpeg"),
                label=f"{places[photo]:,}{', the right photo' if photo == right else ''}",
                alt=f"{'the right photo, ' if photo == right else 'photo '}in place {places[photo]:,}",
                is_right=photo == right,
                caption=gallery.captions[self._captions_of[photo][0]] if said and photo != right else None,
                lang=gallery.lang,
            )
            for photo in photos
        )
        return Query(gallery.captions[caption], gallery.lang, note, shown)


def examples(gallery: PairTable, images: Vectors, captions: Vectors, ranks: Sequence[int]) -> Examples:
    """Choose what to show; ``ranks`` are those of each caption's photo."""
    finder = Finder(gallery, images, captions)
    even = np.unique(np.linspace(0, len(gallery) - 1, _SAMPLES).round().astype(int)).tolist()
    missed = [caption for caption, rank in enumerate(ranks) if rank > 1]
    found = {caption: finder.why_no_error(caption, ranks[caption]) for caption in missed}
    reasons = {caption: reason for caption, reason in found.items() if reason is not None}
    worst = sorted((caption for caption in missed if caption not in reasons), key=lambda caption: -ranks[caption])
    one_each = list({int(gallery.image_of[caption]): caption for caption in reversed(worst)}.values())[::-1]
    return Examples(
        samples=tuple(_sample(finder, caption) for caption in even),
        failures=tuple(_failure(finder, caption) for caption in one_each[:_FAILURES]),
        lookalikes=tuple(_lookalike(finder, caption, reasons[caption]) for caption in [*reasons][:_LOOKALIKES]),
        missed=len(missed),
        excused=len(reasons),
    )


def _places(ranked: npt.NDArray[np.int64]) -> dict[int, int]:
    return {photo: place for place, photo in enumerate(ranked.tolist(), start=1)}


def _sample(finder: Finder, caption: int) -> Query:
    ranked, right = finder.ranked(caption), int(finder.gallery.image_of[caption])
    places, first = _places(ranked), ranked[:SHOWN].tolist()
    where = "first" if places[right] == 1 else f"in place {places[right]:,}"
    photos = first if right in first else [*first, right]
    return finder.query(caption, photos, places, f"The right photo came {where} of {len(ranked):,}.", said=False)


def _failure(finder: Finder, caption: int) -> Query:
    ranked, right = finder.ranked(caption), int(finder.gallery.image_of[caption])
    places = _places(ranked)
    photos = [*ranked[: min(_ABOVE, places[right] - 1)].tolist(), right]
    note = f"The right photo came in place {places[right]:,} of {len(ranked):,}."
    return finder.query(caption, photos, places, note, said=True)


def _lookalike(finder: Finder, caption: int, reason: str) -> Query:
    ranked, right = finder.ranked(caption), int(finder.gallery.image_of[caption])
    return finder.query(caption, [int(ranked[0]), right], _places(ranked), f"What came first {reason}.", said=True)


def _plain(caption: str) -> str:
    return " ".join(caption.casefold().split())


def thumbnail(image: ImageRef) -> bytes:
    """Return a JPEG of at most 176 pixels a side."""
    return as_jpeg(image.open_small(_PX) if isinstance(image, EncodedImage) else image.open(), _PX)
