"""Build an index of a folder of photos, and keep it up to date: only new contents are embedded."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from polyalign.data.pairs import CorruptImageError, decode
from polyalign.evaluation import external_models
from polyalign.evaluation.encoders import Aligned, Encoder, Vectors
from polyalign.evaluation.evaluate import open_model
from polyalign.evaluation.model import MemoryImage
from polyalign.models import checkpoint
from polyalign.serving.index_store import Entry, StaleIndexError, Store, is_store
from polyalign.serving.photo_folder import Captions, File, read_captions, scan
from polyalign.utils import storage
from polyalign.utils.errors import UserError
from polyalign.utils.lock import locked
from polyalign.utils.progress import progress

logger = logging.getLogger(__name__)

_BATCH = 64


@dataclass
class Changes:
    """What an update changed: numbers of photos, of new vectors, and names in the captions table without a photo."""

    added: int = 0
    changed: int = 0
    renamed: int = 0
    deleted: int = 0
    embedded: int = 0
    absent: list[str] = field(default_factory=list)


def build(model: str, images: Path, folder: Path, captions: Path | None = None) -> Changes:
    """Make an index of all photos below a folder, or continue one that was interrupted.

    Args:
        model: folder of a run, or the name of an external model.
        images: the photo folder.
        folder: the folder of the index.
        captions: a table with a column of image names; its other columns are kept.

    Raises:
        UserError: there is an index of another model or other photos, or a folder or file cannot be used.
    """
    facts = {"model": place(model), "identity": identity(model), "root": str(images.absolute())}
    found = scan(images)
    if captions is not None:
        read_captions(captions, images, found)  # reports mistakes before a model is loaded
    with locked(folder):
        if is_store(folder):
            store = Store(folder)
            check_model(store, facts["identity"], model)
            if store.facts["root"] != facts["root"]:
                raise UserError(f"{folder} is an index of {store.facts['root']}: name another folder for {images}")
            if store.facts["model"] != facts["model"]:
                store.change({"model": facts["model"]})
            return _Update(store, found, captions).run()
        encoder = open_model(model)
        dim = str(_Embedder(encoder).dim)
        store = Store.create(folder, {**facts, "dim": dim, "columns": "[]", "captions": ""})
        return _Update(store, found, captions, encoder).run()


def update(folder: Path, images: Path | None = None, model: str | None = None, captions: Path | None = None) -> Changes:
    """Bring an index up to date with its photo folder.

    Args:
        folder: the folder of the index.
        images: where the photo folder is now, if it was moved.
        model: where the run is now, if it was moved.
        captions: a captions table in place of the one it was built with.

    Raises:
        UserError: there is no index, its run was trained again, or a folder or file cannot be used.
    """
    store = Store(folder)
    facts = {"model": place(model) if model else store.facts["model"]}
    facts["root"] = str(images.absolute()) if images else store.facts["root"]
    check_model(store, identity(facts["model"]), facts["model"])
    found = scan(Path(facts["root"]))
    moved = {name: value for name, value in facts.items() if store.facts[name] != value}
    if not moved and captions is None and not store.facts["captions"] and _Update(store, found).is_done:
        return Changes()
    with locked(folder):
        if moved:
            store.change(moved)
        return _Update(store, found, captions).run()


def identity(model: str) -> str:
    """Return what tells a model from others: the hash of a run's checkpoint, or the name of an external model."""
    return model if external_models.is_external(model) else checkpoint.identity(Path(model))


def place(model: str) -> str:
    """Return the absolute path of a run, or the name of an external model."""
    return model if external_models.is_external(model) else str(Path(model).absolute())


def check_model(store: Store, found: str, name: str) -> None:
    """Check that an index has the vectors of a model.

    Raises:
        StaleIndexError: they are those of another.
    """
    if found != store.facts["identity"]:
        built, now = store.facts["identity"][:12], found[:12]
        what = "was trained again since then" if name == store.facts["model"] else "is another model"
        raise StaleIndexError(
            f"the index {store.folder} has vectors of {store.facts['model']} (weights {built}), and {name} {what} "
            f"(weights {now}): build a new index"
        )


def content_hash(data: bytes) -> bytes:
    """Return the hash by which an index knows the content of a file."""
    return hashlib.blake2b(data, digest_size=16).digest()


class _Known(NamedTuple):
    """A file in the database."""

    id: int
    size: int
    mtime: int
    row: int | None
    metadata: str


class _Read(NamedTuple):
    """A file that was read: the hash of its content, and what to embed if the index does not have this content."""

    content: bytes = b""
    prepared: Any = None
    reason: str | None = None
    is_absent: bool = False


