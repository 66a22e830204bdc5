"""Image search: the photos of a folder that best fit a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from polyalign.data import image_check
from polyalign.data.pairs import IMAGE_SUFFIXES, FileImage, PairTable
from polyalign.models import checkpoint
from polyalign.models.embed import embed
from polyalign.utils.errors import UserError


@dataclass(frozen=True)
class Found:
    """A photo and its cosine similarity to the query."""

    path: str
    score: float


def search(run: Path, folder: Path, query: str, top: int) -> list[Found]:
    """Give the ``top`` photos under ``folder`` for a query, best first; unreadable files are left out.

    What the frozen layers give for the photos is cached, so the next query is answered at once.

    Raises:
        UserError: no finished run, no photos, or nothing to search for.
    """
    if not query.strip():
        raise UserError("the query is empty: say what the photo should show")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise UserError(f"there are no images under {folder}" if folder.is_dir() else f"no such folder: {folder}")
    aligner, recipe = checkpoint.load(run)
    photos = PairTable(
        name=str(folder),
        lang=recipe.lang,
        origin="human",
        image_ids=tuple(str(path.relative_to(folder)) for path in paths),
        images=tuple(map(FileImage, paths)),
        captions=(query,) * len(paths),
        image_of=np.arange(len(paths), dtype=np.int64),
    )
    photos, _ = image_check.check_images(photos, max_corrupt=1.0)
    if not len(photos):
        raise UserError(f"none of the {len(paths)} images under {folder} can be read")
    embedded = embed(aligner, photos, config=recipe.cache)
    scores = embedded.images @ embedded.captions[0]
    best = np.argsort(-scores, kind="stable")[:top]
    return [Found(str(folder / photos.image_ids[index]), float(scores[index])) for index in best]
