"""A projection with a trained correction, which strategies put in place of the linear one."""

from __future__ import annotations

import torch
from torch import nn


class Corrected(nn.Linear):
    """``projection(features) + correction(x)``, where the features are the last ``in_features`` values of ``x``.

    ``correction`` gives zero at the start, so that training starts from the linear projection.
    """

    def __init__(self, projection: nn.Linear, correction: nn.Module) -> None:
        """Take over weight and bias of ``projection``."""
        device = projection.weight.device
        super().__init__(projection.in_features, projection.out_features, device=device)
        self.weight, self.bias = projection.weight, projection.bias
        self.correction = correction.to(device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``(B, out_features)`` for ``x`` ``(B, in_features or more)``."""
        correction: torch.Tensor = self.correction(x)
        return super().forward(x[..., -self.in_features :]) + correction


def last_parameters(projection: nn.Linear) -> list[nn.Parameter]:
    """Return the parameters whose first dimension is the joint space, in which they are added up."""
    maps: list[nn.Linear] = [projection]
    if isinstance(projection, Corrected):
        maps.append([module for module in projection.correction.modules() if isinstance(module, nn.Linear)][-1])
    return [parameter for one in maps for parameter in one.parameters(recurse=False)]


def closed(width: int, out: int) -> nn.Linear:
    """Return a linear map that gives zero until it is trained."""
    linear = nn.Linear(width, out)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
