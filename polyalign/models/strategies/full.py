"""Train everything from the pretrained weights (as CLIP does, but pretrained)."""

from __future__ import annotations

from polyalign.models.aligner import Aligner
from polyalign.models.scope import Scope as Config
from polyalign.models.scope import parts, towers

__all__ = ["Config", "apply"]


def apply(aligner: Aligner, config: Config) -> None:
    """Unlock every parameter of the towers in reach."""
    for tower in towers(aligner, config):
        for part in parts(tower, config, "full"):
            part.requires_grad_(True)
