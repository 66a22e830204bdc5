"""Class names: English names derived from dataset labels, and files of names in other languages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from polyalign.config.language import Lang
from polyalign.data.readers import columns, files, sheet
from polyalign.utils.errors import UserError, did_you_mean
from polyalign.utils.text import clean

OPENAI = "openai"
"""Selects the ImageNet class names or prompt templates of the CLIP authors in place of a file."""

Names = dict[str, tuple[str, ...]]

_TABLES = tuple(suffix for suffix in sheet.SUFFIXES if suffix != ".tsv")
_IMAGENET_CLASSES = 1000
_WNID = re.compile(r"n\d{8}")
# CUB class names are numbered: "001.Black_footed_Albatross".
_NUMBERED = re.compile(r"^\d{3}\.")
# Babel-ImageNet codes that are not the language code in capitals.
_BABEL = {"fil": "TL"}


def english(classes: Sequence[str]) -> tuple[tuple[tuple[str, ...], ...], str]:
    """Return English names of classes from their labels in a dataset, and the origin of the names.

    ImageNet classes are recognised by WordNet id, by index (0 to 999) or by WordNet's words, and get all of WordNet's
    words as names. Other labels are used with separators replaced by spaces; bare numbers get no name.
    """
    words = _wordnet(classes)
    if words is not None:
        return words, "WordNet's words, by timm"
    if all(name.isdecimal() for name in classes):
        return tuple(() for _ in classes), "none"
    spaced = (_NUMBERED.sub("", name).replace("_", " ").replace("-", " ").strip() for name in classes)
    return tuple((name,) for name in spaced), "the dataset's own"


def in_order(classes: Iterable[str]) -> list[str]:
    """Sort folder names, numerically if all are numbers."""
    found = list(classes)
    return sorted(found, key=int) if found and all(name.isdecimal() for name in found) else sorted(found)


def read(source: str, lang: Lang, classes: Sequence[str]) -> Names:
    """Read class names in a language from a file, or return the CLIP authors' names for ``openai``.

    Supported are tables (CSV, Excel, JSON Lines, Parquet) with a column ``class`` and the names in the column ``sw``,
    ``name_sw`` or ``name``; ``.tsv`` files without a header, with one tab-separated class and name per line; ``.json``
    files of the form ``{class: name or [names]}``; and Babel-ImageNet's ``.json``,
    ``{LANG: [indices of ImageNet classes, names]}``. A class on several lines has several names.

    Raises:
        UserError: the file cannot be read, or has no names in this language.
    """
    path = Path(source)
    if source == OPENAI and not path.exists():
        return _openai(lang, classes)
    table = _read(path, lang)
    if _is_babel(table):
        return _babel(table, lang, classes)
    names = {key: tuple(map(str, value if isinstance(value, list) else [value])) for key, value in table.items()}
    unknown = sorted(names.keys() - set(classes))
    if unknown and set(classes) - names.keys():  # likely a typo, since some classes have no name
        known = did_you_mean(unknown[0], classes) if len(classes) < 50 else f"for example {classes[0]}"
        raise UserError(f'{path} has a name for "{unknown[0]}", which is not one of the classes: {known}')
    return names


def languages(source: str, known: Iterable[Lang]) -> list[str]:
    """Return the known languages in a Babel-ImageNet file.

    Raises:
        UserError: the file cannot be read, or has another format, with names in one language.
    """
    try:
        table = _read_object(Path(source)) if source.endswith(".json") else {}
    except UserError:
        table = {}
    if not _is_babel(table):
        raise UserError(f"{source} is not the Babel-ImageNet file: choose one language with --lang")
    return [lang.code for lang in known if _babel_code(lang) in table]


def _read(path: Path, lang: Lang) -> dict[str, Any]:
    if path.suffix in _TABLES:
        return _from_table(sheet.read(path), lang)
    if path.suffix == ".json":
        return _read_object(path)
    names: dict[str, list[str]] = {}
    for number, line in enumerate(files.lines(path), start=1):
        if line.strip():
            key, tab, name = line.partition("\t")
            if not tab or "\t" in name:
                raise UserError(f'{path}, line {number} is not "class<TAB>name": {line[:60]!r}')
            names.setdefault(key, []).append(name)
    return names


def _read_object(path: Path) -> dict[str, Any]:
    table = files.read_json(path)
    if not isinstance(table, dict):
        raise UserError(f'{path} is not of the form {{"class": "name"}}')
    return table


def _from_table(table: sheet.Sheet, lang: Lang) -> dict[str, list[str]]:
    """Return the names in a language; rows without one are left out."""
    wanted = (lang.code, f"name_{lang.code}", "name")
    of_class, named = (columns.find(table, "--names", None, usual) for usual in (("class",), wanted))
    if of_class is None or named is None:
        known = clean(", ".join(table.names), 300)
        raise UserError(f"{table.where} needs the columns class and {' or '.join(wanted)}; its columns are {known}")
    names: dict[str, list[str]] = {}
    for key, name in zip(table.column(of_class), table.column(named), strict=True):
        if name is not None and str(name).strip():
            names.setdefault(str(key).strip(), []).append(str(name).strip())
    return names


def openai_templates() -> tuple[str, ...]:
    """Return the CLIP authors' 80 ImageNet prompt templates from open_clip.

    Raises:
        UserError: open_clip is not installed.
    """
    return tuple(template("{}") for template in _open_clip().OPENAI_IMAGENET_TEMPLATES)


def _openai(lang: Lang, classes: Sequence[str]) -> Names:
    if lang.code != "en":
        raise UserError(f"CLIP's class names are in English, not in {lang.english_name}")
    names = _open_clip().IMAGENET_CLASSNAMES
    if len(classes) != len(names):
        raise UserError(f"CLIP's class names are for ImageNet's {len(names):,} classes, not for {len(classes):,}")
    return {key: (name,) for key, name in zip(classes, names, strict=True)}


def _open_clip() -> Any:
    try:
        import open_clip
    except ImportError as error:
        raise UserError("CLIP's class names and prompts require open_clip: pip install 'polyalign[peers]'") from error
    return open_clip


def _wordnet(classes: Sequence[str]) -> tuple[tuple[str, ...], ...] | None:
    """Return WordNet's words for ImageNet classes, or None for other classes."""
    ids = all(map(_WNID.fullmatch, classes))
    if not ids and len(classes) != _IMAGENET_CLASSES:
        return None
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    words = [str(info.index_to_description(index)) for index in range(info.num_classes())]
    if ids:
        of_id = dict(zip(map(str, info.label_names()), words, strict=True))
        found = [of_id.get(name, "") for name in classes]
    elif list(classes) in (words, list(map(str, range(_IMAGENET_CLASSES)))):
        found = words
    else:
        return None
    return tuple(tuple(one.split(", ")) for one in found) if all(found) else None


def _is_babel(table: dict[str, Any]) -> bool:
    rows = table.values()
    return bool(rows) and all(isinstance(row, list) and len(row) == 2 and isinstance(row[0], list) for row in rows)


def _babel_code(lang: Lang) -> str:
    return _BABEL.get(lang.code, lang.code.upper())


def _babel(table: dict[str, Any], lang: Lang, classes: Sequence[str]) -> Names:
    code = _babel_code(lang)
    if code not in table:
        raise UserError(f"Babel-ImageNet has no names in {lang.english_name} ({code}): {did_you_mean(code, table)}")
    if len(classes) != _IMAGENET_CLASSES:
        raise UserError(f"Babel-ImageNet is for ImageNet's {_IMAGENET_CLASSES} classes, not for {len(classes)}")
    indices, names = table[code]
    return {classes[index]: (str(name),) for index, name in zip(indices, names, strict=True)}
