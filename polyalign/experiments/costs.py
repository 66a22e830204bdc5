"""What a run costs: sizes from shapes on the meta device, and times of a few steps with random weights."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from torch.autograd.graph import saved_tensors_hooks

from polyalign.config.schema import Recipe
from polyalign.data.pairs import ImageRef
from polyalign.models.aligner import Aligner
from polyalign.models.build import build_aligner
from polyalign.models.embed import PairFeatures
from polyalign.models.feature_cache import CachedFeatures
from polyalign.models.parameter_count import untrained
from polyalign.models.towers.text import Tokens
from polyalign.training.loop import Loop
from polyalign.training.recompute import recompute_blocks
from polyalign.utils.errors import UserError

_ENOUGH_SECONDS = 0.5  # of a step: longer ones are in proportion to their pairs
_IMAGES = 8
_ADAM = 16  # bytes of a trained parameter besides its weight: gradient, two moments, and the best state so far
_FORWARD = 1 / 3  # of a training step


@dataclass(frozen=True)
class Shapes:
    """Numbers of parameters, bytes to keep, and bytes that a step holds.

    Attributes:
        trainable: number of trainable parameters.
        total: number of all parameters.
        image: cached bytes of an image.
        caption: cached bytes of a caption, if they do not depend on its length.
        token: cached bytes of a token.
        held: bytes that a step holds for the gradients of a pair.
    """

    trainable: int
    total: int
    image: int
    caption: int
    token: int
    held: int

    def memory(self, rows: int, batch: int) -> int:
        """Return the bytes of a training step: ``rows`` pairs at a time, of a batch."""
        return 4 * self.total + _ADAM * self.trainable + rows * self.held + 16 * batch**2


def shapes(recipe: Recipe, longest: int) -> Shapes:
    """Compute the shapes of a run without weights; its longest caption has ``longest`` tokens.

    Raises:
        UserError: a tower does not support the strategy, or its architecture is not known here.
    """
    aligner = untrained(recipe).float()  # as weights are loaded, whatever the configuration states
    vision_cut, text_cut = _cuts(aligner, recipe)
    itemsize = np.dtype(recipe.cache.dtype).itemsize
    pixels, tokens = aligner.vision.probe(), aligner.text.probe()
    tokens = Tokens(tokens.ids[:, :longest], tokens.mask[:, :longest])
    with torch.no_grad():
        images, texts = aligner.vision.prefix(pixels, vision_cut), aligner.text.prefix(tokens, text_cut)
    image = math.prod(images.shape[1:]) * (itemsize if vision_cut else 1)
    by_token = isinstance(texts, Tokens)
    width = 0 if text_cut == 0 else (aligner.text.values(texts) if by_token else texts).shape[-1] * itemsize
    held = _held(aligner, recipe, images, vision_cut, texts, text_cut) // len(pixels)
    return Shapes(*aligner.count(), image, 0 if by_token else width, width if by_token else 0, held)


def _cuts(aligner: Aligner, recipe: Recipe) -> tuple[int, int]:
    return aligner.cuts() if recipe.cache.prefix else (0, 0)


def _held(aligner: Aligner, recipe: Recipe, images: Any, vision_cut: int, texts: Any, text_cut: int) -> int:
    """Return the bytes of the activations that the gradients of these inputs need."""
    if recipe.train.recompute:
        recompute_blocks(aligner)
    held: dict[int, int] = {}
    kept = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        held[storage._cdata] = storage.nbytes()
        kept.append(tensor)  # so that no other storage takes its place
        return tensor

    aligner.train()
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        made = aligner.encode_image(images, vision_cut), aligner.encode_text(texts, text_cut)
    own = {tensor.untyped_storage()._cdata for tensor in (*aligner.parameters(), *aligner.buffers())}
    del made
    return sum(size for place, size in held.items() if place not in own)


@dataclass(frozen=True)
class Seconds:
    """Seconds to prepare an image and a caption, and those of a training step and of the evaluation of a pair."""

    image: float
    caption: float
    step: float
    evaluation: float


def measure(recipe: Recipe, images: Sequence[ImageRef], lengths: Sequence[int], batch: int) -> Seconds:
    """Time the frozen layers and training steps on this machine, with random weights.

    Steps have more and more pairs until one takes half a second; larger ones are in proportion.

    Args:
        recipe: recipe of the run.
        images: some of its images.
        lengths: numbers of tokens of some captions, as many as images or more.
        batch: number of pairs of a step.
    """
    accelerator = Accelerator(mixed_precision="no")
    aligner = build_aligner(recipe, pretrained=False).float().to(accelerator.device)
    vision_cut, text_cut = _cuts(aligner, recipe)
    images, count = images[:_IMAGES], len(images[:_IMAGES])
    pictures, image_seconds = _images(aligner, recipe, images, vision_cut)
    captions, caption_seconds = _captions(aligner, recipe, lengths[:count], text_cut)
    order = np.arange(count)
    features = PairFeatures(pictures, captions, order, order, np.zeros(count, np.int64))
    optim = recipe.optim.model_copy(update={"warmup_steps": 0})
    loop = Loop(recipe.model_copy(update={"optim": optim}), aligner, features, [features], accelerator)
    aligner.train()
    pairs, seconds = 1, 0.0
    while seconds < _ENOUGH_SECONDS and pairs < batch:
        pairs = min(2 * pairs, batch)
        seconds = _step(loop, pairs)
    seconds = min(seconds, _step(loop, pairs))
    return Seconds(image_seconds, caption_seconds, seconds * batch / pairs, seconds * _FORWARD / pairs)


def _step(loop: Loop, pairs: int) -> float:
    """Take a training step on this number of pairs, and return its seconds."""
    began = time.perf_counter()
    loop.optimiser.zero_grad(set_to_none=True)
    loss = loop.backward(np.arange(pairs) % len(loop.features.captions), 0)
    loop.optimiser.step()
    loss.item()  # waits for a GPU
    return time.perf_counter() - began


@torch.no_grad()
def _images(aligner: Aligner, recipe: Recipe, refs: Sequence[ImageRef], cut: int) -> tuple[CachedFeatures, float]:
    """Return what is cached of some images, and the seconds that one takes."""

    def compute(refs: Sequence[ImageRef]) -> npt.NDArray[Any]:
        pixels = torch.stack([aligner.vision.transform(ref.open()) for ref in refs])
        return _array(aligner.vision.prefix(pixels.to(aligner.logit_scale.device), cut), recipe)

    refs = _opened(refs)
    compute(refs[:1])  # the first call takes longer
    began = time.perf_counter()
    values = compute(refs)
    return CachedFeatures(values, cut), (time.perf_counter() - began) / len(refs)


def _opened(refs: Sequence[ImageRef]) -> list[ImageRef]:
    """Return the first few images that can be opened.

    Raises:
        UserError: none can.
    """
    found: list[ImageRef] = []
    for ref in refs:
        try:
            ref.open()
        except (OSError, ValueError):  # `data check` reports these
            continue
        found.append(ref)
        if len(found) == _IMAGES:
            break
    if not found:
        raise UserError("no image of the training data can be opened: see `polyalign data check`")
    return found


@torch.no_grad()
def _captions(aligner: Aligner, recipe: Recipe, lengths: Sequence[int], cut: int) -> tuple[CachedFeatures, float]:
    """Return what is cached of random captions of these lengths, and the seconds that one takes."""
    rng, tower = np.random.default_rng(0), aligner.text
    ids = [rng.integers(tower.vocabulary, size=length).tolist() for length in lengths]
    offsets, flat = np.cumsum([0, *lengths], dtype=np.int64), np.concatenate(ids).astype(np.int64)
    if cut == 0:
        return CachedFeatures(flat, 0, offsets, pad=tower.pad), 0.0
    tokens = tower.collate(ids).to(aligner.logit_scale.device)
    tower.prefix(Tokens(tokens.ids[:1], tokens.mask[:1]), cut)
    began = time.perf_counter()
    made = tower.prefix(tokens, cut)
    seconds = (time.perf_counter() - began) / len(lengths)
    if isinstance(made, Tokens):
        return CachedFeatures(_array(tower.values(made)[made.mask], recipe), cut, offsets, flat, tower.pad), seconds
    return CachedFeatures(_array(made, recipe), cut, pad=tower.pad), seconds


def _array(values: torch.Tensor, recipe: Recipe) -> npt.NDArray[Any]:
    return values.cpu().numpy() if values.dtype == torch.uint8 else values.cpu().numpy().astype(recipe.cache.dtype)
