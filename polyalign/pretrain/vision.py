"""Pretrain a vision tower alone: no image is ever paired with a text.

On the starter world it learns to name what was drawn; on a folder of folders, the folders' names; on a flat folder,
to tell two views of one image from all other images. What comes out is a folder that a recipe can name as its tower.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import timm
import tomli_w
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from polyalign.errors import UserError
from polyalign.pretrain import loop
from polyalign.pretrain.pixels import Pixels, normalised
from polyalign.progress import Progress

_STARTER_ARGS: Final = {"img_size": 64, "patch_size": 16, "embed_dim": 128, "depth": 4, "num_heads": 4}
_HALF: Final = (0.5, 0.5, 0.5)


class Config(BaseModel):
    """What decides the weights. ``images`` is a folder; without it the tower learns from the starter world."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: Path | None = None
    model: str = "vit_tiny_patch16_224"
    args: dict[str, Any] = _STARTER_ARGS
    image_px: int = Field(default=64, ge=8)
    mean: tuple[float, float, float] = _HALF
    std: tuple[float, float, float] = _HALF
    seed: int = Field(default=0, ge=0)
    batch_size: int = Field(default=128, ge=2)
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    warmup_steps: int = Field(default=100, ge=0)
    object_pictures: int = Field(default=20_000, ge=1)
    object_steps: int = Field(default=2_500, ge=1)
    scene_pictures: int = Field(default=30_000, ge=1)
    scene_steps: int = Field(default=2_500, ge=1)
    probe_pictures: int = Field(default=5_000, ge=10)
    steps: int = Field(default=5_000, ge=1, description="on a folder of images")


@dataclass(frozen=True)
class Task:
    """An objective: ``model`` holds the tower and whatever heads it is taught through.

    ``measure`` gives what the card reports, once training is done; ``story`` says how it was taught.
    """

    model: nn.Module
    stages: Sequence[loop.Stage]
    measure: Callable[[], dict[str, str]]
    story: str
    scratch: Sequence[Path]


def run(config: Config, out: Path, resume: bool, progress: Progress | None = None) -> Path:
    """Pretrain a tower into the folder ``out``: weights, ``tower.toml`` and a card with measured numbers.

    Raises:
        UserError: timm cannot build the model, the images cannot be read, or ``out`` holds another run.
    """
    from polyalign.pretrain import vision_folder, vision_starter

    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    tower = Tower(config)
    task = (vision_folder if config.images else vision_starter).task(config, tower, out, progress)
    settings = config.model_dump(mode="json", exclude={"seed"})
    loop.run_stages(
        task.model, task.stages, out=out, seed=config.seed, settings=settings, resume=resume, progress=progress
    )
    _write(config, tower, out, task.story, task.measure())
    for path in task.scratch:
        path.unlink()
    loop.discard(out)
    return out


class Tower(nn.Module):
    """A timm model without its classifier, fed by uint8 pixels."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        try:
            self.model = timm.create_model(config.model, pretrained=False, num_classes=0, **config.args)
        except (RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"timm cannot build {config.model} with {config.args}: {error}") from error
        self.width: int = self.model.num_features  # type: ignore[assignment]
        self._norm = config.mean, config.std
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


def digest(config: Config) -> str:
    """Give eight hex digits that stand for the settings."""
    return hashlib.sha256(json.dumps(config.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:8]


def _write(config: Config, tower: Tower, out: Path, story: str, measured: dict[str, str]) -> None:
    half = {name: tensor.half() for name, tensor in tower.model.state_dict().items()}
    loop.save_atomically(half, out / "model.safetensors")
    facts = config.model_dump(mode="json", include={"model", "args", "image_px", "mean", "std"}) | {"crop_pct": 1.0}
    (out / "tower.toml").write_text(tomli_w.dumps(facts), encoding="utf-8")
    (out / "README.md").write_text(_card(config, tower, story, measured), encoding="utf-8")


def _card(config: Config, tower: Tower, story: str, measured: dict[str, str]) -> str:
    parameters = sum(p.numel() for p in tower.parameters())
    rows = "\n".join(f"| {name} | {value} |" for name, value in measured.items())
    used = json.dumps(config.model_dump(mode="json"), indent=2)
    return f"""# A vision tower pretrained alone

timm `{config.model}`, {parameters:,} parameters, stored in half precision, {config.image_px} px. Made by
`polyalign pretrain vision`. It has never seen a text.

{story}

| measured | |
|---|---|
{rows}

Settings:

```json
{used}
```
"""
