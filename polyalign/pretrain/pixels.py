"""Images made ready once: decoded or drawn to a file of uint8 pixels that training reads at random, and the batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib.format import open_memmap
from PIL import Image
from torch import Tensor

from polyalign.utils.progress import Progress

Pixels = npt.NDArray[np.uint8]


def stored(path: Path, count: int, image: Callable[[int], Image.Image], progress: Progress | None = None) -> Pixels:
    """Give ``count`` RGB images of one size as ``(N, H, W, 3)``, mapped from ``path``, made now if it is not there.

    The name must tell what is in it: an interrupted run that is resumed takes the file as it finds it.
    """
    if not path.exists():
        partial = path.with_name(path.name + ".partial")
        width, height = image(0).size
        pixels = open_memmap(partial, mode="w+", dtype=np.uint8, shape=(count, height, width, 3))
        for index in range(count):
            pixels[index] = np.asarray(image(index))
            if progress:
                progress(f"preparing {path.stem.partition('-')[0]}", index + 1, count)
        pixels.flush()
        partial.replace(path)
    return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]


def shifted(pixels: Pixels, most: int, rng: np.random.Generator) -> Pixels:
    """Move each image of ``(B, H, W, 3)`` by up to ``most`` pixels either way, its border drawn out."""
    height, width = pixels.shape[1:3]
    padded = np.pad(pixels, ((0, 0), (most, most), (most, most), (0, 0)), mode="edge")
    corners = rng.integers(0, 2 * most + 1, (len(pixels), 2))
    return np.stack([one[y : y + height, x : x + width] for one, (y, x) in zip(padded, corners, strict=True)])


def normalised(pixels: Pixels, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Turn ``(B, H, W, 3)`` uint8 into ``(B, 3, H, W)`` float32 of about zero mean and unit variance."""
    x = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).float().div_(255)
    return x.sub_(torch.tensor(mean).view(3, 1, 1)).div_(torch.tensor(std).view(3, 1, 1))
