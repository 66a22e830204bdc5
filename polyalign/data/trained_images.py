"""Fingerprints of the training images, stored with a checkpoint to detect leakage at evaluation."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch

from polyalign.data import image_prints, leakage
from polyalign.data.image_prints import Print
from polyalign.data.pairs import EncodedImage, PairTable
from polyalign.utils.errors import UserError, first_line
from polyalign.utils.storage import load_tensors, save_tensors

TRAINED_IMAGES = "train_images.safetensors"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RememberedImage(EncodedImage):
    """A training image of which only the perceptual hash is stored; its file may no longer exist."""

    name: str

    def source(self) -> NoReturn:
        """Raise FileNotFoundError: there is no image to open."""
        raise FileNotFoundError(f"{self.name}: only its hash was stored")

    def key(self) -> str:
        """Return a key that no image file has."""
        return f"remembered:{self.name}"


def save_trained_images(folder: Path, table: PairTable) -> None:
    """Write ids and perceptual hashes of the training images into the folder of a run (776 bytes an image)."""
    kept = {i: one for i, one in image_prints.prints(table.images).items() if one.problem is None}
    bits = np.array([one.bits for one in kept.values()], np.bool_).reshape(-1, 64)
    thumbs = np.array([one.thumb for one in kept.values()], np.uint8).reshape(-1, 768)
    tensors = {
        "index": torch.tensor(list(kept), dtype=torch.int64),
        "bits": torch.from_numpy(np.packbits(bits, axis=1)),
        "thumbs": torch.from_numpy(thumbs),
    }
    facts = {"name": table.name, "lang": table.lang, "ids": json.dumps(table.image_ids, ensure_ascii=False)}
    save_tensors(folder / TRAINED_IMAGES, tensors, facts)


def load_trained_images(folder: Path) -> PairTable | None:
    """Return the training images of a run as a table without captions, or None if the run did not store them.

    Raises:
        UserError: the file cannot be read.
    """
    path = folder / TRAINED_IMAGES
    if not path.is_file():
        return None
    tensors, facts = load_tensors(path)
    try:
        ids = tuple(map(str, json.loads(facts["ids"])))
        # Image ids are not unique across runs, so the folder is part of the key.
        images = tuple(RememberedImage(f"{folder.resolve()}:{image_id}") for image_id in ids)
        bits = np.unpackbits(tensors["bits"].numpy(), axis=1).astype(np.bool_)
        thumbs = tensors["thumbs"].numpy()
        image_prints.check_prints(bits, thumbs)
        for row, index in enumerate(tensors["index"].tolist()):
            image_prints.remember(images[index].key(), Print(bits[row], thumbs[row]))
        return PairTable(facts["name"], facts["lang"], "human", ids, images, (), np.empty(0, np.int64))
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a list of training images: {first_line(error)}") from error


def join(table: PairTable, earlier: PairTable | None) -> PairTable:
    """Return a table without captions of the images of both; an image with the same id and look counts once."""
    if earlier is None:
        return table
    index = {image_id: place for place, image_id in enumerate(table.image_ids)}
    now, then = image_prints.prints(table.images), image_prints.prints(earlier.images)
    added = {}
    for place, image_id in enumerate(earlier.image_ids):
        same = index.get(image_id)
        if same is not None and _look(now.get(same)) == _look(then.get(place)):
            continue
        name = image_id
        while name in index or name in added:
            name += " (earlier)"
        added[name] = earlier.images[place]
    ids, images = (*table.image_ids, *added), (*table.images, *added.values())
    return PairTable(table.name, table.lang, table.origin, ids, images, (), np.empty(0, np.int64))


def _look(found: Print | None) -> bytes:
    return b"" if found is None or found.problem is not None else found.thumb.tobytes()


def warn_if_trained_on(folder: Path, gallery: PairTable) -> None:
    """Log a warning if images of the gallery were in the training data of the run in ``folder``.

    Raises:
        UserError: the list of training images cannot be read.
    """
    trained = load_trained_images(folder)
    if trained is None:
        logger.info(f"{folder} was trained before training images were recorded: {gallery.name} cannot be compared")
        return
    found = leakage.find_leaks(trained, gallery)
    if found.leaks:
        logger.warning(f"warning: the model was trained on images of this gallery: {found.describe()}")
