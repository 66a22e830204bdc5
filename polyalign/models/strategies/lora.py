"""Low-rank updates of the attention's input maps (LoRA, Hu et al. 2021), inserted by peft."""

from __future__ import annotations

import math

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from pydantic import Field
from torch import nn
from torch.nn.utils import parametrize

from polyalign.config.values import Number, Whole
from polyalign.models.aligner import Aligner
from polyalign.models.branches import is_map
from polyalign.models.scope import Scope, blocks, towers
from polyalign.models.towers.base import Tower
from polyalign.utils.errors import UserError

TARGETS = (
    *("qkv", "kv", "Wqkv", "in_proj", "c_attn", "query_key_value"),
    *(f"{part}{ending}" for part in ("q", "k", "v") for ending in ("", "_proj", "_lin")),
    *(f"{part}{ending}" for part in ("query", "key", "value") for ending in ("", "_proj")),
)
"""Names of the query, key and value maps in the families of timm and transformers."""


class Config(Scope):
    """``rank`` of each update and ``alpha``, which scales it by ``alpha / rank``.

    ``target_modules`` are the names of the linear maps in each block (default: the query, key and value maps).
    """

    rank: Whole = Field(8, gt=0, le=65_536)
    alpha: Number = Field(16, gt=0, le=1e6)
    target_modules: tuple[str, ...] | None = None


class LowRank(nn.Module):
    """``weight + b a alpha / rank``, for maps whose weight a network reads without calling the map, as in BEiT."""

    def __init__(self, weight: torch.Tensor, config: Config) -> None:
        """Create ``a`` as peft does, and ``b`` at zero."""
        super().__init__()
        self.a = nn.Parameter(torch.empty(config.rank, weight.shape[1], device=weight.device))
        self.b = nn.Parameter(torch.zeros(weight.shape[0], config.rank, device=weight.device))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))
        self.factor = config.alpha / config.rank

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the updated weight, of the shape of ``weight``."""
        return weight + self.b @ self.a * self.factor


def apply(aligner: Aligner, config: Config) -> None:
    """Put a low-rank update on the query, key and value maps; it is zero at the start.

    Raises:
        UserError: a tower has no transformer blocks or no such linear maps in them.
    """
    for tower in towers(aligner, config):
        found = _targets(tower, config)
        if not found:
            wanted = ", ".join(config.target_modules or ("query, key or value map",))
            there = ", ".join(_maps(tower, config))
            way_out = f"set strategy.target_modules to some of {there}" if there else "use layernorm or bitfit"
            raise UserError(f"lora finds no {wanted} in the {tower.name}: {way_out}")
        if called := [path for path in found if path in tower.trace.calls]:
            lora = LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=called)  # type: ignore[arg-type]
            inject_adapter_in_model(lora, tower.model)
            continue
        for path in found:
            linear = tower.model.get_submodule(path)
            low_rank = LowRank(linear.weight, config)  # type: ignore[arg-type]
            parametrize.register_parametrization(linear, "weight", low_rank, unsafe=True)
            linear.parametrizations.weight.original.requires_grad_(False)  # type: ignore[union-attr]


def _targets(tower: Tower, config: Config) -> list[str]:
    """Return the paths of the linear maps in reach that are to be updated."""
    names = config.target_modules or TARGETS
    inside = {id(module) for block in blocks(tower, config, "lora") for module in block.modules() if is_map(module)}
    return [
        path
        for path, module in tower.model.named_modules()
        if id(module) in inside and path.rpartition(".")[2] in names
    ]


def _maps(tower: Tower, config: Config) -> list[str]:
    top = blocks(tower, config, "lora")[-1]
    return sorted({path.rpartition(".")[2] for path, module in top.named_modules() if is_map(module)})


def merge(network: nn.Module) -> None:
    """Add the low-rank updates in a network to its weights, and put the plain linear maps back in place."""
    for path, module in list(network.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge(safe_merge=True)
            network.set_submodule(path, module.get_base_layer())
        elif parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
