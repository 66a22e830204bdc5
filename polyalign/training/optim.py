"""The optimiser and its learning rate, step by step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from polyalign.config.schema import Optim


def adamw(parameters: dict[str, nn.Parameter], optim: Optim) -> torch.optim.AdamW:
    """Return AdamW with weight decay on matrices only, never on biases, norms and the temperature."""
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters.values() if p.ndim >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in parameters.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = next(iter(parameters.values())).device.type in ("cpu", "cuda")
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=optim.lr, betas=optim.betas, fused=fused
    )


def warmup_steps(optim: Optim, steps: int) -> int:
    """Return the steps of warm-up: those of the recipe, but at most a tenth of the run."""
    return min(optim.warmup_steps, steps // 10)


def learning_rate(optim: Optim, step: int, steps: int) -> float:
    """Return the rate of a step counted from zero: linear warm-up, then a cosine to ``lr * min_lr_ratio``."""
    warmup = warmup_steps(optim, steps)
    if step < warmup:
        return optim.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    lowest = optim.lr * optim.min_lr_ratio
    return lowest + (optim.lr - lowest) * 0.5 * (1 + math.cos(math.pi * done))
