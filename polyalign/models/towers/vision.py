"""The vision tower: any timm model, cut into stages so that a frozen lower part can be computed once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import timm
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file
from timm.data import create_transform, resolve_model_data_config
from timm.models import VisionTransformer
from torch import nn

from polyalign.config.language import describe_error
from polyalign.config.shipped import read_toml
from polyalign.config.tower import STARTER, Preprocessing, VisionSpec
from polyalign.models.towers.common import fingerprint, masked_pool, structure
from polyalign.utils.errors import UserError, did_you_mean


class VisionTower(nn.Module):
    """A timm model without its classifier.

    A plain ViT has ``blocks + 2`` stages: pixels to tokens, each block, norm and pooling. Any other network is
    one stage. ``run(x, start, stop)`` computes the stages from ``start`` up to but not including ``stop``; stage 0
    takes ``(B, 3, H, W)`` uint8 pixels, and the last stage gives ``(B, width)`` features. ``variant`` identifies
    what is computed with the weights: pooling, number of heads, activations.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, model: nn.Module, preprocessing: Preprocessing, pooling: str, fresh: Callable[[], nn.Module]
    ) -> None:
        """Wrap ``model``; ``fresh`` makes it anew with random weights."""
        super().__init__()
        self.model = model
        self.preprocessing = preprocessing
        self.pooling = pooling
        self.fingerprint: str | None = None
        self.variant = f"{pooling} {structure(model)}"
        self.is_random = False
        self._fresh = fresh
        # Some heads widen what they pool; poolings of our own pass them by.
        widened = getattr(model, "head_hidden_size", None) if pooling == "tower" else None
        self.width = int(widened or cast(int, model.num_features))
        self.name = f"vision tower ({type(model).__name__})"
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, 3, 1, 1) * 255, persistent=False)
        self._transform = _transform(preprocessing)

    def transform(self, image: Image.Image) -> torch.Tensor:
        """Resize and crop an RGB image to ``(3, image_px, image_px)`` uint8; scaling happens in stage 0."""
        return cast(torch.Tensor, self._transform(image))

    @property
    def blocks(self) -> nn.Sequential | None:
        """The transformer blocks, lowest first, or None in a network without pre-norm transformer blocks."""
        blocks = getattr(self.model, "blocks", None)
        if isinstance(blocks, nn.Sequential | nn.ModuleList) and all(
            hasattr(block, "norm1") and hasattr(block, "norm2") and hasattr(block, "attn") for block in blocks
        ):
            return cast(nn.Sequential, blocks)
        return None

    @property
    def is_staged(self) -> bool:
        """Whether the forward pass is the plain ViT's, so that it can be stopped and resumed between blocks."""
        return getattr(type(self.model), "forward_features", None) is VisionTransformer.forward_features

    @property
    def top(self) -> list[nn.Module]:
        """The modules above the blocks: final norms and pooling."""
        names = ("norm", "fc_norm", "attn_pool", "head")
        return [part for name in names if isinstance(part := getattr(self.model, name, None), nn.Module)]

    def reinitialise(self) -> None:
        """Throw the pretrained weights away: random weights, as timm initialises this model."""
        self.model = self._fresh()
        self.is_random = True

    def stages(self) -> list[list[nn.Parameter]]:
        """List the parameters of every stage, lowest first."""
        if not self.is_staged:
            return [list(self.model.parameters())]
        vit = cast(VisionTransformer, self.model)
        blocks = [list(block.parameters()) for block in vit.blocks]
        head = [parameter for top in self.top for parameter in top.parameters()]
        above = {id(parameter) for stage in [*blocks, head] for parameter in stage}
        embed = [parameter for parameter in vit.parameters() if id(parameter) not in above]
        return [embed, *blocks, head]

    def run(self, x: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Compute stages ``start`` to ``stop`` (exclusive)."""
        for stage in range(start, stop):
            x = self._stage(x, stage)
        return x

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return ``(B, width)`` features for ``(B, 3, H, W)`` uint8 pixels."""
        return self.run(pixels, 0, len(self.stages()))

    def _stage(self, x: torch.Tensor, stage: int) -> torch.Tensor:
        if stage == 0:
            x = (x - self.mean) / self.std
        if not self.is_staged:
            x = x.contiguous(memory_format=torch.channels_last)  # twice as fast for MobileNetV2 on a processor
            return self._pool(self.model.forward_features(x))  # type: ignore[operator]
        vit = cast(VisionTransformer, self.model)
        if stage == 0:
            return cast(torch.Tensor, vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(x)))))
        if stage <= len(vit.blocks):
            return cast(torch.Tensor, vit.blocks[stage - 1](x))
        return self._pool(vit.norm(x))

    def _pool(self, features: torch.Tensor) -> torch.Tensor:
        """Pool what ``forward_features`` gave: tokens ``(B, L, W)``, or a map in the order of timm's ``output_fmt``."""
        if self.pooling == "tower":
            return cast(torch.Tensor, self.model.forward_head(features, pre_logits=True))  # type: ignore[operator]
        if features.ndim == 4:
            if self.pooling == "cls":
                raise UserError(f"the {self.name} has no class token: choose pooling tower, mean or max")
            places = (1, 2) if getattr(self.model, "output_fmt", "NCHW") == "NHWC" else (2, 3)
            return features.mean(places) if self.pooling == "mean" else features.amax(places)
        prefix = int(getattr(self.model, "num_prefix_tokens", 0))
        if self.pooling == "cls" and prefix == 0:
            raise UserError(f"the {self.name} has no class token: choose pooling tower, mean or max")
        tokens = features if self.pooling == "cls" else features[:, prefix:]
        pooled = masked_pool(tokens, torch.ones_like(tokens[..., 0], dtype=torch.bool), self.pooling)
        norm = getattr(self.model, "fc_norm", None)
        return pooled if norm is None else cast(torch.Tensor, norm(pooled))


