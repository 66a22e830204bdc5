"""From pairs as a dataset lists them to a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np

from polyalign.config.language import Lang
from polyalign.data.pairs import ImageRef, Origin, PairTable

Where = TypeVar("Where")


def gather(
    name: str,
    lang: Lang,
    origin: Origin,
    pairs: Iterable[tuple[str, str, Where]],
    image_at: Callable[[Where], ImageRef],
) -> PairTable:
    """Make a table of ``(image id, caption, where the image is)``, images in the order in which they first come.

    ``image_at`` is asked once an image, for the first pair that has its id.
    """
    index: dict[str, int] = {}
    places: list[Where] = []
    captions: list[str] = []
    image_of: list[int] = []
    for image_id, caption, where in pairs:
        if image_id not in index:
            index[image_id] = len(index)
            places.append(where)
        captions.append(caption)
        image_of.append(index[image_id])
    return PairTable(
        name=name,
        lang=lang.code,
        origin=origin,
        image_ids=tuple(index),
        images=tuple(image_at(where) for where in places),
        captions=tuple(captions),
        image_of=np.array(image_of, dtype=np.int64),
    )
