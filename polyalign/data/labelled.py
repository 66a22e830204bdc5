"""Labelled images for classification and probing: folder trees, Hugging Face datasets, starter-world objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from polyalign.config.language import Lang
from polyalign.data import class_names
from polyalign.data.pairs import FileImage, ImageRef
from polyalign.data.readers.info import LABELLED
from polyalign.data.starter.grammar import lexicon
from polyalign.data.starter.scenes import DRAWING_VERSION, DrawnImage, draw_object
from polyalign.data.starter.world import BACKGROUNDS, COLORS, KINDS
from polyalign.utils.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Labelled:
    """Images with one class label each.

    ``labels`` (N,) are indices into ``classes``; ``names`` are the synonymous names of each class in the language
    ``lang``, and ``named_by`` is their origin. A class may have no images.
    """

    name: str
    lang: str
    images: tuple[ImageRef, ...]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]
    named_by: str = "the dataset's own"

    def named(self, lang: str, names: Mapping[str, Sequence[str]], named_by: str) -> Labelled:
        """Return the dataset with class names in a language; classes without a name are left out with their images.

        Raises:
            UserError: no class has a name.
        """
        kept = [index for index, key in enumerate(self.classes) if names.get(key)]
        if not kept:
            raise UserError(f'no class of "{self.name}" has a name, for example "{self.classes[0]}"')
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
            named_by=named_by,
        )

    def without(self, keys: frozenset[str]) -> Labelled:
        """Return the dataset without the images with these keys."""
        if not keys:
            return self
        rows = [row for row, image in enumerate(self.images) if image.key() not in keys]
        return replace(self, images=tuple(self.images[row] for row in rows), labels=self.labels[rows])


def from_folder(path: Path) -> Labelled:
    """Read ``path/<class>/.../<image>``; English class names are derived from folder names (``class_names.english``).

    Raises:
        UserError: there are no class folders or no images in them.
    """
    suffixes = Image.registered_extensions()
    found = {entry.name: entry for entry in path.iterdir() if entry.is_dir()} if path.is_dir() else {}
    classes = class_names.in_order(found)
    files = [
        (label, file)
        for label, name in enumerate(classes)
        for file in sorted(found[name].rglob("*"))
        if file.suffix.lower() in suffixes
    ]
    if not files:
        raise UserError(f"{path} contains no labelled images: expected one folder of images per class")
    images = [FileImage(file) for _, file in files]
    return _in_english(path.name or path.resolve().name, images, [label for label, _ in files], classes)


def from_hub(dataset: str, split: str, *, label_column: str = "label") -> Labelled:
    """Read a Hugging Face dataset, with images in the column ``image``, by hub name or from a saved folder.

    English class names are derived from the dataset's class names, or from the label values if it has none.

    Raises:
        UserError: the dataset cannot be loaded, or lacks the split or a column.
    """
    from polyalign.data.sources import hub  # imports datasets, which is slow

    parts = hub.load_parts(dataset)
    if split not in parts:
        raise UserError(f'{dataset} has no split "{split}": {did_you_mean(split, parts)}')
    rows = parts[split]
    for column in ("image", label_column):
        if column not in rows.column_names:
            raise UserError(f'{dataset} has no column "{column}": {did_you_mean(column, rows.column_names)}')
    labels = list(rows[label_column])
    classes = getattr(rows.features[label_column], "names", None)
    if not classes:
        classes = class_names.in_order({str(value) for value in labels})
        index = {name: label for label, name in enumerate(classes)}
        labels = [index[str(value)] for value in labels]
    return _in_english(Path(dataset).name, hub.images(rows, "image"), labels, list(map(str, classes)))


def _in_english(name: str, images: Sequence[ImageRef], labels: Sequence[int], classes: Sequence[str]) -> Labelled:
    names, named_by = class_names.english(classes)
    return Labelled(name, "en", tuple(images), np.array(labels, np.int64), tuple(classes), names, named_by)


def load(images: str, split: str | None) -> Labelled:
    """Read a folder tree, a known dataset (see ``readers.info.LABELLED``) or any other dataset on the hub.

    Raises:
        UserError: the dataset cannot be loaded, or a known dataset has an unexpected number of classes.
    """
    if Path(images).is_dir():
        return from_folder(Path(images))
    known = LABELLED.get(images)
    if known is None:
        return from_hub(images, split or "test")
    if not known.hub:
        raise UserError(f"{known.title} is read from a folder: {known.place}")
    found = from_hub(known.hub, split or known.split, label_column=known.label_column)
    if len(found.classes) != known.classes:
        raise UserError(f"{known.hub} has {len(found.classes):,} classes, but {known.title} has {known.classes:,}")
    return replace(found, name=images)


def starter_objects(lang: Lang, *, each: int = 40, seed: int = 0) -> Labelled:
    """Return ``each`` images of every kind of object in the starter world, with class names in a language.

    Raises:
        UserError: the language has no starter lexicon.
    """
    rng = np.random.default_rng((seed, len(KINDS)))
    words = lexicon(lang)
    # A bare noun is singular, and nominative if the language has cases.
    bare = frozenset({"sg", "1", "nom"})
    images = []
    for kind in np.repeat(KINDS, each).tolist():
        color, background = str(rng.choice(COLORS)), str(rng.choice(BACKGROUNDS))
        radius, drawn = float(rng.uniform(10, 24)), int(rng.integers(2**31))
        name = f"starter-object{DRAWING_VERSION}:{kind}:{color}:{background}:{radius:.6f}:{drawn}"
        images.append(DrawnImage(name, partial(draw_object, kind, color, background, radius, drawn)))
    return Labelled(
        name="starter-objects",
        lang=lang.code,
        images=tuple(images),
        labels=np.repeat(np.arange(len(KINDS)), each),
        classes=KINDS,
        names=tuple(tuple(word.inflect(bare | word.tags) for word in words.kinds[kind]) for kind in KINDS),
    )