def build_vision(
    spec: VisionSpec, *, pretrained: bool = True, preprocessing: Preprocessing | None = None
) -> VisionTower:
    """Build the tower a recipe names.

    ``pretrained=False`` gives random weights and needs neither network nor file. ``preprocessing`` (from a
    checkpoint) replaces what the model's configuration says.

    Raises:
        UserError: unknown timm name, missing or misfitting weights, no network and nothing in the local cache.
    """
    name, args, weights, stated = _locate(spec)
    fresh = partial(_create, name, args, hub=False)
    model = _create(name, args, hub=True) if pretrained and weights is None else fresh()
    if pretrained and weights is not None:
        _load_weights(model, weights)
    tower = VisionTower(model, preprocessing or _preprocessing(model, stated, args), spec.pooling, fresh)
    if pretrained:
        tower.fingerprint = fingerprint(model)
    return tower


def _locate(spec: VisionSpec) -> tuple[str, dict[str, Any], Path | None, VisionSpec]:
    """Return the timm name, its arguments, the weights file if local, and the spec with the folder's own facts."""
    folder = STARTER / "vision" if spec.model == "starter" else None
    if folder is None and "/" in spec.model and not spec.model.startswith(("hf-hub:", "hf_hub:")):
        folder = Path(spec.model).expanduser()
        if not folder.is_dir():
            raise UserError(f"no such folder: {spec.model} (a hub model is written hf-hub:{spec.model})")
    if folder is None:
        return spec.model, dict(spec.args), spec.weights, spec
    if not (folder / "tower.toml").is_file():
        if (folder / "config.json").is_file():
            return f"local-dir:{folder}", dict(spec.args), None, spec
        raise UserError(f"{folder} holds no vision tower: expected tower.toml (polyalign's) or config.json (timm's)")
    facts = read_toml(folder / "tower.toml")
    given = spec.model_dump(exclude_none=True, exclude={"args", "pooling", "weights", "model"})
    try:
        stated = VisionSpec.model_validate({**facts, **given, "pooling": spec.pooling})
    except ValidationError as error:
        raise UserError(f"{folder / 'tower.toml'}: {describe_error(error)}") from error
    return stated.model, {**stated.args, **spec.args}, spec.weights or folder / "model.safetensors", stated


def _create(name: str, args: dict[str, Any], *, hub: bool) -> nn.Module:
    base = name.partition(".")[0]
    if ":" not in name and not timm.is_model(base):
        raise UserError(f'timm knows no model "{base}": {_nearest(base)}')
    try:
        return timm.create_model(name, pretrained=hub, num_classes=0, **args)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        hint = " (offline? give a local folder, or weights = FILE)" if hub else ""
        raise UserError(f"timm cannot build {name} with {args}: {_first_line(error)}{hint}") from error


def _nearest(name: str) -> str:
    return did_you_mean(name, timm.list_models()).split(" (known")[0]


def _load_weights(model: nn.Module, path: Path) -> None:
    try:
        state = load_file(str(path))
    except Exception as error:  # safetensors raises its own type, and OSError, for a missing or broken file
        raise UserError(f"cannot read weights from {path}: {_first_line(error)}") from error
    wanted = set(model.state_dict())
    missing, spare = (
        wanted - set(state),
        {key for key in set(state) - wanted if not key.startswith(("head.", "fc.", "classifier."))},
    )
    if missing or spare:
        raise UserError(
            f"{path} does not fit the model: {len(missing)} tensors missing {sorted(missing)[:3]}, "
            f"{len(spare)} not wanted {sorted(spare)[:3]}; check the timm name and args"
        )
    try:
        model.load_state_dict({key: value for key, value in state.items() if key in wanted})
    except RuntimeError as error:
        raise UserError(f"{path} does not fit the model: {_first_line(error)}; check args such as img_size") from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__


def _preprocessing(model: nn.Module, spec: VisionSpec, args: dict[str, Any]) -> Preprocessing:
    """Take timm's data configuration of the weights, with what the recipe states in its place."""
    config = resolve_model_data_config(model)
    return Preprocessing(
        image_px=spec.image_px or args.get("img_size") or config["input_size"][-1],
        mean=spec.mean or config["mean"],
        std=spec.std or config["std"],
        crop_pct=spec.crop_pct or config["crop_pct"],
        interpolation=config["interpolation"],
    )


def _transform(preprocessing: Preprocessing) -> Any:
    """Make timm's evaluation transform, stopping at uint8 so that images are kept small until they are used."""
    return create_transform(
        input_size=(3, preprocessing.image_px, preprocessing.image_px),
        is_training=False,
        use_prefetcher=True,
        interpolation=preprocessing.interpolation,
        crop_pct=preprocessing.crop_pct,
    )


def pixels(tower: VisionTower, images: list[Image.Image]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Transform images to one ``(B, 3, H, W)`` uint8 array."""
    return torch.stack([tower.transform(image) for image in images]).numpy()
