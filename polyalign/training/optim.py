"""The optimiser and its learning rate, step by step."""

from __future__ import annotations

import math
from typing import Any

import torch

from polyalign.config.schema import Optim
from polyalign.models.aligner import Aligner
from polyalign.models.towers.base import Tower
from polyalign.utils.errors import UserError


def adamw(aligner: Aligner, optim: Optim) -> torch.optim.AdamW:
    """Return AdamW with weight decay on matrices only, never on biases, norms and the temperature.

    Parameters of one rate and one weight decay are a group; its ``lr_scale`` is its rate divided by ``optim.lr``.

    Raises:
        UserError: ``optim.layer_decay`` is set and a trained tower cannot be divided into blocks.
    """
    trainable = aligner.trainable()
    towers: dict[str, Tower] = {"vision": aligner.vision, "text": aligner.text}
    heights: dict[int, int] = {}
    groups: dict[tuple[bool, float, float], dict[str, Any]] = {}
    for is_matrix in (True, False):
        for name, parameter in trainable.items():
            if (parameter.ndim >= 2) != is_matrix:
                continue
            part = name.partition(".")[0]
            if part in towers and optim.layer_decay != 1 and id(parameter) not in heights:
                heights |= _heights(towers[part])
            part = part if part in towers else "projection"
            scale = _or(getattr(optim, f"{part}_lr"), optim.lr) / optim.lr
            scale *= optim.layer_decay ** heights.get(id(parameter), 0)
            decay = _or(getattr(optim, f"{part}_weight_decay"), optim.weight_decay) if is_matrix else 0.0
            new = {"params": [], "lr": optim.lr * scale, "lr_scale": scale, "weight_decay": decay}
            groups.setdefault((is_matrix, scale, decay), new)["params"].append(parameter)
    fused = next(iter(trainable.values())).device.type in ("cpu", "cuda")
    return torch.optim.AdamW(list(groups.values()), lr=optim.lr, betas=optim.betas, fused=fused)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _heights(tower: Tower) -> dict[int, int]:
    """Return how many stages lie above each parameter: 0 above the blocks, 1 in the top block, most in embeddings.

    Raises:
        UserError: the tower does not run its blocks once each, in order.
    """
    if not tower.is_staged:
        raise UserError(
            f"optim.layer_decay needs transformer blocks that run one after the other, and the {tower.name} has none: "
            "leave it at 1 and use optim.vision_lr or optim.text_lr"
        )
    stages = reversed(tower.stages())
    return {id(parameter): height for height, stage in enumerate(stages) for parameter in stage}


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
