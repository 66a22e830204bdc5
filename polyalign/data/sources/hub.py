"""Hugging Face datasets, by hub name or from a folder written by ``save_to_disk``."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from huggingface_hub import metadata_load

from polyalign.config.language import Lang
from polyalign.data.image_prints import key
from polyalign.data.pairs import CorruptImageError, EncodedImage, FileImage, PairTable
from polyalign.data.readers.columns import IMAGE_NAMES, Columns, find, ids_in, need, select, two_images
from polyalign.data.readers.sheet import Sheet
from polyalign.utils.errors import UserError, first_line
from polyalign.utils.hub import check_hub
from polyalign.utils.text import clean

_PROBED = 100  # repeated ids whose images are compared
_ID_NAMES = ("image_id", "img_id", "imgid", "cocoid", "filename", "file_name")
_PART_NAMES = {"train": ("train",), "dev": ("validation", "dev", "val", "valid"), "test": ("test",)}


class Config(Columns):
    """Dataset, splits and column names (see ``Columns``).

    ``dataset`` is a hub name or a folder; ``subset`` and ``revision`` are passed to ``datasets.load_dataset``.
    A split missing from the dataset is carved out of its training split, by the split column or by a hash of the image
    id. Image ids are read from ``id_column``, which defaults to a column with a common name (``image_id``,
    ``filename``, ...); without one, the image file names are used if they are distinct, else row numbers.

    Set ``HF_HUB_OFFLINE=1`` in the environment to keep ``datasets`` offline.
    """

    dataset: str
    subset: str | None = None
    revision: str | None = None
    train_split: str | None = None
    dev_split: str | None = None
    test_split: str | None = None


@dataclass(frozen=True, eq=False)
class HubImage(EncodedImage):
    """An image in a dataset row, stored as bytes or as a file path."""

    cells: datasets.Dataset
    column: str
    row: int

    def source(self) -> io.BytesIO | Path:
        """Return the encoded bytes or the file of the row; handles the dictionaries of ``datasets.Image``."""
        cell = self.cells[self.row][self.column]
        if isinstance(cell, dict):
            cell = cell.get("bytes") or cell.get("path")
        if isinstance(cell, str):
            return Path(cell)
        if isinstance(cell, bytes):
            return io.BytesIO(cell)
        raise CorruptImageError(f"row {self.row} contains {type(cell).__name__}, not an image")

    def key(self) -> str:
        """Return a hash of the bytes, or the key of the ``FileImage``."""
        source = self.source()
        if isinstance(source, Path):
            return FileImage(source).key()
        return hashlib.blake2b(source.getbuffer(), digest_size=16).hexdigest()


def load(config: Config, lang: Lang, split: str) -> PairTable:
    """Load the pairs of a language and split.

    Raises:
        UserError: the dataset cannot be loaded, a split or column is missing, or there are no pairs in this language.
    """
    parts = load_parts(config.dataset, config.subset, config.revision)
    part, config, wanted = _part(parts, config, split)
    rows = parts[part]

    def values(name: str) -> list[Any]:
        with _loading(config.dataset):
            return list(rows[name])

    sheet = Sheet(
        where=f"{config.dataset} ({part})",
        names=tuple(rows.column_names),
        rows=len(rows),
        column=values,
        row_name=lambda row: f"{config.dataset} ({part}), row {row}",
    )
    column = need(sheet, "image_column", config.image_column, IMAGE_NAMES)
    refs = images(rows, column)
    pairs = select(sheet, _ids(sheet, config, refs, part), config, lang, wanted)
    chosen = ((image_id, caption, refs[row]) for image_id, caption, row in pairs)
    return PairTable.from_pairs(f"{PurePosixPath(config.dataset).name}-{split}", lang.code, config.origin, chosen)


def load_parts(dataset: str, subset: str | None = None, revision: str | None = None) -> dict[str, datasets.Dataset]:
    """Load a dataset from the hub or a folder as a dictionary of its splits.

    Raises:
        UserError: it cannot be loaded.
    """
    folder = Path(dataset)
    with _loading(dataset):
        _check_card(folder)
        if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
            loaded = datasets.load_from_disk(str(folder))
        else:
            if not folder.exists():
                check_hub()
            loaded = datasets.load_dataset(dataset, subset, revision=revision)
        parts = {"train": loaded} if isinstance(loaded, datasets.Dataset) else dict(loaded)
        for rows in parts.values():
            rows.data.validate(full=True)  # Arrow reads beyond the file if its offsets are damaged
    return parts


def _check_card(folder: Path) -> None:
    """Check that the card of a local dataset names only files of its folder: ``datasets`` opens any address.

    Raises:
        UserError: it names others.
    """
    card = folder / "README.md"
    if not card.is_file():
        return
    configs = (metadata_load(card) or {}).get("configs")
    if outside := re.search(r"\w+://|::|\.\./|['\"]/", json.dumps(configs)):
        raise UserError(f"{card} names data outside of its folder ({outside[0]}): remove the entry from its metadata")


@contextmanager
def _loading(dataset: str) -> Iterator[None]:
    """Convert any error of ``datasets``, which lets those of its many file formats through, to a UserError.

    Its own messages, which repeat names of files as they are, are silenced.
    """
    before = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f'cannot load the dataset "{dataset}": {clean(first_line(error), 200)} (offline, use a folder written by '
            "save_to_disk or a dataset that is in the Hugging Face cache)"
        ) from error
    finally:
        datasets.logging.set_verbosity(before)


def _part(parts: dict[str, datasets.Dataset], config: Config, split: str) -> tuple[str, Config, str | None]:
    """Return the dataset split to read, the config, and the split to select from it (None for all rows).

    In the config, the shares of splits that the dataset provides are set to 0.
    """
    own = {name: _named(parts, config, name) for name in _PART_NAMES}
    if len(parts) == 1:
        return next(iter(parts)), config, split
    if split not in own:
        raise UserError(f'{config.dataset} has no split "{split}"')
    if split != "train" and own[split]:
        return str(own[split]), config, None
    if own["train"] is None:
        raise UserError(
            f"{config.dataset} has the splits {', '.join(parts)}: choose the training split with source.train_split"
        )
    missing = {f"{name}_share": 0.0 for name in ("dev", "test") if own[name]}
    return own["train"], config.model_copy(update=missing), split


def _named(parts: dict[str, datasets.Dataset], config: Config, split: str) -> str | None:
    wanted: str | None = getattr(config, f"{split}_split")
    if wanted is not None and wanted not in parts:
        raise UserError(f'{config.dataset} has no split "{wanted}" (source.{split}_split): it has {", ".join(parts)}')
    return wanted or next((name for name in _PART_NAMES[split] if name in parts), None)


def images(rows: datasets.Dataset, column: str) -> list[HubImage]:
    """Return the image of every row; images are decoded when opened."""
    cells = rows.select_columns([column])
    if isinstance(cells.features[column], datasets.Image):
        cells = cells.cast_column(column, datasets.Image(decode=False))
    return [HubImage(cells, column, row) for row in range(len(rows))]


def _ids(sheet: Sheet, config: Config, refs: Sequence[HubImage], part: str) -> Sequence[str]:
    column = find(sheet, "id_column", config.id_column, _ID_NAMES)
    if column is not None:
        return ids_in(sheet, column, lambda row: key(refs[row]), _PROBED)
    names = _file_names(refs[0].cells) if refs else None
    # In some datasets every file is called image.jpg.
    if names and two_images(names, lambda row: key(refs[row]), 1) is None:
        return names
    return [f"{part}/{row}" for row in range(sheet.rows)]


def _file_names(cells: datasets.Dataset) -> list[str] | None:
    """Return the file names in the image column without reading image bytes, or None if a row has no name."""
    values = cells.with_format("arrow")[:].column(0)
    if pa.types.is_struct(values.type):
        values = pc.struct_field(values, "path") if values.type.get_field_index("path") >= 0 else None
    is_text = values is not None and (pa.types.is_string(values.type) or pa.types.is_large_string(values.type))
    paths = values.to_pylist() if is_text else []
    names = [PurePosixPath((path or "").replace("\\", "/")).name for path in paths]
    return names if names and all(names) else None
