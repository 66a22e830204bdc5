"""Scoring a large gallery: polyalign's ranks, counted block by block, beside one matrix of all scores."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import machine

SIZES = ((20_000, 4_000), (100_000, 20_000))
"""Captions and images."""
DIM = 256

Array = npt.NDArray[Any]


def run(sizes: tuple[tuple[int, int], ...] = SIZES) -> dict[str, Any]:
    """Score each size each way; a way that this machine has no memory for is left out, and said to be."""
    facts, rows = machine.facts(), []
    for captions, images in sizes:
        for name in METHODS:
            row: dict[str, Any] = {"method": name, "captions": captions, "images": images}
            needed = captions * images * _BYTES_A_SCORE[name]
            print(f"{name}: {captions:,} captions by {images:,} images", flush=True)
            if needed * 1.2 > machine.available_memory():
                rows.append({**row, "needed": needed})
            else:
                rows.append({**row, **machine.measure("benchmarks.evaluation", row)})
    return {"dim": DIM, "machine": facts, "rows": rows}


def embeddings(captions: int, images: int) -> tuple[Array, Array, Array]:
    """Make unit vectors of images, and of captions near theirs, and say whose each caption is."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((images, DIM), np.float32)
    image_of = np.arange(captions) % images
    caption = image[image_of] + 2 * rng.standard_normal((captions, DIM), np.float32)
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    caption /= np.linalg.norm(caption, axis=1, keepdims=True)
    return image, caption, image_of


def blocks(image: Array, caption: Array, image_of: Array) -> tuple[Array, Array]:
    """Rank both directions as polyalign does."""
    from polyalign.evaluation.ranking import both_directions

    text_to_image, image_to_text = both_directions(image, caption, image_of)
    return text_to_image.rank, image_to_text.rank


def matrix(image: Array, caption: Array, image_of: Array) -> tuple[Array, Array]:
    """Rank both directions by counting in the whole matrix, in float32."""
    scores = caption @ image.T
    own = scores[np.arange(len(caption)), image_of]
    best = np.full(len(image), -np.inf, np.float32)
    np.maximum.at(best, image_of, own)
    return (scores > own[:, None]).sum(1) + 1, (scores > best).sum(0) + 1


def argsort(image: Array, caption: Array, image_of: Array) -> tuple[Array, Array]:
    """Rank both directions by sorting each row of the whole matrix, as open_clip's ``get_clip_metrics`` does."""
    scores = caption @ image.T
    text_to_image = np.argmax(np.argsort(-scores, axis=1) == image_of[:, None], axis=1) + 1
    image_to_text = np.argmax(image_of[np.argsort(-scores.T, axis=1)] == np.arange(len(image))[:, None], axis=1) + 1
    return text_to_image, image_to_text


METHODS = {"polyalign, in blocks": blocks, "matrix, counted": matrix, "matrix, sorted": argsort}
# The matrix is float32; counting adds a byte a score, sorting an int64 and what it is compared with.
_BYTES_A_SCORE = {"polyalign, in blocks": 0, "matrix, counted": 5, "matrix, sorted": 4 + 4 + 8 + 8}


def _measure(method: str, captions: int, images: int) -> dict[str, Any]:
    import polyalign.evaluation.ranking  # noqa: F401  (no part of what is measured)

    made = embeddings(captions, images)
    machine.peak_memory()  # imports torch
    machine.forget_peak()
    held, began = machine.held_memory(), time.perf_counter()
    ranks = METHODS[method](*made)
    seconds = time.perf_counter() - began
    recall = [float((rank <= 1).mean()) for rank in ranks]
    return {"seconds": seconds, "memory": machine.peak_memory() - held, "recall_at_1": recall}


if __name__ == "__main__":
    print(json.dumps(_measure(**json.loads(sys.argv[1]))))
