"""Lock one tower, train the other whole (LiT, Zhai et al. 2022: vision locked)."""

from __future__ import annotations

from typing import Literal

from polyalign.models.aligner import Aligner
from polyalign.models.scope import Scope, parts, towers
from polyalign.utils.errors import UserError


class Config(Scope):
    """``towers`` names the one tower that trains: the text tower, unless told otherwise."""

    towers: Literal["both", "vision", "text"] = "text"


def apply(aligner: Aligner, config: Config) -> None:
    """Unlock every parameter of one tower.

    Raises:
        UserError: both towers are asked for, which is the strategy ``full``.
    """
    if config.towers == "both":
        raise UserError("lit locks one tower: use --towers text (the published way) or vision, or the strategy full")
    for tower in towers(aligner, config):
        for part in parts(tower, config, "lit"):
            part.requires_grad_(True)
