"""Bottleneck adapters in every layer and trainable normalisation layers (the paper's LilT_LwA)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from polyalign.config.values import Whole
from polyalign.models.aligner import Aligner
from polyalign.models.branches import branches
from polyalign.models.scope import Scope, blocks, parts, towers, unlock_norms
from polyalign.models.towers.base import Tower
from polyalign.utils.errors import UserError


class Config(Scope):
    """Adapters have ``bottleneck = width // reduction``; ``layernorm`` also trains the normalisation layers.

    With ``identity`` every adapter starts as the identity (``up`` at zero), as later work does. Without it adapters
    start as in LilT's code: weights from N(0, 0.02), biases zero.
    """

    reduction: Whole = Field(4, gt=0, le=65_536)
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


class Adapted(nn.Module):
    """A linear map followed by an adapter; shows the attributes of the map, which some networks read."""

    def __init__(self, base: nn.Module, adapter: Adapter) -> None:
        """Put ``adapter`` after ``base``."""
        super().__init__()
        self.base = base
        self.adapter = adapter

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the adapter of the map's output."""
        adapted: torch.Tensor = self.adapter(self.base(*args, **kwargs))
        return adapted

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)


def apply(aligner: Aligner, config: Config) -> None:
    """Insert two adapters in each layer, at the places of LilT's code.

    In a vision block with ``norm1`` and ``norm2`` they adapt the input of each norm, and not the residual path; in
    any other block they follow the last linear map of attention and of the feed-forward part, before the residual sum.

    Raises:
        UserError: a tower has no transformer blocks, or blocks of another form.
    """
    for tower in towers(aligner, config):
        for block in blocks(tower, config, "lilt"):
            if tower.kind == "vision" and hasattr(block, "norm1") and hasattr(block, "norm2"):
                _before_norms(tower, block, config)
            else:
                _after_branches(tower, block, config)
        if config.layernorm:
            unlock_norms(parts(tower, config, "lilt"))


def _before_norms(tower: Tower, block: nn.Module, config: Config) -> None:
    for norm in ("norm1", "norm2"):
        before = block.get_submodule(norm)
        if isinstance(before, nn.modules.batchnorm._BatchNorm | nn.GroupNorm) or "2d" in type(before).__name__:
            raise UserError(
                f"lilt supports norms of the last dimension, and {norm} in the {tower.name} is a "
                f"{type(before).__name__}: use lora or layernorm"
            )
        width = next(iter(before.parameters())).shape[0]
        setattr(block, norm, nn.Sequential(_adapter(width, before, config), before))


def _after_branches(tower: Tower, block: nn.Module, config: Config) -> None:
    found = branches(tower, block)
    attention = [branch.end for branch in found if branch.is_attention]
    feed_forward = [branch.end for branch in found if not branch.is_attention]
    if not attention or not feed_forward:
        raise UserError(
            f"lilt finds no attention followed by a feed-forward part in the blocks of the {tower.name}: "
            "use the strategy layernorm, bitfit or full"
        )
    for path in (attention[-1], feed_forward[-1]):
        linear = block.get_submodule(path)
        width = getattr(linear, "out_features", None) or getattr(linear, "nf", None)  # ``nf`` in transformers' Conv1D
        if width is None:
            raise UserError(f"lilt supports linear maps, and {path} in the {tower.name} is a {type(linear).__name__}")
        block.set_submodule(path, Adapted(linear, _adapter(int(width), linear, config)))


def _adapter(width: int, beside: nn.Module, config: Config) -> Adapter:
    adapter = Adapter(width, max(1, width // config.reduction), identity=config.identity)
    return adapter.to(next(iter(beside.parameters())).device)
