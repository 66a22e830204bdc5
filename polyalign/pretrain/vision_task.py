"""What every way of pretraining a vision tower shares: its settings, the tower, and the form of an objective."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import timm
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from polyalign.pretrain.loop import Stage
from polyalign.pretrain.pixels import Pixels, normalised
from polyalign.utils.errors import UserError

STARTER_MODEL: Final = "vit_tiny_patch16_224"
STARTER_ARGS: Final = {"img_size": 64, "patch_size": 16, "embed_dim": 128, "depth": 4, "num_heads": 4}
_HALF: Final = (0.5, 0.5, 0.5)


class Config(BaseModel):
    """What decides the weights; the defaults are what the shipped tower was made with.

    ``images`` is a folder; without it the tower learns from the starter world. ``args`` go to timm: left out, they
    are the starter tower's for its model and none for any other.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: Path | None = None
    model: str = STARTER_MODEL
    args: dict[str, Any] | None = None
    image_px: int = Field(default=64, ge=8)
    mean: tuple[float, float, float] = _HALF
    std: tuple[float, float, float] = _HALF
    seed: int = Field(default=0, ge=0)
    batch_size: int = Field(default=128, ge=2)
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    warmup_steps: int = Field(default=100, ge=0)
    object_pictures: int = Field(default=20_000, ge=1, description="starter world: pictures of one object")
    object_steps: int = Field(default=1_500, ge=1)
    scene_pictures: int = Field(default=30_000, ge=1, description="starter world: pictures of a scene")
    scene_steps: int = Field(default=1_500, ge=1)
    probe_pictures: int = Field(default=5_000, ge=10)
    steps: int = Field(default=3_000, ge=1, description="on a folder of images")

    def timm_args(self) -> dict[str, Any]:
        """Give the arguments the model is built with."""
        if self.args is None:
            return dict(STARTER_ARGS) if self.model == STARTER_MODEL else {}
        return self.args

    def digest(self) -> str:
        """Give eight hex digits that stand for the settings."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Task:
    """An objective: ``model`` holds the tower and whatever heads it is taught through.

    ``measure`` gives what the card reports, once training is done; ``story`` says how it was taught; ``scratch`` are
    files that nobody needs afterwards.
    """

    model: nn.Module
    stages: Sequence[Stage]
    measure: Callable[[], dict[str, str]]
    story: str
    scratch: Sequence[Path]


class Tower(nn.Module):
    """A timm model without its classifier, fed by uint8 pixels."""

    def __init__(self, config: Config) -> None:
        """Build it with random weights, on the GPU if there is one.

        Raises:
            UserError: timm cannot build it, or it does not take images of this size.
        """
        super().__init__()
        name, args = config.model, config.timm_args()
        self._norm = config.mean, config.std
        try:
            self.model = timm.create_model(name, pretrained=False, num_classes=0, **args)
        except (RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"timm cannot build {name} with {args}: {error}") from error
        try:
            one = self.features(np.zeros((1, config.image_px, config.image_px, 3), dtype=np.uint8))
        except (AssertionError, RuntimeError) as error:
            taken = f"takes no images of {config.image_px} px ({error}): change image_px or args.img_size"
            raise UserError(f"{name} with {args} {taken}") from error
        self.width = one.shape[1]
        self.to("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def forward(self, pixels: Pixels) -> Tensor:
        """Give features ``(B, D)`` of ``(B, H, W, 3)`` uint8 pixels."""
        features: Tensor = self.model(normalised(pixels, *self._norm).to(self.device))
        return features

    @torch.no_grad()
    def features(self, pixels: Pixels, batch_size: int = 256) -> Tensor:
        """Give features ``(N, D)`` on the processor, dropout off."""
        self.eval()
        starts = range(0, len(pixels), batch_size)
        return torch.cat([self(np.asarray(pixels[start : start + batch_size])).cpu() for start in starts])
