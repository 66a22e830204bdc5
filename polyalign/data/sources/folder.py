"""Custom dataset in a local folder: images and a CSV, TSV, Excel, JSON Lines or Parquet file of captions."""

from __future__ import annotations

import reprlib
import unicodedata
from pathlib import Path, PurePosixPath

from polyalign.config.language import Lang
from polyalign.data.pairs import FileImage, PairTable
from polyalign.data.readers.columns import IMAGE_NAMES, Columns, ids_in, need, select
from polyalign.data.readers.files import as_on_disk, entries, existing, folder, is_file
from polyalign.data.readers.sheet import SUFFIXES, Sheet, read
from polyalign.utils.errors import UserError
from polyalign.utils.text import clean

_PREFERRED = ("captions", "metadata")
_PROBED_ROWS = 100


class Config(Columns):
    """File locations and column names (see ``Columns``).

    ``root`` is the folder, or the captions file inside it. ``captions`` is the name of that file relative to ``root``,
    with ``{lang}`` replaced by the language code; it defaults to the only table in ``root``, or to the one named
    ``captions`` or ``metadata``. ``images`` is the folder, relative to ``root``, against which image names are
    resolved; it defaults to ``root`` or ``root/images``.
    """

    root: Path
    captions: str | None = None
    images: str | None = None


def load(config: Config, lang: Lang, split: str) -> PairTable:
    """Load the pairs of a language and split; an image's id is its name in the captions file.

    Raises:
        UserError: a file or column is missing, a line is malformed, or this language and split have no pairs.
    """
    if config.root.is_file():
        config = config.model_copy(update={"root": config.root.parent, "captions": config.root.name})
    root = folder(config.root, "source.root, with the captions file")
    sheet = read(_captions_file(root, config, lang))
    names = _image_names(sheet, need(sheet, "image_column", config.image_column, IMAGE_NAMES))
    ids = [unicodedata.normalize("NFC", name) for name in names]
    if config.id_column is not None:
        ids = ids_in(sheet, need(sheet, "id_column", config.id_column, ()), names.__getitem__)
    base = _image_folder(root, config, names)
    pairs = select(sheet, ids, config, lang, split)
    rows = ((image_id, caption, FileImage(as_on_disk(base, names[row]))) for image_id, caption, row in pairs)
    return PairTable.from_pairs(f"{root.resolve().name}-{split}", lang.code, config.origin, rows)


def _captions_file(root: Path, config: Config, lang: Lang) -> Path:
    if config.captions is not None:
        return existing(root / config.captions.replace("{lang}", lang.code), what="captions file")
    files = [root / name for name in entries(root) if name.endswith(SUFFIXES)]
    preferred = [path for path in files if path.stem in _PREFERRED]
    for candidates in (files, preferred):
        if len(candidates) == 1:
            return candidates[0]
    if not files:
        raise UserError(f"{root} has no captions file: put a {', '.join(SUFFIXES)} file there{_other_source(root)}")
    raise UserError(
        f"{root} has several files that may hold the captions ({clean(', '.join(path.name for path in files), 200)}): "
        "choose one with source.captions"
    )


def _other_source(root: Path) -> str:
    """Suggest another source if the folder has the layout of one."""
    if (root / "state.json").is_file() or (root / "dataset_dict.json").is_file():
        return f" (it looks like a saved Hugging Face dataset: --data hub --set source.dataset={root})"
    if (root / "captions").is_dir() and (root / "splits").is_dir():
        return f" (it looks like Flickr8k: --data flickr8k --set source.root={root})"
    return ""


def _image_names(sheet: Sheet, column: str) -> list[str]:
    names = []
    for row, value in enumerate(sheet.column(column)):
        if not isinstance(value, str) or not value.strip():
            raise UserError(f'{sheet.row_name(row)}: "{column}" must name an image file, not {reprlib.repr(value)}')
        names.append(str(PurePosixPath(value.strip().replace("\\", "/"))))
    return names


def _image_folder(root: Path, config: Config, names: list[str]) -> Path:
    """Return the configured image folder, else the candidate that contains more of the first images."""
    if config.images is not None:
        return folder(root / config.images, "source.images")
    probed = names[:_PROBED_ROWS]
    return max((root, root / "images"), key=lambda base: sum(is_file(as_on_disk(base, name)) for name in probed))
