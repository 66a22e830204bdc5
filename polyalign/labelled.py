"""Labelled images, to classify and to probe with: folder trees, Hugging Face datasets, the starter world's objects."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from polyalign.errors import UserError, did_you_mean
from polyalign.lang import Lang
from polyalign.pairs import FileImage, ImageRef
from polyalign.starter.grammar import lexicon
from polyalign.starter.scenes import DRAWING_VERSION, draw_object
from polyalign.starter.world import BACKGROUNDS, COLORS, KINDS

_IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class Labelled:
    """Images, each of one class.

    ``labels`` (N,) index ``classes``; a class is known by its ``names`` in the language ``lang``, all of which mean
    it. A class may have no image.
    """

    name: str
    lang: str
    images: tuple[ImageRef, ...]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]

    def named(self, lang: str, names: Mapping[str, Sequence[str]]) -> Labelled:
        """Name the classes in a language, and leave out those that have no name there, with their images.

        Raises:
            UserError: no class has a name.
        """
        kept = [index for index, key in enumerate(self.classes) if names.get(key)]
        if not kept:
            raise UserError(f'none of the classes of "{self.name}" is named, such as "{self.classes[0]}"')
        place = np.full(len(self.classes), -1)
        place[kept] = np.arange(len(kept))
        rows = np.flatnonzero(place[self.labels] >= 0)
        return replace(
            self,
            lang=lang,
            images=tuple(self.images[row] for row in rows),
            labels=place[self.labels[rows]],
            classes=tuple(self.classes[index] for index in kept),
            names=tuple(tuple(names[self.classes[index]]) for index in kept),
        )


def from_folder(path: Path) -> Labelled:
    """Read ``path/<class>/.../<image>``; a class is named, in English, by its folder.

    Raises:
        UserError: there are no class folders or no images in them.
    """
    Image.init()
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []
    files = [
        (label, file)
        for label, folder in enumerate(folders)
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in Image.EXTENSION
    ]
    if not files:
        raise UserError(f"{path} holds no labelled images: expected a folder for each class with images in it")
    return Labelled(
        name=path.name,
        lang="en",
        images=tuple(FileImage(file) for _, file in files),
        labels=np.array([label for label, _ in files], dtype=np.int64),
        classes=tuple(folder.name for folder in folders),
        names=tuple((_spaced(folder.name),) for folder in folders),
    )


def from_hub(dataset: str, split: str, *, image_column: str = "image", label_column: str = "label") -> Labelled:
    """Read a Hugging Face dataset, by its name on the hub or from a folder that ``save_to_disk`` wrote.

    A class is named, in English, as the dataset names it; where labels are plain values, by the value.

    Raises:
        UserError: it cannot be loaded, or lacks the split or a column.
    """
    from polyalign.sources import hub  # it imports datasets, which a run without any need not wait for

    parts = hub.load_parts(dataset)
    if split not in parts:
        raise UserError(f'{dataset} has no split "{split}": {did_you_mean(split, parts)}')
    rows = parts[split]
    for column in (image_column, label_column):
        if column not in rows.column_names:
            raise UserError(f'{dataset} has no column "{column}": {did_you_mean(column, rows.column_names)}')
    values = list(rows[label_column])
    known = getattr(rows.features[label_column], "names", None)
    classes = [str(name) for name in known] if known else sorted({str(value) for value in values})
    index = {name: label for label, name in enumerate(classes)}
    labels = values if known else [index[str(value)] for value in values]
    return Labelled(
        name=Path(dataset).name,
        lang="en",
        images=tuple(hub.images(rows, image_column)),
        labels=np.array(labels, dtype=np.int64),
        classes=tuple(classes),
        names=tuple((_spaced(name),) for name in classes),
    )


def read_names(path: Path, lang: Lang, classes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Read names of classes in a language, by class, from one of three kinds of file.

    ``.tsv``: a class and a name a line, tab between; ``.json``: ``{class: name or [names]}``; Babel-ImageNet's
    ``.json``: ``{LANG: [class indices, names]}``, the indices being those of ImageNet's 1,000 classes in order.

    Raises:
        UserError: the file cannot be read, or has nothing for this language.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix != ".json":
            return _plain(line.split("\t") for line in text.splitlines() if line.strip())
        table = json.loads(text)
        return _babel(table, lang, classes) if _is_babel(table) else _plain(table.items())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read names of classes from {path}: {error}") from error


def _is_babel(table: dict[str, Any]) -> bool:
    return all(isinstance(value, list) and len(value) == 2 and isinstance(value[0], list) for value in table.values())


def _babel(table: dict[str, Any], lang: Lang, classes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    code = lang.code.upper()
    if code not in table:
        raise UserError(f"Babel-ImageNet's file has no {lang.english_name} ({code}): {did_you_mean(code, table)}")
    if len(classes) != _IMAGENET_CLASSES:
        raise UserError(f"Babel-ImageNet names ImageNet's {_IMAGENET_CLASSES} classes, and here are {len(classes)}")
    indices, names = table[code]
    return {classes[index]: (str(name),) for index, name in zip(indices, names, strict=True)}


def _plain(pairs: Iterable[Any]) -> dict[str, tuple[str, ...]]:
    names: dict[str, tuple[str, ...]] = {}
    for key, value in pairs:
        names[key] = names.get(key, ()) + (tuple(map(str, value)) if isinstance(value, list) else (str(value),))
    return names


def _spaced(name: str) -> str:
    return name.replace("_", " ").replace("-", " ").strip()


@dataclass(frozen=True)
class ObjectImage:
    """One object of the starter world, drawn when it is opened."""

    kind: str
    color: str
    background: str
    radius: float
    seed: int

    def open(self) -> Image.Image:
        """Draw the object at 64 by 64 pixels."""
        return draw_object(self.kind, self.color, self.background, self.radius, self.seed)

    def key(self) -> str:
        """Name the picture by all that decides its pixels."""
        what = f"{self.kind}:{self.color}:{self.background}:{self.radius:.6f}:{self.seed}"
        return f"starter-object{DRAWING_VERSION}:{what}"


def starter_objects(lang: Lang, *, each: int = 40, seed: int = 0) -> Labelled:
    """Draw ``each`` pictures of every kind of object in the starter world, named in a language that has its lexicon.

    Raises:
        UserError: the language has no starter lexicon.
    """
    rng = np.random.default_rng((seed, len(KINDS)))
    words = lexicon(lang)
    # A bare noun stands in the singular, and in the nominative where the language has cases.
    bare = frozenset({"sg", "1", "nom"})
    images = [
        ObjectImage(
            kind=kind,
            color=str(rng.choice(COLORS)),
            background=str(rng.choice(BACKGROUNDS)),
            radius=float(rng.uniform(10, 24)),
            seed=int(rng.integers(2**31)),
        )
        for kind in KINDS
        for _ in range(each)
    ]
    return Labelled(
        name="starter-objects",
        lang=lang.code,
        images=tuple(images),
        labels=np.repeat(np.arange(len(KINDS)), each),
        classes=KINDS,
        names=tuple(tuple(word.inflect(bare | word.tags) for word in words.kinds[kind]) for kind in KINDS),
    )
