"""A linear probe: how much of a label can be read off frozen features by one linear layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_DECAY = 1e-3


def linear_probe(features: Tensor, labels: Tensor, tests: list[tuple[Tensor, Tensor]]) -> list[float]:
    """Fit logistic regression on features ``(N, D)`` and labels ``(N,)``; give the accuracy on each test set.

    Features are standardised by the training set's mean and deviation. Full-batch L-BFGS from zero with a little
    weight decay, so that nothing is left to chance.
    """
    mean, std = features.mean(0), features.std(0).clamp_min(1e-6)
    layer = nn.Linear(features.shape[1], int(labels.max()) + 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    x = (features - mean) / std
    optimiser = torch.optim.LBFGS(layer.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimiser.zero_grad()
        loss = F.cross_entropy(layer(x), labels) + _DECAY * layer.weight.square().sum()
        torch.autograd.backward(loss)
        return loss.item()

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        return [(layer((test - mean) / std).argmax(1) == truth).float().mean().item() for test, truth in tests]
