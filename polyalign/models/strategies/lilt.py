"""Bottleneck adapters in every layer and trainable normalisation layers (the paper's LilT_LwA)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from polyalign.models.aligner import Aligner
from polyalign.models.scope import Scope, blocks, parts, towers, unlock_norms
from polyalign.models.towers.vision import VisionTower
from polyalign.utils.errors import UserError


class Config(Scope):
    """Adapters have ``bottleneck = width // reduction``; ``layernorm`` also trains the normalisation layers.

    With ``identity`` every adapter starts as the identity (``up`` at zero), as later work does. Without it adapters
    start as in LilT's code: weights from N(0, 0.02), biases zero.
    """

    reduction: int = Field(4, ge=1)
    identity: bool = True
    layernorm: bool = True


class Adapter(nn.Module):
    """``x + up(gelu(down(x)))`` on ``(..., width)`` (Houlsby et al. 2019)."""

    def __init__(self, width: int, bottleneck: int, *, identity: bool) -> None:
        """Create both linear maps: ``up`` zero if ``identity``, else weights from N(0, 0.02) and zero biases."""
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        if identity:
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)
            return
        for linear in (self.down, self.up):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x`` plus the output of the bottleneck, of the shape of ``x``."""
        correction: torch.Tensor = self.up(F.gelu(self.down(x)))
        return x + correction


def apply(aligner: Aligner, config: Config) -> None:
    """Insert two adapters in each layer, at the places of LilT's code.

    In a pre-norm ViT they adapt the input of each branch, before ``norm1`` and ``norm2``, and not the residual path; in
    a BERT layer they follow ``dense`` of attention and feed-forward, before the residual sum.

    Raises:
        UserError: a tower has no transformer blocks, or its layers are of an unsupported type.
    """
    for tower in towers(aligner, config):
        insert = _into_vision if isinstance(tower, VisionTower) else _into_text
        for block in blocks(tower, config, "lilt"):
            insert(block, tower.name, config)
        if config.layernorm:
            unlock_norms(parts(tower, config, "lilt"))


def _into_vision(block: nn.Module, name: str, config: Config) -> None:
    for norm in ("norm1", "norm2"):
        before = block.get_submodule(norm)
        width = next(iter(before.parameters())).shape[0]
        setattr(block, norm, nn.Sequential(_adapter(width, before, config), before))


def _into_text(block: nn.Module, name: str, config: Config) -> None:
    outputs = [
        part for part in block.modules() if {"dense", "dropout", "LayerNorm"} <= set(dict(part.named_children()))
    ]
    if len(outputs) != 2:  # attention's and feed-forward's
        raise UserError(
            f"lilt supports BERT-like layers (dense, dropout, LayerNorm twice) and the {name} has others: "
            "use lora, or --towers vision"
        )
    for output in outputs:
        dense = output.get_submodule("dense")
        width = next(iter(dense.parameters())).shape[0]
        # Dropout is off in frozen layers, so the adapter replaces it. Both in one module would count as trainable,
        # which would switch dropout on again.
        output.dropout = _adapter(width, dense, config)


def _adapter(width: int, beside: nn.Module, config: Config) -> Adapter:
    adapter = Adapter(width, max(1, width // config.reduction), identity=config.identity)
    return adapter.to(next(iter(beside.parameters())).device)
