"""A two-layer projection head on each tower, beside the linear projection (SimCLR, Chen et al. 2020)."""

from __future__ import annotations

from pydantic import Field
from torch import nn

from polyalign.config.values import Whole
from polyalign.models.aligner import Aligner
from polyalign.models.heads import Corrected, closed
from polyalign.models.scope import Scope, towers


class Config(Scope):
    """``hidden`` is the width between the two layers."""

    hidden: Whole = Field(512, gt=0, le=65_536)


def apply(aligner: Aligner, config: Config) -> None:
    """Add to each linear projection two layers with a GELU between them, the upper one zero at the start.

    The linear projection is the residual path, as in a residual network; both towers stay as they are.
    """
    for tower in towers(aligner, config):
        name = f"{tower.kind}_projection"
        projection = getattr(aligner, name)
        width, out = projection.in_features, projection.out_features
        down = nn.Linear(width, config.hidden)
        layers = nn.Sequential(nn.LayerNorm(width), down, nn.GELU(), closed(config.hidden, out))
        setattr(aligner, name, Corrected(projection, layers))