class _Update:
    """One update of a store, which nobody else changes meanwhile."""

    def __init__(
        self, store: Store, found: dict[bytes, File], captions: Path | None = None, encoder: Encoder | None = None
    ) -> None:
        """Compare the files with the database."""
        self.store, self.found, self.encoder = store, found, encoder
        self.root = Path(store.facts["root"])
        self.changes = Changes()
        self._opening = threading.Lock()
        self._captions_path = captions
        listed = store.read("SELECT path, id, size, mtime, row, metadata FROM photos")
        self.known = {path: _Known(*facts) for path, *facts in listed}
        self.todo = sorted(path for path, file in found.items() if not self._is_known(path, file))
        self.gone = {path: known for path, known in self.known.items() if path not in found}
        self.moved: dict[int | None, bytes] = {
            known.row: path for path, known in self.gone.items() if known.row is not None
        }
        self.captions: Captions | None = None

    def _is_known(self, path: bytes, file: File) -> bool:
        known = self.known.get(path)
        return known is not None and (known.size, known.mtime) == (file.size, file.mtime)

    @property
    def is_done(self) -> bool:
        """Whether there is nothing to do."""
        return not self.todo and not self.gone

    def run(self) -> Changes:
        """Embed new contents, a batch at a time, then delete what is gone."""
        self.captions = self._read_captions()
        storage.check_room(self.store.folder, len(self.todo) * self.store.dim * 2, "the index")
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(self.todo), _BATCH):
                batch = self.todo[start : start + _BATCH]
                self._take(batch, list(pool.map(self._read, batch)))
                progress("indexing photos", start + len(batch), len(self.todo))
        again = [entry for entry in self._with_new_metadata() if entry.path not in self.gone]
        self.changes.deleted = len(self.gone)
        if again or self.gone:
            self.store.change({}, again, [known.id for known in self.gone.values()])
        return self.changes

    def _read_captions(self) -> Captions | None:
        stated = self.store.facts["captions"]
        path = self._captions_path or (Path(stated) if stated else None)
        if path is None:
            return None
        if self._captions_path is None and not path.exists():
            logger.info(f"{path} is not there: columns stay as they are; --captions says where it is now")
            return None
        captions = read_captions(path, self.root, self.found)
        self.changes.absent = captions.absent
        facts = {"captions": str(path.absolute()), "columns": json.dumps(captions.columns)}
        if any(self.store.facts[name] != value for name, value in facts.items()):
            self.store.change(facts)
        return captions

    def _metadata(self, path: bytes, before: str = "{}") -> str:
        return before if self.captions is None else self.captions.by_path.get(path, "{}")

    def _with_new_metadata(self) -> list[Entry]:
        """Return the files that were not read again and have other values in the captions table now."""
        fresh = set(self.todo)
        changed = [
            known.id
            for path, known in self.known.items()
            if path not in fresh and known.metadata != self._metadata(path, known.metadata)
        ]
        entries = [entry for photo_id in changed for entry in self.store.entries("id = ?", (photo_id,))]
        return [replace(entry, metadata=self._metadata(entry.path)) for entry in entries]

    def _read(self, path: bytes) -> _Read:
        """Read a file once, so that its hash and its pixels are those of the same content."""
        if (reason := self.found[path].reason) is not None:
            return _Read(reason=reason)
        try:
            with open(os.path.join(os.fsencode(self.root), path), "rb") as file:  # noqa: PTH118, PTH123
                data = file.read()
        except OSError as error:
            return _Read(reason=error.strerror or "it cannot be read", is_absent=True)
        content = content_hash(data)
        if self.store.row_of(content) is not None:
            return _Read(content)
        try:
            image = decode(io.BytesIO(data))
        except CorruptImageError as error:
            return _Read(reason=str(error))
        return _Read(content, self._open_encoder().prepare(image))

    def _open_encoder(self) -> _Embedder:
        """Load the model when the first new content is found."""
        with self._opening:
            if self.encoder is None:
                self.encoder = open_model(self.store.facts["model"])
        return _Embedder(self.encoder)

    def _take(self, paths: list[bytes], read: list[_Read]) -> None:
        """Embed the new contents of a batch, and write them with their files."""
        new: dict[bytes, Any] = {one.content: one.prepared for one in read if one.prepared is not None}
        vectors = np.empty((0, self.store.dim), np.float32)
        if new:
            vectors = self._open_encoder().vectors(list(new.values()))
        number = {content: -1 - place for place, content in enumerate(new)}
        entries = []
        for path, one in zip(paths, read, strict=True):
            row = number[one.content] if one.content in number else self.store.row_of(one.content)
            entries.append(self._entry(path, row, one))
        self.store.append(vectors, list(new), entries)
        self.changes.embedded += len(new)

    def _entry(self, path: bytes, row: int | None, one: _Read) -> Entry:
        size, mtime, _ = self.found[path]
        if one.is_absent:
            size = mtime = -1  # to be tried again
        known = self.known.get(path)
        if known is not None:
            self.changes.changed += 1
        elif row is not None and row in self.moved:
            known = self.gone.pop(self.moved.pop(row))
            self.changes.renamed += 1
        elif row is not None:
            self.changes.added += 1
        photo_id, before = (0, "{}") if known is None else (known.id, known.metadata)
        return Entry(photo_id, path, size, mtime, row, one.reason, self._metadata(path, before))


class _Embedder:
    """Embeds images in two steps, of which the first runs in several threads; in float32 on every machine.

    The outputs of frozen layers are not cached: the index keeps the result.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._aligner = encoder.aligner if isinstance(encoder, Aligned) else None

    @property
    def dim(self) -> int:
        """The length of a vector."""
        if self._aligner is None:
            return len(self._encoder.encode_text(["."])[0])
        return self._aligner.text_projection.out_features

    def prepare(self, image: Image.Image) -> Any:
        """Resize and crop an image as in training."""
        return MemoryImage(image) if self._aligner is None else self._aligner.vision.transform(image)

    @torch.no_grad()
    def vectors(self, prepared: list[Any]) -> Vectors:
        """Return unit vectors ``(N, D)``.

        Raises:
            UserError: they are not finite.
        """
        if self._aligner is None:
            found = self._encoder.encode_image(prepared)
        else:
            pixels = torch.stack(prepared).to(self._aligner.logit_scale.device)
            found = self._aligner.encode_image(pixels).float().cpu().numpy()
        if not np.isfinite(found).all():
            raise UserError(f"{self._encoder.name} gives vectors that are not finite: it cannot be searched with")
        return found
