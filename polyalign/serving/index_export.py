"""Export an index to the formats that vector databases and other search tools load."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from polyalign.serving.index import Index, Vector
from polyalign.serving.index_store import Entry
from polyalign.utils import storage
from polyalign.utils.errors import UserError
from polyalign.utils.progress import progress

Format = Literal["parquet", "clip-retrieval"]
_ROWS = 8192  # of a row group


def export(index: Index, to: Format, out: Path) -> int:
    """Write all photos of an index, and return their number.

    ``parquet`` is one file with the columns ``id``, ``path`` (relative to the photo folder), ``vector`` (a fixed-size
    list of float32) and ``metadata`` (a JSON object). ``clip-retrieval`` is a folder of the form that `clip-retrieval
    inference` writes: ``img_emb/img_emb_0.npy`` in float16 and ``metadata/metadata_0.parquet`` with absolute paths.
    Bytes of names that are not UTF-8 are written as hexadecimal escapes.

    Raises:
        UserError: ``out`` exists, or cannot be written to.
    """
    if out.exists() or out.is_symlink():
        raise UserError(f"{out} exists: name another path with --out")
    if not len(index):
        raise UserError(f"{index.folder} has no photos to export")
    size = 4 if to == "parquet" else 2
    storage.check_room(out.parent, len(index) * index.dim * size, "the export")
    if to == "parquet":
        storage.write(out, lambda partial: _write_parquet(index, partial))
    else:
        with storage.new_folder(out) as made:
            _write_clip_retrieval(index, made)
    return len(index)


def _write_parquet(index: Index, path: Path) -> None:
    vector = pa.list_(pa.float32(), index.dim)
    schema = pa.schema({"id": pa.int64(), "path": pa.string(), "vector": vector, "metadata": pa.string()})
    with pq.ParquetWriter(path, schema) as writer:
        for entries, vectors in _chunks(index):
            values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), index.dim)
            ids, paths = [entry.id for entry in entries], [_text(entry.path) for entry in entries]
            columns = [pa.array(ids, pa.int64()), pa.array(paths), values, pa.array([one.metadata for one in entries])]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def _write_clip_retrieval(index: Index, out: Path) -> None:
    columns = [name for name in index.columns if name != "image_path"]
    schema = pa.schema({"image_path": pa.string(), **dict.fromkeys(columns, pa.string())})

    def fill_metadata(partial: Path) -> None:
        with pq.ParquetWriter(partial, schema) as writer:
            for entries, _ in _chunks(index):
                known = [index.store.metadata(entry) for entry in entries]
                paths = [_text(os.path.join(os.fsencode(index.root), entry.path)) for entry in entries]  # noqa: PTH118
                texts = [pa.array([one.get(name) for one in known], pa.string()) for name in columns]
                writer.write_table(pa.Table.from_arrays([pa.array(paths), *texts], schema=schema))

    def fill_vectors(partial: Path) -> None:
        with partial.open("wb") as file:
            header = {"descr": "<f2", "fortran_order": False, "shape": (len(index), index.dim)}
            np.lib.format.write_array_header_1_0(file, header)
            for _, vectors in _chunks(index):
                file.write(vectors.astype("<f2").tobytes())

    storage.write(out / "metadata" / "metadata_0.parquet", fill_metadata)
    storage.write(out / "img_emb" / "img_emb_0.npy", fill_vectors)


def _chunks(index: Index) -> Iterator[tuple[list[Entry], Vector]]:
    """Yield the photos in the order of their ids, and their vectors ``(N, D)``."""
    ids = np.sort(index.ids)
    for start in range(0, len(ids), _ROWS):
        part = ids[start : start + _ROWS]
        entries = [entry for photo_id in part.tolist() for entry in index.store.entries("id = ?", (photo_id,))]
        if len(entries) < len(part):
            raise UserError(f"{index.folder} was changed meanwhile: export it again")
        yield entries, index.vectors([entry.id for entry in entries])
        progress("exporting photos", start + len(part), len(ids))


def _text(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
