"""torch.compile for what trains: each transformer block at and above the cut, in place, so that no name changes."""

from __future__ import annotations

from polyalign.aligner import Aligner
from polyalign.errors import UserError
from polyalign.towers.text import TextTower
from polyalign.towers.vision import VisionTower


def compile_blocks(aligner: Aligner) -> None:
    """Have every block that runs in training compiled when it is first run; blocks alike are compiled once.

    Shapes stay symbolic, since the longest caption of a batch is of another length each time. Dropout draws as it does
    uncompiled: a run is the same but for rounding, and both passes of a micro-batch drop out the same.

    Raises:
        UserError: something trains in a tower without transformer blocks.
    """
    towers: tuple[VisionTower | TextTower, ...] = (aligner.vision, aligner.text)
    for tower, cut in zip(towers, aligner.cuts(), strict=True):
        if cut == len(tower.stages()):
            continue
        if tower.blocks is None:
            raise UserError(
                f"train.compile works on transformer blocks and the {tower.name} has none: leave it out "
                "(--set train.compile=false)"
            )
        for block in list(tower.blocks)[max(cut - 1, 0) :]:
            block.compile(dynamic=True, options={"fallback_random": True})
