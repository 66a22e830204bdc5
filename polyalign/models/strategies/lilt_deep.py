"""One new transformer block on top of each tower, and LayerNorm (the paper's LilT_DA)."""

from __future__ import annotations

import copy

from torch import nn

from polyalign.models.aligner import Aligner
from polyalign.models.scope import Scope, blocks, parts, towers, unlock_norms
from polyalign.models.towers.vision import VisionTower


class Config(Scope):
    """``layernorm`` also trains the norms, of all layers or of the last k (the new block is one of them)."""

    layernorm: bool = True


def apply(aligner: Aligner, config: Config) -> None:
    """Append a block of the tower's own make with fresh weights, its residual branches closed (zero) at the start.

    Raises:
        UserError: a tower has no transformer blocks.
    """
    for tower in towers(aligner, config):
        top = blocks(tower, config, "lilt-deep")[-1]
        block = copy.deepcopy(top)
        _reset(block)
        stack = tower.blocks
        assert stack is not None  # `blocks` above has refused a tower without
        stack.append(block.requires_grad_(True))
        if not isinstance(tower, VisionTower):
            tower.model.config.num_hidden_layers = len(stack)  # type: ignore[union-attr]
        if config.layernorm:
            unlock_norms(parts(tower, config, "lilt-deep"))


_BRANCH_ENDS = ("attn.proj", "mlp.fc2", "attention.output.dense", "output.dense")


def _reset(block: nn.Module) -> None:
    """Draw linear maps from N(0, 0.02) as ViT and BERT do, reset norms, close both residual branches."""
    for path, module in block.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if path in _BRANCH_ENDS:
                nn.init.zeros_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
