"""Train every bias (BitFit; the paper's LilT_BF)."""

from __future__ import annotations

from polyalign.models.aligner import Aligner
from polyalign.models.scope import Scope as Config
from polyalign.models.scope import parts, towers
from polyalign.utils.errors import UserError

__all__ = ["Config", "apply"]


def apply(aligner: Aligner, config: Config) -> None:
    """Unlock the parameters whose own name is ``bias`` or ends in ``_bias``.

    The published code asks for ``"bias" in name``, which also catches Swin's ``relative_position_bias_table``;
    asking for ``.bias`` at the end would miss BEiT's ``q_bias``.

    Raises:
        UserError: a tower has no bias.
    """
    for tower in towers(aligner, config):
        found = [
            parameter
            for part in parts(tower, config, "bitfit")
            for name, parameter in part.named_parameters()
            if (leaf := name.rpartition(".")[2]) == "bias" or leaf.endswith("_bias")
        ]
        if not found:
            raise UserError(f"bitfit finds no bias to train in the {tower.name}: use layernorm or lora")
        for parameter in found:
            parameter.requires_grad_(True)
