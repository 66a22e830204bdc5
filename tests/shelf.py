"""Indexes of a few drawn photos with random vectors, for tests of the search page."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import uvicorn
from PIL import Image, ImageDraw

from polyalign.evaluation.encoders import Vectors
from polyalign.serving import page_server
from polyalign.serving.index import Index
from polyalign.serving.index_store import Entry, Store
from polyalign.serving.page import Page, page_language
from polyalign.serving.page_limits import LOOPBACK

DIM = 8


def indexed(root: Path, photos: Mapping[str, str | dict[str, str]]) -> Index:
    """Index photos by their paths, which may be of no files; each has a caption or several columns."""
    facts = {"model": "a run", "identity": "ab", "root": str(root), "dim": str(DIM), "columns": "[]", "captions": ""}
    store = Store.create(root / "index", facts)
    entries = []
    for number, (path, said) in enumerate(photos.items()):
        found = (root / path if (root / path).exists() else root).stat()
        metadata = json.dumps(said if isinstance(said, dict) else {"caption": said} if said else {})
        entries.append(Entry(0, os.fsencode(path), found.st_size, found.st_mtime_ns, -1 - number, None, metadata))
    vectors = np.random.default_rng(0).standard_normal((len(photos), DIM))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    store.append(vectors, [b"%d" % number for number in range(len(photos))], entries)
    return Index.open(root / "index")


def encode(queries: Sequence[str]) -> Vectors:
    """Stand for a text tower."""
    seeds = [sum(query.encode()) for query in queries]
    return np.stack([np.random.default_rng(seed).standard_normal(DIM) for seed in seeds]).astype(np.float32)


def draw(path: Path, number: int = 0, size: tuple[int, int] = (640, 480)) -> None:
    """Draw a photo of a hill under a sun."""
    rng = np.random.default_rng(number)
    sky, sun, hill = (tuple(int(x) for x in rng.integers(60, 240, 3)) for _ in range(3))
    image = Image.new("RGB", size, sky)
    pen, (width, height) = ImageDraw.Draw(image), size
    pen.ellipse((width * 0.6, height * 0.15, width * 0.6 + height * 0.3, height * 0.45), fill=sun)
    pen.ellipse((-width * 0.2, height * 0.55, width * 1.1, height * 1.8), fill=hill)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def shelf(root: Path, captions: Sequence[str]) -> Index:
    """Draw a photo for each caption, of several shapes, and index them."""
    shapes = [(640, 480), (480, 640), (800, 300), (500, 500)]
    names = {f"p/photo-{number}.jpg": text for number, text in enumerate(captions)}
    for number, name in enumerate(names):
        draw(root / name, number, shapes[number % 4])
    return indexed(root, names)


@contextmanager
def served(index: Index, lang: str, spoken: str | None = None) -> Iterator[str]:
    """Serve the page of an index on a free port, and give its address."""
    page = Page(index, encode, spoken or lang, page_language(lang))
    with page_server.bind("127.0.0.1", 0) as opened:
        config = page_server.configure(page.application(LOOPBACK))
        server = uvicorn.Server(config)
        opened.listen()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
        thread.start()
        try:
            yield page_server.address_of(opened)
        finally:
            server.should_exit = True
            thread.join()
