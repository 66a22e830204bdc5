"""Settings of the towers in a recipe, and the image preprocessing that belongs to the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

STARTER = Path(__file__).parent.parent / "data" / "starter" / "weights"
"""Folder with the weights of the starter towers (``model = "starter"`` in a recipe)."""


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
