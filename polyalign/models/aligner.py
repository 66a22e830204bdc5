"""The aligner: two towers, a projection on each, and a learned temperature."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from polyalign.config.tower import first_trainable
from polyalign.models.towers.text import TextTower, Tokens
from polyalign.models.towers.vision import VisionTower

MIN_LOGIT_SCALE, MAX_LOGIT_SCALE = math.log(1 / 0.5), math.log(1 / 0.001)
"""LilT clamps the temperature, which divides the similarities, to 0.001 .. 0.5."""


class Aligner(nn.Module):
    """Two frozen towers and what aligns them.

    ``encode_image`` and ``encode_text`` give unit vectors ``(B, D)``. A ``start`` above 0 says that the input is what
    the tower's ``run(x, 0, start)`` gave, so that a frozen prefix need not be computed again.
    """

    def __init__(self, vision: VisionTower, text: TextTower, dim: int, *, bias: bool = False) -> None:
        """Freeze both towers and put a fresh linear projection to ``dim`` on each.

        ``bias`` adds the learned logit bias of the sigmoid loss; scale and bias then start at SigLIP's ln 10 and -10.
        """
        super().__init__()
        self.vision = vision.requires_grad_(False)
        self.text = text.requires_grad_(False)
        self.vision_projection = nn.Linear(vision.width, dim)
        self.text_projection = nn.Linear(text.width, dim)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10 if bias else 1 / 0.07)))
        self.logit_bias = nn.Parameter(torch.tensor(-10.0)) if bias else None
        self.eval()

    @property
    def scale(self) -> torch.Tensor:
        """The factor on similarities, clamped as the published code does."""
        return self.logit_scale.clamp(MIN_LOGIT_SCALE, MAX_LOGIT_SCALE).exp()

    def cuts(self) -> tuple[int, int]:
        """Find for vision and text the first stage that trains: all below it is a constant of the data."""
        return first_trainable(self.vision.stages()), first_trainable(self.text.stages())

    def encode_image(self, x: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Give ``(B, D)`` unit vectors for uint8 pixels ``(B, 3, H, W)``, or for what stage ``start`` takes."""
        features = self.vision.run(x, start, len(self.vision.stages()))
        return F.normalize(self.vision_projection(features), dim=-1)

    def encode_text(self, x: Tokens | torch.Tensor, start: int = 0) -> torch.Tensor:
        """Give ``(B, D)`` unit vectors for tokens, or for what stage ``start`` takes."""
        features = x if isinstance(x, torch.Tensor) else self.text.run(x, start, len(self.text.stages()))
        return F.normalize(self.text_projection(cast(torch.Tensor, features)), dim=-1)

    def train(self, mode: bool = True) -> Aligner:
        """Switch to training what trains; everything frozen stays in evaluation mode.

        A frozen tower must not drop out activations or move batch-norm statistics (the published LilT code leaves both
        on). A part trains when all its parameters do. Statistics that were learned in pretraining stay even where
        the weights train: batches of scarce pairs are no better estimate of them.
        """
        _set_mode(self, mode)
        for tower in (self.vision, self.text):
            for module in tower.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and not tower.is_random:
                    module.training = False
        return self

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name the parameters that train."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def count(self) -> tuple[int, int]:
        """Count trainable and all parameters."""
        return sum(p.numel() for p in self.trainable().values()), sum(p.numel() for p in self.parameters())


def _set_mode(module: nn.Module, mode: bool) -> None:
    parameters = list(module.parameters())
    if mode and parameters and all(parameter.requires_grad for parameter in parameters):
        for part in module.modules():
            part.training = True
        return
    module.training = False
    for child in module.children():
        _set_mode(child, mode)
