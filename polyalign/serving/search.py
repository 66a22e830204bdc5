"""Image search: the photos of a folder that best match a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from polyalign.data.image_check import check_images
from polyalign.data.pairs import IMAGE_SUFFIXES, FileImage, PairTable
from polyalign.evaluation.evaluate import open_model
from polyalign.evaluation.model import Model
from polyalign.utils.errors import UserError


@dataclass(frozen=True)
class Found:
    """A photo and its cosine similarity to the query."""

    path: str
    score: float


def search(model: str | Path, folder: Path, query: str, top: int = 10) -> list[Found]:
    """Return the ``top`` photos under ``folder`` for a query, best first; unreadable files are skipped.

    The outputs of the frozen layers are cached, so that later queries are fast.

    Raises:
        UserError: the model does not exist, there are no photos, or the query is empty.
    """
    if not query.strip():
        raise UserError("the query is empty: describe what the photo should show")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise UserError(f"there are no images under {folder}" if folder.is_dir() else f"no such folder: {folder}")
    encoder = open_model(model)
    photos = PairTable(
        name=str(folder),
        lang="",
        origin="human",
        image_ids=tuple(str(path.relative_to(folder)) for path in paths),
        images=tuple(map(FileImage, paths)),
        captions=("",) * len(paths),
        image_of=np.arange(len(paths), dtype=np.int64),
    )
    photos, _ = check_images(photos, max_corrupt=1.0)
    if not len(photos):
        raise UserError(f"none of the {len(paths)} images under {folder} can be read")
    scores = encoder.encode_image(photos.images) @ Model(encoder).encode_text([query])[0]
    best = np.argsort(-scores, kind="stable")[:top]
    return [Found(str(folder / photos.image_ids[index]), float(scores[index])) for index in best]
