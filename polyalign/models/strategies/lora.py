"""Low-rank updates of the attention's input maps (LoRA, Hu et al. 2021), inserted by peft."""

from __future__ import annotations

from peft import LoraConfig, inject_adapter_in_model
from pydantic import Field
from torch import nn

from polyalign.models.aligner import Aligner
from polyalign.models.scope import Scope, blocks, towers
from polyalign.utils.errors import UserError

_TARGETS = ("qkv", "query", "key", "value", "q_proj", "k_proj", "v_proj", "q_lin", "k_lin", "v_lin", "Wqkv")


class Config(Scope):
    """``rank`` of each update and ``alpha``, which scales it by ``alpha / rank``."""

    rank: int = Field(8, ge=1)
    alpha: float = Field(16, gt=0)


def apply(aligner: Aligner, config: Config) -> None:
    """Put a low-rank update on the query, key and value maps; it is zero at the start.

    Raises:
        UserError: a tower has no transformer blocks or no such linear maps in them.
    """
    for tower in towers(aligner, config):
        inside = {id(module) for block in blocks(tower, config, "lora") for module in block.modules()}
        targets = [
            name
            for name, module in tower.model.named_modules()
            if id(module) in inside and isinstance(module, nn.Linear) and name.rpartition(".")[2] in _TARGETS
        ]
        if not targets:
            raise UserError(f"lora finds no query, key or value maps in the {tower.name}: use lilt or layernorm")
        lora = LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=targets)  # type: ignore[arg-type]
        inject_adapter_in_model(lora, tower.model)
