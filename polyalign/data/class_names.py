"""What classes are called: English names from what a dataset calls them, and files of names in other languages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from polyalign.config.language import Lang
from polyalign.utils.errors import UserError, did_you_mean

OPENAI = "openai"
"""In place of a file of names, or of templates: those that CLIP's authors chose for ImageNet."""

Names = dict[str, tuple[str, ...]]

_IMAGENET_CLASSES = 1000
_WNID = re.compile(r"n\d{8}")
# CUB counts its classes in their names: "001.Black_footed_Albatross".
_NUMBERED = re.compile(r"^\d{3}\.")
# Codes of Babel-ImageNet that are not the language's own in capitals.
_BABEL = {"fil": "TL"}


def english(classes: Sequence[str]) -> tuple[tuple[tuple[str, ...], ...], str]:
    """Name classes in English by what a dataset calls them, and say where the names are from.

    ImageNet's are known by their WordNet ids, by their numbers 0 to 999, and by WordNet's words for them; such a class
    has all of WordNet's words. Any others are called as the dataset calls them, with spaces. Bare numbers are no names:
    those classes get none.
    """
    words = _wordnet(classes)
    if words is not None:
        return words, "WordNet's words, by timm"
    if all(name.isdecimal() for name in classes):
        return tuple(() for _ in classes), "none"
    return tuple((_spaced(name),) for name in classes), "the dataset's own"


def in_order(classes: Iterable[str]) -> list[str]:
    """Sort names of folders; bare numbers by their value."""
    found = list(classes)
    return sorted(found, key=int) if found and all(name.isdecimal() for name in found) else sorted(found)


def read(source: str, lang: Lang, classes: Sequence[str]) -> Names:
    """Read names of classes in a language, by class, from a file of one of three kinds, or ``openai``.

    ``.tsv``: a class and a name a line, tab between; ``.json``: ``{class: name or [names]}``; Babel-ImageNet's
    ``.json``: ``{LANG: [class indices, names]}``, the indices being those of ImageNet's 1,000 classes in order.

    Raises:
        UserError: the file cannot be read, or has nothing for this language.
    """
    if source == OPENAI and not Path(source).exists():
        return _openai(lang, classes)
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix != ".json":
            return _plain(path, _cells(text), classes)
        table = json.loads(text)
        if not isinstance(table, dict):
            raise ValueError('it is not of the form {"class": "name"}')
        return _babel(table, lang, classes) if _is_babel(table) else _plain(path, table.items(), classes)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read names of classes from {path}: {reason}") from error


def languages(source: str, known: Iterable[Lang]) -> list[str]:
    """List the languages of Babel-ImageNet's file that are known here.

    Raises:
        UserError: it is another file, which is of one language.
    """
    try:
        table = json.loads(Path(source).read_text(encoding="utf-8-sig"))
        if not isinstance(table, dict) or not _is_babel(table):
            raise ValueError("its form is another")
    except (OSError, ValueError) as error:
        raise UserError(f"{source} is not Babel-ImageNet's file: say one language with --lang") from error
    return [lang.code for lang in known if _babel_code(lang) in table]


def openai_templates() -> tuple[str, ...]:
    """Return the 80 templates of CLIP's authors for ImageNet, from open_clip.

    Raises:
        UserError: open_clip is not installed.
    """
    return tuple(template("{}") for template in _open_clip().OPENAI_IMAGENET_TEMPLATES)


def _openai(lang: Lang, classes: Sequence[str]) -> Names:
    if lang.code != "en":
        raise UserError(f"CLIP's authors named ImageNet's classes in English, not in {lang.english_name}")
    names = _open_clip().IMAGENET_CLASSNAMES
    if len(classes) != len(names):
        raise UserError(f"CLIP's authors named ImageNet's {len(names):,} classes, and here are {len(classes):,}")
    return {key: (name,) for key, name in zip(classes, names, strict=True)}


def _open_clip() -> Any:
    try:
        import open_clip
    except ImportError as error:
        raise UserError(
            "the names and prompts of CLIP's authors come with open_clip: pip install 'polyalign[peers]'"
        ) from error
    return open_clip


def _wordnet(classes: Sequence[str]) -> tuple[tuple[str, ...], ...] | None:
    """Return WordNet's words for ImageNet's classes, or nothing for other classes."""
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
    return all(isinstance(value, list) and len(value) == 2 and isinstance(value[0], list) for value in table.values())


def _babel_code(lang: Lang) -> str:
    return _BABEL.get(lang.code, lang.code.upper())


def _babel(table: dict[str, Any], lang: Lang, classes: Sequence[str]) -> Names:
    code = _babel_code(lang)
    if code not in table:
        raise UserError(f"Babel-ImageNet's file has no {lang.english_name} ({code}): {did_you_mean(code, table)}")
    if len(classes) != _IMAGENET_CLASSES:
        raise UserError(f"Babel-ImageNet names ImageNet's {_IMAGENET_CLASSES} classes, and here are {len(classes)}")
    indices, names = table[code]
    return {classes[index]: (str(name),) for index, name in zip(indices, names, strict=True)}


def _cells(text: str) -> Iterable[list[str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            cells = line.split("\t")
            if len(cells) != 2:
                raise ValueError(f'line {number} is not "class<TAB>name": {line[:60]!r}')
            yield cells


def _plain(path: Path, pairs: Iterable[Any], classes: Sequence[str]) -> Names:
    """Take names as they are; where some classes get none, a name of no class is a slip of the pen."""
    names: Names = {}
    for key, value in pairs:
        names[key] = names.get(key, ()) + (tuple(map(str, value)) if isinstance(value, list) else (str(value),))
    unknown = sorted(names.keys() - set(classes))
    if unknown and set(classes) - names.keys():
        known = did_you_mean(unknown[0], classes) if len(classes) < 50 else f"such as {classes[0]}"
        raise UserError(f'{path} names "{unknown[0]}", which is none of the classes: {known}')
    return names


def _spaced(name: str) -> str:
    return _NUMBERED.sub("", name).replace("_", " ").replace("-", " ").strip()
