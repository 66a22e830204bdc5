"""What a recipe says about a tower, and the preprocessing that goes with its weights."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

STARTER = Path(__file__).parent.parent / "data" / "starter" / "weights"
"""Where the weights of the starter towers lie; a recipe names them ``model = "starter"``."""


class VisionSpec(BaseModel):
    """A timm model: a hub name, a local folder, or a safetensors file together with the timm name and arguments."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    weights: Path | None = None
    args: dict[str, Any] = {}
    image_px: int | None = Field(None, gt=0)
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    crop_pct: float | None = Field(None, gt=0, le=1)
    pooling: Literal["tower", "cls", "mean", "max"] = "tower"


class TextSpec(BaseModel):
    """A Hugging Face encoder by hub name or local folder.

    ``architecture`` states the facts of its ``config.json`` (``model_type``, sizes), so that its parameters can be
    counted without a download; real weights that do not fit it are refused.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    revision: str | None = None
    pooling: Literal["cls", "mean", "max"] = "mean"
    max_tokens: int = Field(64, gt=2)
    architecture: dict[str, Any] = {}


class Preprocessing(BaseModel):
    """How the tower's makers prepared an image: resize to ``image_px / crop_pct``, crop, scale by mean and std."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_pct: float
    interpolation: str


def fingerprint(module: nn.Module) -> str:
    """Hash every parameter and buffer by name, dtype, shape and value (SHA-256, first 16 hex digits)."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def masked_pool(tokens: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Pool ``(B, L, W)`` tokens to ``(B, W)``, looking only at positions where ``mask`` ``(B, L)`` is true."""
    if pooling == "cls":
        return tokens[:, 0]
    real = mask.unsqueeze(-1)
    if pooling == "max":
        return tokens.masked_fill(~real, float("-inf")).amax(1)
    return tokens.masked_fill(~real, 0).sum(1) / real.sum(1)


def first_trainable(stages: list[list[nn.Parameter]]) -> int:
    """Find the cut: the first stage in which something trains, or the number of stages when nothing does."""
    for index, parameters in enumerate(stages):
        if any(parameter.requires_grad for parameter in parameters):
            return index
    return len(stages)
