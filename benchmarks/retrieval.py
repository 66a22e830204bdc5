"""Time and memory of ranking a gallery in blocks, beside the whole matrix of scores at once.

    python benchmarks/retrieval.py --captions 100000 --images 20000

Each is measured in a process of its own; memory is the highest the process held, less what it held with the embeddings
alone. The whole matrix is left out where it would not fit into half of what is free, and its size told.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from polyalign import metrics

Ranks = tuple[metrics.Ints, metrics.Ints]
Gallery = tuple[metrics.Floats, metrics.Floats, metrics.Ints]


def gallery(images: int, captions: int, dim: int) -> Gallery:
    """Make unit vectors: captions are noisy copies of their images."""
    rng = np.random.default_rng(0)
    seen = rng.standard_normal((images, dim), dtype=np.float32)
    image_of = np.arange(captions) % images
    said = seen[image_of]
    said += 2 * rng.standard_normal(said.shape, dtype=np.float32)
    said /= np.linalg.norm(said, axis=1, keepdims=True)
    seen /= np.linalg.norm(seen, axis=1, keepdims=True)
    return seen, said, image_of


def in_blocks(images: metrics.Floats, captions: metrics.Floats, image_of: metrics.Ints) -> Ranks:
    """Rank as polyalign does."""
    text, image = metrics.both_directions(images, captions, image_of)
    return text.rank, image.rank


def at_once(images: metrics.Floats, captions: metrics.Floats, image_of: metrics.Ints) -> Ranks:
    """Rank from the whole matrix of scores (C, I)."""
    scores = captions @ images.T
    own = scores[np.arange(len(captions)), image_of]
    text = (scores >= own[:, None]).sum(axis=1)
    best = np.full(len(images), -np.inf, np.float32)
    np.maximum.at(best, image_of, own)
    right = np.bincount(image_of[own == best[image_of]], minlength=len(images))
    return text, 1 + (scores >= best).sum(axis=0) - right


WAYS: dict[str, Callable[[metrics.Floats, metrics.Floats, metrics.Ints], Ranks]] = {
    "in blocks": in_blocks,
    "at once": at_once,
}


def measure(way: str, sizes: tuple[int, int, int], answer: multiprocessing.SimpleQueue) -> None:
    """Rank once, and give seconds, MiB beyond the embeddings, and both R@1."""
    embedded = gallery(*sizes)
    before = _peak_mib()
    began = time.perf_counter()
    text, image = WAYS[way](*embedded)
    seconds = time.perf_counter() - began
    answer.put((seconds, _peak_mib() - before, float((text <= 1).mean()), float((image <= 1).mean())))


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _free_mib() -> float:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) / 1024
    return float("inf")


def main() -> None:
    """Measure both ways and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--captions", type=int, default=100_000)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=256)
    asked = parser.parse_args()
    whole = asked.captions * asked.images * 5 / 2**20  # float32 scores and a mask of them
    print(f"{asked.captions:,} captions by {asked.images:,} images of {asked.dim} dimensions")
    for way in WAYS:
        if way == "at once" and whole > _free_mib() / 2:
            print(f"{way:>10}: left out, it needs {whole:,.0f} MiB")
            continue
        context = multiprocessing.get_context("spawn")
        answer = context.SimpleQueue()
        process = context.Process(target=measure, args=(way, (asked.images, asked.captions, asked.dim), answer))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(f"{way}: the process ended with {process.exitcode}")
        seconds, memory, text, image = answer.get()
        print(f"{way:>10}: {seconds:8.1f} s  {memory:8,.0f} MiB  R@1 {100 * text:.2f} and {100 * image:.2f}")


if __name__ == "__main__":
    main()
