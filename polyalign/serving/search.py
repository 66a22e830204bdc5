"""Image search: the photos of a folder that best match a sentence, or are most similar to a photo."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyalign.data.pairs import CorruptImageError, decode
from polyalign.evaluation import external_models
from polyalign.evaluation.evaluate import open_model
from polyalign.evaluation.model import Model
from polyalign.serving import index_build
from polyalign.serving.cache import indexes_folder
from polyalign.serving.index import Hit, Index, Vector
from polyalign.serving.index_store import StaleIndexError, delete, is_store
from polyalign.utils import storage
from polyalign.utils.errors import UserError
from polyalign.utils.files import check_is_file
from polyalign.utils.lock import InUseError, locked
from polyalign.utils.text import clean

logger = logging.getLogger(__name__)

_WAIT_SECONDS = 1


@dataclass(frozen=True)
class Found:
    """A photo, its cosine similarity to the query, and the columns of a captions table."""

    path: str
    score: float
    metadata: dict[str, str]


@dataclass(frozen=True)
class Answer:
    """The photos found for a query, best first."""

    query: str
    found: list[Found]

    def as_rows(self) -> list[dict[str, Any]]:
        """Return the photos as JSON, with metadata where there is any."""
        return [{key: value for key, value in vars(one).items() if value != {}} for one in self.found]


def search(
    model: str | Path,
    queries: Sequence[str | Path],
    images: Path | None = None,
    *,
    top: int = 10,
    where: Mapping[str, str] | None = None,
) -> list[Answer]:
    """Return the best photos for each query; unreadable files are skipped.

    Args:
        model: an index; or a run or an external model, for which an index of ``images`` is kept in the cache folder
            and brought up to date first.
        queries: sentences; the path of a photo finds similar ones.
        images: the photo folder.
        top: number of photos for each query.
        where: columns and the values that photos must have there.

    Raises:
        UserError: there is no such model, index or photo, there are no photos, or a query is empty.
    """
    if not queries or any(not str(query).strip() for query in queries):
        raise UserError("the query is empty: describe what the photo should show")
    if where and images is not None:
        raise UserError("photos have columns in an index alone: make one with `polyalign index build --captions`")
    for query in queries:
        if isinstance(query, Path):
            _read(query)  # reports mistakes before the photos are embedded
    index, base = _open(model, images)
    sentences = [query for query in queries if isinstance(query, str)]
    vectors = dict(zip(sentences, text_model(index).encode_text(sentences), strict=True)) if sentences else {}
    answers = []
    for query in queries:
        if isinstance(query, Path):
            hits = similar(index, query, top, where)
        else:
            hits = index.search(vectors[query], top, where=where)
        found = [Found(str(base / hit.photo.path), hit.score, hit.photo.metadata) for hit in hits]
        answers.append(Answer(str(query), found))
    return answers


def _open(model: str | Path, images: Path | None) -> tuple[Index, Path]:
    """Return the index to search, and the folder that its paths are shown in."""
    if not external_models.is_external(str(model)) and is_store(Path(model)):
        if images is not None:
            raise UserError(f"{model} is an index, which has its photos: leave out --images")
        index = open_index(Path(model))
        return index, index.root
    if images is None:
        raise UserError(f"name the folder of photos to search with {model}: --images FOLDER")
    return kept_index(str(model), images), images


def open_index(folder: Path) -> Index:
    """Open an index, and say which photos and model it names, since an index can come from a stranger.

    Raises:
        UserError: there is no index in the folder, or it is damaged.
    """
    index = Index.open(folder)
    logger.info(f"{folder}: photos in {clean(index.root)}, vectors of {clean(index.model)}")
    return index


def text_model(index: Index) -> Model:
    """Load what embeds sentences for an index, without the vision tower.

    Raises:
        UserError: the run is not where it was, or was trained again.
    """
    if not external_models.is_external(index.model) and not Path(index.model).is_dir():
        moved = f"say where it is now with `polyalign index update {index.folder} --run RUN`"
        raise UserError(f"there is no run {index.model}, with which {index.folder} was made: {moved}")
    index_build.check_model(index.store, index_build.identity(index.model), index.model)
    return Model(open_model(index.model, text_only=True))


def similar(index: Index, photo: Path, top: int, where: Mapping[str, str] | None = None) -> list[Hit]:
    """Return the photos of an index most similar to a photo, without those of the same content.

    The model is loaded only if the photo is not in the index.

    Raises:
        UserError: the photo cannot be read.
    """
    row = index.store.row_of(index_build.content_hash(_read(photo)))
    same = set(index.ids_of(row)) if row is not None else set()
    vector: Vector
    if same:
        vector = index.vector(next(iter(same)))
    else:
        index_build.check_model(index.store, index_build.identity(index.model), index.model)
        vector = Model(open_model(index.model)).encode_image([photo])[0]
    hits = index.search(vector, top + len(same), where=where)
    return [hit for hit in hits if hit.photo.id not in same][:top]


def _read(photo: Path) -> bytes:
    """Return the content of a photo that can be decoded."""
    check_is_file(photo, "the image ")
    try:
        content = photo.read_bytes()
        decode(io.BytesIO(content))
    except (OSError, CorruptImageError) as error:
        raise UserError(f"cannot read the image {photo}: {getattr(error, 'strerror', error)}") from error
    return content


def kept_index(model: str, images: Path) -> Index:
    """Return the index of a photo folder for a model that is kept in the cache folder, brought up to date.

    One that is damaged, or of an earlier training of the run, is made anew. While another process embeds the photos,
    this one waits.

    Raises:
        UserError: there is no such model or photo folder, or the cache folder cannot be written to.
    """
    place = hashlib.sha256(os.fsencode("\0".join([index_build.place(model), str(images.resolve())])))
    folder = indexes_folder() / place.hexdigest()[:32]
    try:
        storage.check_writable(folder)
    except UserError as error:
        logger.info(f"{error}; this time the photos are embedded for this search alone")
        with tempfile.TemporaryDirectory() as made:
            index_build.build(model, images, Path(made) / folder.name)
            return Index.open(Path(made) / folder.name)  # stays readable when the files are deleted
    is_told = False
    while True:
        try:
            index = _up_to_date(folder, model, images)
            os.utime(folder)  # the last use, for `cache prune`
            return index
        except InUseError:
            if not is_told:
                logger.info(f"another process computes the vectors of {images}: waiting until it ends")
            is_told = True
            time.sleep(_WAIT_SECONDS)


def _up_to_date(folder: Path, model: str, images: Path) -> Index:
    if is_store(folder):
        try:
            index_build.update(folder)
            return Index.open(folder)
        except StaleIndexError:
            logger.info(
                f"the vectors kept for {images} are damaged, or of an earlier training: they are computed again"
            )
            with locked(folder):
                delete(folder)
    index_build.build(model, images, folder)
    return Index.open(folder)
