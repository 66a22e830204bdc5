"""An index of a few drawn photos in memory, for tests of the search page."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import uvicorn
from PIL import Image, ImageDraw

from polyalign.serving import page_server
from polyalign.serving.index import Hit, Index, Photo, Vector
from polyalign.serving.page import Page, page_language
from polyalign.serving.page_limits import LOOPBACK

DIM = 8


class Shelf(Index):
    """Photos with random vectors."""

    def __init__(self, folder: Path, captions: Mapping[str, str]) -> None:
        self.folder, self.root, self.model, self.dim, self.columns = (
            folder / "index",
            folder,
            "a run",
            DIM,
            ("caption",),
        )
        self.photos = [
            Photo(i, path, {"caption": text} if text else {}) for i, (path, text) in enumerate(captions.items())
        ]
        vectors = np.random.default_rng(0).standard_normal((len(captions), DIM)).astype(np.float32)
        self.vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def __len__(self) -> int:
        return len(self.photos)

    def search(
        self,
        vector: Vector,
        top: int = 10,
        skip: int = 0,
        where: Mapping[str, str] | None = None,
        without: int | None = None,
    ) -> list[Hit]:
        scores = self.vectors @ vector
        best = [i for i in np.argsort(-scores, kind="stable") if i != without]
        return [Hit(self.photos[i], float(scores[i])) for i in best[skip : skip + top]]

    def photo(self, photo_id: int) -> Photo | None:
        return self.photos[photo_id] if photo_id < len(self.photos) else None

    def file(self, photo: Photo) -> Path:
        return self.root / photo.path

    def vector(self, photo_id: int) -> Vector:
        return self.vectors[photo_id]


def encode(query: str) -> Vector:
    """Stand for a text tower."""
    seed = np.frombuffer(query.encode(), np.uint8).sum()
    return np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)


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


def shelf(folder: Path, captions: list[str]) -> Shelf:
    """Draw a photo for each caption, of several shapes."""
    shapes = [(640, 480), (480, 640), (800, 300), (500, 500)]
    names = {f"p/photo-{i}.jpg": text for i, text in enumerate(captions)}
    for i, name in enumerate(names):
        draw(folder / name, i, shapes[i % 4])
    return Shelf(folder, names)


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
