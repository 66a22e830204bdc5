"""Train the whole text tower and keep the vision tower locked (LiT, Zhai et al. 2022)."""

from __future__ import annotations

from typing import Literal

from polyalign.models.aligner import Aligner
from polyalign.models.scope import Scope, parts, towers
from polyalign.utils.errors import UserError


class Config(Scope):
    """``towers`` names the tower that trains; the default is the text tower, as published."""

    towers: Literal["both", "vision", "text"] = "text"


def apply(aligner: Aligner, config: Config) -> None:
    """Unlock every parameter of one tower.

    Raises:
        UserError: ``towers`` is ``both``, which is the strategy ``full``.
    """
    if config.towers == "both":
        raise UserError("lit locks one tower: use --towers text (the published way) or vision, or the strategy full")
    for tower in towers(aligner, config):
        for part in parts(tower, config, "lit"):
            part.requires_grad_(True)
