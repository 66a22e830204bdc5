"""What is done to each transformer block that runs in training, in place, so that no name changes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from polyalign.models.aligner import Aligner
from polyalign.models.towers.text import TextTower
from polyalign.models.towers.vision import VisionTower
from polyalign.utils.errors import UserError


def compile_blocks(aligner: Aligner) -> None:
    """Have every block that runs in training compiled when it is first run; blocks alike are compiled once.

    Shapes stay symbolic, since the longest caption of a batch is of another length each time. Dropout draws as it does
    uncompiled: a run is the same but for rounding, and both passes of a micro-batch drop out the same.

    Raises:
        UserError: something trains in a tower without transformer blocks.
    """
    for block in _running(aligner, "compile"):
        block.compile(dynamic=True, options={"fallback_random": True})


def recompute_blocks(aligner: Aligner) -> None:
    """Have every block that runs in training keep its input alone, and run again when its gradients are needed.

    Gradient checkpointing (Chen et al. 2016): the same gradients, dropout included, for a third to a half more time, in
    a fraction of the memory. Frozen blocks between those that train hold activations too, so that training few
    parameters of every layer needs little less memory than training all of them.

    Raises:
        UserError: something trains in a tower without transformer blocks.
    """
    for block in _running(aligner, "recompute"):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def _running(aligner: Aligner, option: str) -> Iterator[nn.Module]:
    towers: tuple[VisionTower | TextTower, ...] = (aligner.vision, aligner.text)
    for tower, cut in zip(towers, aligner.cuts(), strict=True):
        if cut == len(tower.stages()):
            continue
        if tower.blocks is None:
            raise UserError(
                f"train.{option} works on transformer blocks and the {tower.name} has none: leave it out "
                f"(--set train.{option}=false)"
            )
        yield from list(tower.blocks)[max(cut - 1, 0) :]
