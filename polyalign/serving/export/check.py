"""Compare an exported model with the run that it was made from."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import Field

from polyalign.data.pairs import ImageRef, PairTable
from polyalign.evaluation.encoders import Encoder
from polyalign.evaluation.evaluate import Request
from polyalign.evaluation.model import MemoryImage
from polyalign.evaluation.record import Record
from polyalign.models.aligner import Aligner
from polyalign.utils.errors import UserError

logger = logging.getLogger(__name__)

RECORD = "export.json"

_GENERATED = 32
_SIZES = ((64, 64), (320, 200), (211, 350), (480, 480))


class Export(Record):
    """How an export was made and checked.

    ``image`` and ``text`` are the largest absolute differences of the unit vectors of ``images`` and ``texts``, which
    are those of ``compared_on``. ``checkpoint`` is the SHA-256 of the weights of the run. ``scale`` and ``bias`` turn a
    cosine similarity into a logit. ``recall`` is the mean recall of each precision on the same pairs, as a fraction.
    """

    target: str
    run: str
    checkpoint: str
    strategy: str
    lang: str
    compared_on: str
    images: int
    texts: int
    image: float
    text: float
    tolerance: float
    scale: float
    bias: float | None = None
    recall: dict[str, float] = Field(default_factory=dict)
    versions: dict[str, str]


@dataclass(frozen=True)
class Pairs:
    """Pictures and sentences to compare on; ``what`` says where they are from, and ``real`` pairs have a recall."""

    table: PairTable
    what: str
    real: bool = True


def test_pairs(run: Path, aligner: Aligner, lang: str, overrides: Mapping[str, Any], count: int) -> Pairs:
    """Return up to ``count`` images of the run's test split with their captions, or of ``overrides``.

    If the run's own data cannot be loaded, pictures and sentences are generated, and a message says so.

    Raises:
        UserError: the data that ``overrides`` name cannot be loaded.
    """
    try:
        table = next(Request.of(run, (lang,), "test", overrides).tables())
        table = table.take_images(np.unique(np.linspace(0, len(table.images) - 1, count).astype(int)))
        return Pairs(table, f"{len(table.images)} test images of {table.name} and their captions in {lang}")
    except UserError as error:
        if overrides:
            raise
        what = f"{_GENERATED} generated pictures and {_GENERATED} sentences of random words of the vocabulary"
        logger.warning(f"warning: the test pairs of {run} cannot be loaded ({error}): compared on {what}")
        return Pairs(_generated(aligner, lang), what, real=False)


def _generated(aligner: Aligner, lang: str) -> PairTable:
    rng = np.random.default_rng(0)
    tokenizer = aligner.text.tokenizer
    rows: list[tuple[str, str, ImageRef]] = []
    for number in range(_GENERATED):
        width, height = _SIZES[number % len(_SIZES)]
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
        words = tokenizer.decode(rng.integers(0, aligner.text.vocabulary, 1 + number % 20), skip_special_tokens=True)
        rows.append((str(number), words.strip() or "?", MemoryImage(coarse.resize((width, height)))))
    return PairTable.from_pairs("generated", lang, "generated", rows)


@dataclass(frozen=True)
class Vectors:
    """Unit vectors of the pictures ``(I, D)`` and the sentences ``(C, D)`` of a table."""

    images: npt.NDArray[np.float32]
    texts: npt.NDArray[np.float32]

    @classmethod
    def of(cls, encoder: Encoder, table: PairTable) -> Vectors:
        """Encode a table."""
        return cls(encoder.encode_image(table.images), encoder.encode_text(table.captions, table.lang))

    def difference(self, other: Vectors) -> tuple[float, float]:
        """Return the largest absolute difference of a coordinate, of pictures and of sentences."""
        pairs = ((self.images, other.images), (self.texts, other.texts))
        image, text = (float(np.abs(a - b).max()) if a.shape == b.shape else float("nan") for a, b in pairs)
        return image, text


def opened(images: Sequence[ImageRef]) -> list[Image.Image]:
    """Return the images in RGB."""
    return [image.open() for image in images]
