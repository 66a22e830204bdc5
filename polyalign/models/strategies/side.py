"""A narrow network beside each frozen tower that reads every layer (ladder side-tuning, Sung et al. 2022)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from polyalign.config.values import Whole
from polyalign.models.aligner import Aligner
from polyalign.models.heads import Corrected, closed
from polyalign.models.scope import Scope, blocks, towers
from polyalign.models.towers.staging import evaluation_mode
from polyalign.utils.errors import UserError, first_line


class Config(Scope):
    """``hidden`` is the width of the side network, which reads all ``layers`` or the last k, and the features."""

    hidden: Whole = Field(128, gt=0, le=65_536)


class Ladder(nn.Module):
    """A narrow residual network with one step for each layer of the tower that it reads."""

    def __init__(self, widths: list[int], hidden: int, out: int) -> None:
        """Make a step for every layer, ``widths`` wide, and a map to ``out`` that is zero at the start."""
        super().__init__()
        self.widths = widths
        self.down = nn.ModuleList(nn.Linear(width, hidden) for width in widths)
        self.step = nn.ModuleList(nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, hidden)) for _ in widths)
        self.norm = nn.LayerNorm(hidden)
        self.up = closed(hidden, out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``(B, out)`` for the pooled states of all layers, lowest first; the last ``widths`` are read."""
        state: torch.Tensor | float = 0.0
        read = torch.split(x[..., -sum(self.widths) :], self.widths, -1)
        for states, down, step in zip(read, self.down, self.step, strict=True):
            state = state + down(F.layer_norm(states, states.shape[-1:]))
            state = state + F.gelu(step(state))
        up: torch.Tensor = self.up(self.norm(state))
        return up


def apply(aligner: Aligner, config: Config) -> None:
    """Let each tower give the pooled states of all layers, which are cached, and add the side network to its features.

    No gradient runs through the towers. The states are pooled before the side network, not after it as published.

    Raises:
        UserError: a tower has no transformer blocks, or hidden states that cannot be pooled.
    """
    for tower in towers(aligner, config):
        read = blocks(tower, config, "side")
        if not tower.is_staged:
            raise UserError(f"side reads one layer after the other, and the {tower.name} runs a block twice: use mlp")
        tower.show_layers()
        try:
            with evaluation_mode(tower):
                states = tower.pooled_layers(tower.probe())
                torch.cat(states, -1)  # a network may fold images into their patches, so that rows differ
        except Exception as error:  # whatever a network of others calls its hidden states
            raise UserError(
                f"side cannot pool the layers of the {tower.name} ({first_line(error)}): use mlp"
            ) from error
        widths = [one.shape[-1] for one in (states if config.layers == "all" else states[-len(read) - 1 :])]
        name = f"{tower.kind}_projection"
        projection = getattr(aligner, name)
        setattr(aligner, name, Corrected(projection, Ladder(widths, config.hidden, projection.out_features)))
