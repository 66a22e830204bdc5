"""Train every normalisation layer's weight and bias (the paper's LilT_LN)."""

from __future__ import annotations

from polyalign.models.aligner import Aligner
from polyalign.models.scope import Scope as Config
from polyalign.models.scope import parts, towers, unlock_norms
from polyalign.utils.errors import UserError

__all__ = ["Config", "apply"]


def apply(aligner: Aligner, config: Config) -> None:
    """Unlock the norms.

    Raises:
        UserError: a tower has no normalisation layer with parameters.
    """
    for tower in towers(aligner, config):
        if not unlock_norms(parts(tower, config, "layernorm")):
            raise UserError(f"layernorm finds no normalisation layer to train in the {tower.name}")
