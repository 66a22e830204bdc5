"""One new transformer block on top of each tower, and LayerNorm (the paper's LilT_DA)."""

from __future__ import annotations

import copy

from torch import nn

from polyalign.models.aligner import Aligner
from polyalign.models.branches import branches, is_map
from polyalign.models.scope import Scope, blocks, parts, towers, unlock_norms
from polyalign.models.towers.base import Tower
from polyalign.models.towers.staging import is_inside
from polyalign.utils.errors import UserError


class Config(Scope):
    """``layernorm`` also trains the norms, of all layers or of the last k (the new block is one of them)."""

    layernorm: bool = True


def apply(aligner: Aligner, config: Config) -> None:
    """Append a copy of the tower's last block with fresh weights, its residual branches closed (zero) at the start.

    Raises:
        UserError: a tower has no transformer blocks, or calls one block several times.
    """
    for tower in towers(aligner, config):
        top = blocks(tower, config, "lilt-deep")[-1]
        if not tower.is_staged or _shares_parts(tower, top):
            raise UserError(
                f"lilt-deep copies the last block, and the {tower.name} runs a block several times or shares parts "
                "between blocks: use lilt or layernorm"
            )
        block = copy.deepcopy(top)
        _reset(tower, top, block)
        tower.append_block(block.requires_grad_(True))
        if config.layernorm:
            unlock_norms(parts(tower, config, "lilt-deep"))


def _shares_parts(tower: Tower, block: nn.Module) -> bool:
    """Whether parts of the block also belong to other modules; such parts are named after the first of them."""
    path = tower.path_of(block)
    inside = {id(module) for name, module in tower.model.named_modules() if is_inside(name, path)}
    return any(id(module) not in inside for module in block.modules())


def _reset(tower: Tower, model: nn.Module, block: nn.Module) -> None:
    """Draw linear maps from N(0, 0.02) as ViT and BERT do, reset norms, and close all residual branches."""
    ends = {branch.end for branch in branches(tower, model)}
    if not ends:
        raise UserError(f"lilt-deep finds no linear maps in the blocks of the {tower.name}: use layernorm or bitfit")
    for path, module in block.named_modules():
        if is_map(module):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if path in ends:
                nn.init.zeros_(module.weight)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
