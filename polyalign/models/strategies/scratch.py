"""Train everything from random weights, as CLIP does without pretraining: a baseline."""

from __future__ import annotations

from polyalign.models.aligner import Aligner
from polyalign.models.scope import Scope as Config
from polyalign.models.scope import towers
from polyalign.utils.errors import UserError

__all__ = ["Config", "apply"]


def apply(aligner: Aligner, config: Config) -> None:
    """Replace the pretrained weights of the towers in reach by random ones and unlock every parameter.

    Raises:
        UserError: ``layers`` is limited; random lower layers that stay frozen are no tower.
    """
    if config.layers != "all":
        raise UserError("scratch trains whole towers: leave layers at all, or use the strategy full")
    for tower in towers(aligner, config):
        tower.reinitialise()
        tower.model.requires_grad_(True)
