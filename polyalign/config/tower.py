"""Settings of the towers in a recipe, and the image preprocessing that belongs to the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from polyalign.config.values import Number, Whole

STARTER = Path(__file__).parent.parent / "data" / "starter" / "weights"
"""Folder with the weights of the starter towers (``model = "starter"`` in a recipe)."""


Pixels = Annotated[Whole, Field(gt=0, le=8_192)]
Channel = Annotated[Number, Field(ge=-1e6, le=1e6)]
Channels = tuple[Channel] | tuple[Channel, Channel, Channel]


class VisionSpec(BaseModel):
    """A timm model: a hub name, a local folder, or a safetensors file together with the timm name and arguments.

    Or the image side of a model of another library, ``open_clip:NAME/PRETRAINED`` or ``hf:NAME``, with nothing else.
    ``image_px`` is the size of the square image that the model takes, or its height and width.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    weights: Path | None = None
    args: dict[str, Any] = {}
    image_px: Pixels | tuple[Pixels, Pixels] | None = None
    mean: Channels | None = None
    std: Channels | None = None
    crop_pct: Number | None = Field(None, ge=0.05, le=1)
    pooling: Literal["tower", "cls", "mean", "max"] = "tower"


class TextSpec(BaseModel):
    """A Hugging Face encoder by hub name or local folder.

    ``pooling`` and ``prompt``, which is put before every caption, default to what a sentence-transformers folder says,
    else to ``mean`` and no prompt. ``pooler`` is the model's own pooled output. ``architecture`` states the facts of
    its ``config.json`` (``model_type``, sizes), so that its parameters can be counted without a download; real weights
    that do not fit it are refused.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    revision: str | None = None
    pooling: Literal["cls", "mean", "max", "last", "pooler"] | None = None
    prompt: str | None = None
    max_tokens: Whole = Field(64, gt=2, le=100_000)
    architecture: dict[str, Any] = {}


class Preprocessing(BaseModel):
    """How the tower's makers prepared an image: resize to ``image_px / crop_pct``, crop, scale by mean and std.

    ``crop_mode`` is timm's: ``center`` keeps the aspect and cuts the edges off, ``squash`` scales both edges, and
    ``border`` keeps the aspect and pads.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_px: Pixels | tuple[Pixels, Pixels]
    mean: Channels
    std: Channels
    crop_pct: Number = Field(ge=0.05, le=2)
    interpolation: Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]
    crop_mode: Literal["center", "squash", "border"] = "center"

    @model_validator(mode="after")
    def _channels(self) -> Preprocessing:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} values and std {len(self.std)}")
        if min(self.std) < 1e-6:
            raise ValueError("std must be above zero, 1e-6 or more")
        return self

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.image_px if isinstance(self.image_px, tuple) else (self.image_px, self.image_px)
