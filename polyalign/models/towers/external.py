"""Models of open_clip and transformers that embed images and captions, and their image side as a vision tower."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from pydantic import ValidationError
from torch import nn

from polyalign.config.tower import Preprocessing, VisionSpec
from polyalign.models.towers.common import fingerprint
from polyalign.models.towers.text_loading import quiet
from polyalign.models.towers.vision import VisionTower, make_transform
from polyalign.utils.errors import UserError, did_you_mean
from polyalign.utils.hub import check_hub

FAMILIES = ("open_clip", "hf")
"""What the names of models with an image side begin with, before a colon."""

_GREY_LEVELS = 1.5
_CROPS: dict[str, Any] = {"shortest": "center", "squash": "squash"}
_RESAMPLE: dict[int, Any] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


class ExternalVision(VisionTower):
    """The image side of a model with two sides; its features ``(B, D)`` are the model's own image vectors."""

    def features(self, model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Return image vectors ``(B, D)``, not normalised."""
        scaled = (x - self.mean) / self.std
        return pooled(model.get_image_features(pixel_values=scaled) if _is_hf(model) else model(scaled))  # type: ignore[operator]


def build_external(spec: VisionSpec, *, pretrained: bool, preprocessing: Preprocessing | None) -> ExternalVision:
    """Build the image side of the model that a recipe names, such as ``open_clip:ViT-B-32/laion2b_s34b_b79k``.

    ``pretrained=False`` gives random weights. ``preprocessing`` (from a checkpoint) replaces the model's own.

    Raises:
        UserError: the model cannot be loaded, prepares images in another way than ``Preprocessing`` can say, or the
            recipe sets more than its name.
    """
    plain = VisionSpec(model=spec.model)
    if given := [name for name in VisionSpec.model_fields if getattr(spec, name) != getattr(plain, name)]:
        raise UserError(f"vision.{given[0]}: {spec.model} has its own architecture and preprocessing: leave it out")

    tower = tower_of(spec.model, load_both(spec.model, pretrained=pretrained), preprocessing)
    if tower is None:
        raise UserError(f"{spec.model} prepares images in a way that a vision tower cannot: choose another model")
    if pretrained:
        tower.fingerprint = fingerprint(tower.model)
    return tower


def tower_of(model: str, whole: nn.Module, preprocessing: Preprocessing | None = None) -> ExternalVision | None:
    """Return the image side of a loaded model as a tower; None if ``Preprocessing`` cannot say how it prepares images.

    ``model`` is its name, and the parameters are shared.

    Raises:
        UserError: the image side cannot be run on its own, or gives no single vector for an image.
    """
    how = preprocessing or _preprocessing(model, whole)
    if how is None:
        return None
    return ExternalVision(image_side(whole), how, "tower", lambda: image_side(load_both(model, pretrained=False)))


def load_both(model: str, *, pretrained: bool = True) -> nn.Module:
    """Load both sides of a model by name, in float32 and evaluation mode; ``pretrained=False`` gives random weights.

    Raises:
        UserError: its library is not installed, there is no such model, or it has no safetensors weights.
    """
    family, _, name = model.partition(":")
    with reported(model):
        if family == "open_clip":
            return open_clip_model(name, pretrained=pretrained)[0].eval()
        return cast(nn.Module, hf_model(name, pretrained=pretrained).eval())


@contextmanager
def reported(model: str) -> Iterator[None]:
    """Turn what a library raises while it loads a model into one line.

    Raises:
        UserError: the name is incomplete, or the library raised.
    """
    name = model.partition(":")[2]
    if not name:
        raise UserError(f"{model}: the model's name is missing after the colon, see polyalign eval --help")
    if not Path(name.removeprefix("local-dir:")).exists():
        check_hub()
    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"{model} cannot be loaded: {reason}") from error


def open_clip_model(name: str, *, pretrained: bool = True) -> tuple[nn.Module, str]:
    """Load ``ARCHITECTURE/PRETRAINED``, a folder or ``hf-hub:NAME`` with open_clip; return its name there too."""
    try:
        import open_clip
    except ImportError as error:
        raise UserError("open_clip is not installed: pip install 'polyalign[peers]'") from error
    architecture, weights = name, None
    if Path(name).is_dir():
        if not any(Path(name).glob("*.safetensors")):
            raise UserError(f"{name} holds no safetensors weights: other formats are not read, since they can run code")
        architecture = f"local-dir:{Path(name).resolve()}"
    elif not name.startswith("hf-hub:"):
        architecture, _, weights = name.partition("/")
        if architecture not in open_clip.list_models():
            raise UserError(f'open_clip has no "{architecture}": {did_you_mean(architecture, open_clip.list_models())}')
        if not weights:
            known = ", ".join(open_clip.list_pretrained_tags_by_model(architecture))
            raise UserError(f"name the weights, as in open_clip:{architecture}/PRETRAINED (known: {known})")
    with open_clip_log():
        if pretrained:
            model = open_clip.create_model_from_pretrained(architecture, pretrained=weights, return_transform=False)
        else:
            place = torch.get_default_device()
            model = open_clip.create_model(architecture, load_weights=False, pretrained_text=False, device=place)
    return cast(nn.Module, model), architecture


@contextmanager
def open_clip_log() -> Iterator[None]:
    """Keep open_clip, which logs with the functions of ``logging``, from configuring the log of the whole program."""
    handler = logging.NullHandler()
    logging.root.addHandler(handler)
    try:
        yield
    finally:
        logging.root.removeHandler(handler)


def hf_model(name: str, *, pretrained: bool = True) -> Any:
    """Load a model of transformers that has ``get_image_features`` and ``get_text_features``."""
    from transformers import AutoConfig, AutoModel

    with quiet():
        if pretrained:
            model = AutoModel.from_pretrained(name, dtype=torch.float32, use_safetensors=True, trust_remote_code=False)
        else:
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
            model = AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)
    if not hasattr(model, "get_image_features") or not hasattr(model, "get_text_features"):
        raise UserError(f"hf:{name} is a {type(model).__name__}, which does not embed both images and captions")
    return model


def image_side(whole: nn.Module) -> nn.Module:
    """Return the part of a model that computes image vectors; its parameters are shared."""
    if not _is_hf(whole):
        return cast(nn.Module, whole.visual)
    side = copy.copy(whole)
    side.__dict__["_modules"] = {name: part for name, part in whole._modules.items() if not name.startswith("text")}
    side.__dict__["_parameters"] = {}  # temperature and bias
    return side


def pooled(features: Any) -> torch.Tensor:
    """Return the features, which transformers wraps in an output object since version 5."""
    found: torch.Tensor = features if isinstance(features, torch.Tensor) else features.pooler_output
    return found


def _is_hf(model: nn.Module) -> bool:
    return hasattr(model, "get_image_features")


def _preprocessing(model: str, whole: nn.Module) -> Preprocessing | None:
    """Return how a model's images are prepared, None where that is more than ``Preprocessing`` can say."""
    with reported(model):
        if _is_hf(whole):
            from transformers import AutoImageProcessor

            name = model.partition(":")[2]
            processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
            return _of_processor(processor)
    facts: dict[str, Any] = cast(Any, whole).visual.preprocess_cfg
    if facts["resize_mode"] not in _CROPS:
        return None
    size = facts["size"]
    return Preprocessing(
        image_px=size if isinstance(size, int) or size[0] != size[1] else size[0],
        mean=facts["mean"],
        std=facts["std"],
        crop_pct=1,
        interpolation="bilinear" if facts["interpolation"] == "bilinear" else "bicubic",
        crop_mode=_CROPS[facts["resize_mode"]],
    )


def _of_processor(processor: Any) -> Preprocessing | None:
    """Read an image processor of transformers; None if a picture of noise comes out differently."""
    try:
        size = dict(processor.size)
        cut = dict(processor.crop_size) if getattr(processor, "do_center_crop", False) else size
        height, width = cut["height"], cut["width"]
        keeps_aspect = "shortest_edge" in size
        how = Preprocessing(
            image_px=height if height == width else (height, width),
            mean=processor.image_mean,
            std=processor.image_std,
            crop_pct=min(height, width) / size["shortest_edge"] if keeps_aspect else 1,
            interpolation=_RESAMPLE[int(processor.resample)],
            crop_mode="center" if keeps_aspect else "squash",
        )
    except (AttributeError, KeyError, TypeError, ValidationError):
        return None
    noise = Image.fromarray(np.random.default_rng(0).integers(256, size=(2 * height, 3 * width, 3), dtype=np.uint8))
    ours, theirs = make_transform(how)(noise), processor(images=[noise], return_tensors="pt")["pixel_values"][0]
    mean, std = (torch.tensor(values).view(-1, 1, 1) * 255 for values in (how.mean, how.std))
    # Libraries round resized pixels differently.
    is_same = ours.shape == theirs.shape and float((theirs * std + mean - ours).abs().max()) < _GREY_LEVELS
    return how if is_same else None
