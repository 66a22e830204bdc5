"""A trained model to use from Python: it embeds images and sentences as unit vectors in one space."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from polyalign.data.pairs import FileImage, ImageRef
from polyalign.evaluation.encoders import Aligned, Encoder, Vectors, in_batches
from polyalign.evaluation.evaluate import open_model
from polyalign.utils.errors import UserError

Picture = str | Path | Image.Image | npt.NDArray[np.uint8] | ImageRef
"""An image: a path, a PIL image, an array ``(H, W, 3)`` or ``(H, W)`` of uint8, or an image of a ``PairTable``."""


@dataclass(frozen=True)
class MemoryImage:
    """A PIL image as an ``ImageRef``."""

    image: Image.Image

    def open(self) -> Image.Image:
        """Return the image in RGB."""
        return self.image.convert("RGB")

    def key(self) -> str:
        """Return a hash of the size and the pixels."""
        pixels = io.BytesIO()
        self.image.convert("RGB").save(pixels, "BMP")
        return hashlib.sha256(pixels.getbuffer()).hexdigest()


class Model:
    """An aligned model: a finished run, or an external model such as CLIP.

    >>> model = polyalign.load("runs/starter-sw-lilt-10k-pairs-s0")
    >>> photos = model.encode_image(["a.jpg", "b.jpg"])
    >>> model.similarity(photos, model.encode_text(["mbwa mweusi"]))  # (2, 1)
    """

    def __init__(self, encoder: Encoder) -> None:
        """Wrap an encoder; use ``polyalign.load`` to get one by name."""
        self.encoder = encoder

    @property
    def name(self) -> str:
        """Folder of the run, or name of the external model."""
        return self.encoder.name

    @property
    def lang(self) -> str | None:
        """Language the run was trained in; None for an external model."""
        return self.encoder.recipe.lang if isinstance(self.encoder, Aligned) else None

    def encode_image(self, images: Sequence[Picture]) -> Vectors:
        """Embed images.

        Args:
            images: paths, PIL images or uint8 arrays ``(H, W, 3)`` or ``(H, W)``.

        Returns:
            ``(N, D)`` float32, rows of unit length.

        Raises:
            UserError: a file is missing or is not an image, or an array has another shape or type.
        """
        refs = [_reference(image) for image in _listed(images, "encode_image takes a list of images")]
        if not refs:
            return np.empty((0, self.encode_text(["."]).shape[1]), np.float32)
        if not isinstance(self.encoder, Aligned):
            return self.encoder.encode_image(refs)
        aligner = self.encoder.aligner
        tower, place = aligner.vision, aligner.logit_scale.device
        return in_batches(
            refs,
            lambda batch: aligner.encode_image(torch.stack([tower.transform(_open(ref)) for ref in batch]).to(place)),
            "embedding images",
        )

    def encode_text(self, texts: Sequence[str], lang: str | None = None) -> Vectors:
        """Embed sentences.

        Args:
            texts: N sentences.
            lang: their language (default: that of the run), which a text tower such as NLLB is told by a token.

        Returns:
            ``(N, D)`` float32, rows of unit length.

        Raises:
            UserError: ``texts`` is a single string, or the text tower does not know the language.
        """
        texts = _listed(texts, "encode_text takes a list of sentences")
        if wrong := next((text for text in texts if not isinstance(text, str)), None):
            raise UserError(f"encode_text takes a list of sentences, not {wrong!r}")
        if not texts:
            return np.empty((0, self.encode_text(["."]).shape[1]), np.float32)
        if not isinstance(self.encoder, Aligned):
            return self.encoder.encode_text(texts, lang)
        aligner = self.encoder.aligner
        tower, place = aligner.text, aligner.logit_scale.device
        return in_batches(
            texts,
            lambda batch: aligner.encode_text(tower.collate(tower.tokenize(list(batch), lang)).to(place)),
            "embedding sentences",
        )

    def similarity(self, images: Vectors | Sequence[Picture], texts: Vectors | Sequence[str]) -> Vectors:
        """Return the cosine similarity ``(N, M)`` of N images and M sentences.

        Args:
            images: vectors ``(N, D)`` from ``encode_image``, or what it takes.
            texts: vectors ``(M, D)`` from ``encode_text``, or what it takes.

        Raises:
            UserError: as ``encode_image`` and ``encode_text``.
        """
        left = images if _are_vectors(images) else self.encode_image(cast("Sequence[Picture]", images))
        right = texts if _are_vectors(texts) else self.encode_text(cast("Sequence[str]", texts))
        found: Vectors = left @ right.T
        return found

    def __repr__(self) -> str:
        return f"polyalign.Model({self.name!r})"


def load(model: str | Path) -> Model:
    """Load a finished run, or an external model, onto the GPU where there is one.

    Args:
        model: folder of a run; or ``hf:NAME``, ``open_clip:NAME/PRETRAINED`` or ``mclip:NAME``.

    Raises:
        UserError: there is no finished run in the folder, or no such external model.
    """
    if not isinstance(model, str | Path):
        raise UserError(f"load takes the folder of a run or the name of an external model, not {model!r}")
    return Model(open_model(model))


def _listed(items: Any, usage: str) -> list[Any]:
    """Return the items as a list; a single image or sentence is not taken apart."""
    if isinstance(items, str | Path | Image.Image | np.ndarray) or not isinstance(items, Iterable):
        raise UserError(f"{usage}: put brackets around a single one")
    return list(items)


def _are_vectors(items: Any) -> TypeGuard[Vectors]:
    return isinstance(items, np.ndarray) and items.ndim == 2 and np.issubdtype(items.dtype, np.floating)


def _reference(image: Any) -> ImageRef:
    if isinstance(image, str | Path):
        return FileImage(Path(image))
    if isinstance(image, Image.Image):
        return MemoryImage(image)
    if hasattr(image, "open") and hasattr(image, "key"):
        return cast(ImageRef, image)
    if (
        isinstance(image, np.ndarray)
        and image.size
        and image.dtype == np.uint8
        and (image.ndim == 2 or image.shape[2:] == (3,))
    ):
        return MemoryImage(Image.fromarray(image))
    what = f"an array of {image.dtype} {image.shape}" if isinstance(image, np.ndarray) else f"a {type(image).__name__}"
    raise UserError(f"not an image: {what}; give a path, a PIL image, or uint8 (H, W, 3) or (H, W)")


def _open(image: ImageRef) -> Image.Image:
    try:
        return image.open()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"cannot read the image {getattr(image, 'path', '')}: {reason}") from error
