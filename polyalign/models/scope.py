"""Which towers and layers a strategy reaches: shared by all strategies."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from polyalign.models.aligner import Aligner
from polyalign.models.towers.base import Tower
from polyalign.utils.errors import UserError


class Scope(BaseModel):
    """The options that every strategy has.

    ``towers`` says which towers are adapted (the projections always train). ``layers`` is ``all`` or ``last:k``: only
    the top k blocks and the norms above them are touched, so that all below them can be computed once.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    towers: Literal["both", "vision", "text"] = "both"
    layers: str = Field("all", pattern=r"^(all|last:[1-9][0-9]{0,3})$")


def towers(aligner: Aligner, scope: Scope) -> list[Tower]:
    """List the towers the strategy reaches."""
    return [tower for tower in (aligner.vision, aligner.text) if scope.towers in ("both", tower.kind)]


def blocks(tower: Tower, scope: Scope, strategy: str) -> list[nn.Module]:
    """List the transformer blocks in reach, lowest first.

    Raises:
        UserError: the tower has no transformer blocks, or fewer than ``layers`` states.
    """
    found = tower.blocks
    if not found:
        other = "text" if tower.kind == "vision" else "vision"
        raise UserError(
            f"{strategy} needs transformer blocks in a list, and the {tower.name} has no such list: "
            f"use --towers {other}, or the strategy projection, lit or full"
        )
    if scope.layers == "all":
        return found
    count = int(scope.layers.removeprefix("last:"))
    if count > len(found):
        raise UserError(f"layers = {scope.layers}, but the {tower.name} has {len(found)} blocks")
    return found[-count:]


def parts(tower: Tower, scope: Scope, strategy: str) -> list[nn.Module]:
    """List the modules in reach: the whole network, or the last k blocks and what lies above them."""
    if scope.layers == "all":
        return [tower.model, tower.head]
    if not tower.blocks:
        raise UserError(
            f"layers = {scope.layers} needs transformer blocks in a list, and the {tower.name} has no such list: "
            "use --layers all"
        )
    return [*blocks(tower, scope, strategy), *tower.top]


def unlock_norms(modules: list[nn.Module]) -> int:
    """Train weight and bias of every normalisation layer; return how many parameters that is."""
    count = 0
    for module in (inner for outer in modules for inner in outer.modules()):
        if "Norm" in type(module).__name__:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(True)
                count += parameter.numel()
    return count
