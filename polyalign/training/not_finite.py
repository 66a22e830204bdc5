"""Why a loss or an embedding is not finite: the learning rate is only one of the causes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from polyalign.config.schema import Recipe
from polyalign.models.aligner import Aligner
from polyalign.models.build import build_aligner
from polyalign.models.embed import PairFeatures

_TOWER = (
    "the {} tower gives values that are not finite for some {}, even before training: use another tower, "
    "--set train.precision=fp32, or correct its preprocessing or weights"
)
REASONS = (
    "lower the learning rate (--set optim.lr=...)",
    _TOWER.format("text", "captions"),
    _TOWER.format("vision", "images"),
    "the cached features are not finite: delete them with `polyalign cache clear`",
)
"""Ordered by certainty: if several processes find different reasons, the last of them holds."""


def reason(recipe: Recipe, features: PairFeatures, encode: Callable[[Aligner], tuple[Any, Any]]) -> int:
    """Return the index of the reason why the embeddings of some data, or their loss, are not finite.

    The untrained aligner is built again and run on the same data. What is not finite then is not due to training.

    Args:
        recipe: the recipe of the run.
        features: the input of the trainable part.
        encode: embeds the data in question with an aligner; returns the image and the caption embeddings.
    """
    for store in (features.images, features.captions):
        if not all(np.isfinite(part).all() for part in store.parts()):
            return 3
    with torch.no_grad():
        image, text = encode(build_aligner(recipe))
    return 2 * (not all_finite(image)) or 1 * (not all_finite(text))


def all_finite(values: Any) -> bool:
    """Return whether an array or a tensor has neither NaN nor infinity."""
    return bool(torch.as_tensor(values).isfinite().all())
