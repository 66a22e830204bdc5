"""Compile or recompute the transformer blocks that run in training, in place, without changing parameter names."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from polyalign.config.schema import Train
from polyalign.models.aligner import Aligner
from polyalign.models.towers.base import Tower
from polyalign.utils.errors import UserError


def compile_blocks(aligner: Aligner) -> None:
    """Compile every block that runs in training at its first call; blocks of equal structure are compiled once.

    Shapes are dynamic, since the longest caption differs from batch to batch. Dropout uses the same random numbers as
    uncompiled, so a run differs only by rounding, and both passes of a micro-batch have the same dropout.

    Raises:
        UserError: something trains in a tower without transformer blocks.
    """
    for block in _running(aligner, "compile"):
        block.compile(dynamic=True, options={"fallback_random": True})


def recompute_blocks(aligner: Aligner) -> None:
    """Apply gradient checkpointing (Chen et al. 2016) to every block that runs in training.

    A block keeps only its input and runs again when its gradients are needed: the same gradients, dropout included,
    in a fraction of the memory and a third to a half more time. Frozen blocks above the lowest trainable one hold
    activations too, so training few parameters of every layer needs little less memory than training all of them.

    Raises:
        UserError: something trains in a tower without transformer blocks.
    """
    for block in _running(aligner, "recompute"):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def check_blocks(aligner: Aligner, train: Train) -> None:
    """Check that ``compile`` and ``recompute`` can be applied, before any data is read.

    Raises:
        UserError: something trains in a tower without transformer blocks.
    """
    for option in ("compile", "recompute"):
        if getattr(train, option):
            list(_running(aligner, option))


def _running(aligner: Aligner, option: str) -> Iterator[nn.Module]:
    towers: tuple[Tower, ...] = (aligner.vision, aligner.text)
    for tower, cut in zip(towers, aligner.cuts(), strict=True):
        if cut == tower.whole:
            continue
        if not tower.blocks:
            raise UserError(
                f"train.{option} needs transformer blocks, and the {tower.name} has none: leave it out "
                f"(--set train.{option}=false)"
            )
        yield from tower.blocks[max(cut - 1, 0) :]
