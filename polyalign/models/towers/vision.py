"""The vision tower: any timm model, cut into stages so that a frozen lower part can be computed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import timm.models as zoo
import torch
from PIL import Image
from timm.data import create_transform
from torch import nn

from polyalign.config.tower import Preprocessing
from polyalign.models.towers.base import Tower
from polyalign.models.towers.common import masked_pool, structure
from polyalign.utils.errors import UserError

_FASTER_CHANNELS_LAST = (zoo.EfficientNet, zoo.MobileNetV3, zoo.ResNet, zoo.RegNet)
"""Networks for which this memory order is tested to be safe, and up to twice as fast on a CPU."""


class VisionTower(Tower):
    """A timm model without its classifier; its input are ``(B, C, H, W)`` uint8 pixels.

    ``source`` is the name that timm made it from, and the arguments.
    """

    kind = "vision"
    source: tuple[str, dict[str, Any]]
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, model: nn.Module, preprocessing: Preprocessing, pooling: str, fresh: Callable[[], nn.Module]
    ) -> None:
        """Wrap ``model``; ``fresh`` makes it anew with random weights.

        Raises:
            UserError: the model does not take images of this size, or has nothing that ``pooling`` takes.
        """
        super().__init__(model, fresh, pooling)
        self.preprocessing = preprocessing
        self.variant = f"{pooling} {structure(model)}"
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, -1, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, -1, 1, 1) * 255, persistent=False)
        self._transform = make_transform(preprocessing)
        self._single_stand_in = True
        height, width = preprocessing.size
        self.on_input = f" on images of {height} x {width} px (vision.image_px; some need vision.args.img_size too)"
        self.look()

    def transform(self, image: Image.Image) -> torch.Tensor:
        """Resize and crop an RGB image to ``(C, H, W)`` uint8, as timm does; scaling happens in stage 0."""
        return cast(torch.Tensor, self._transform(image if len(self.preprocessing.mean) == 3 else image.convert("L")))

    def features(self, model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Return pooled features ``(B, width)`` of ``model``, which is the tower's own or a cut twin of it."""
        scaled = (x - self.mean) / self.std
        if isinstance(model, _FASTER_CHANNELS_LAST):
            scaled = scaled.contiguous(memory_format=torch.channels_last)
        return self._pool(model, model.forward_features(scaled))  # type: ignore[operator]

    def mean_state(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Return the mean ``(B, W)`` of hidden states over all tokens, or over all places of a map."""
        if hidden.ndim == 3:
            return hidden.mean(1)
        return hidden.mean((1, 2) if _is_last(self.model) else (2, 3))

    def probe(self) -> torch.Tensor:
        """Return two images of noise."""
        height, width = self.preprocessing.size
        shape = (2, len(self.preprocessing.mean), height, width)
        if self.mean.device.type == "meta":
            return torch.empty(shape, dtype=torch.uint8, device="meta")
        generator = torch.Generator().manual_seed(0)
        return torch.randint(256, shape, dtype=torch.uint8, generator=generator).to(self.mean.device)

    def stand_in(self, x: torch.Tensor) -> torch.Tensor:
        """Return black images for the parts below a cut: one is enough for most networks, which saves time."""
        height, width = self.preprocessing.size
        rows = 1 if self._single_stand_in else len(x)
        return torch.zeros(1, len(self.preprocessing.mean), height, width, device=x.device).expand(rows, -1, -1, -1)

    def is_exact(self, cut: int) -> bool:
        """Run a small batch whole and cut: whether the features are the same.

        Raises:
            UserError: the features are not finite.
        """
        for single in (True, False):
            self._single_stand_in = single
            if super().is_exact(cut):
                return True
        return False

    def _pool(self, model: nn.Module, features: Any) -> torch.Tensor:
        """Pool what ``forward_features`` gave: tokens ``(B, L, W)``, or a map in the order of timm's ``output_fmt``."""
        if self.pooling == "tower":
            return cast(torch.Tensor, model.forward_head(features, pre_logits=True))  # type: ignore[operator]
        if not isinstance(features, torch.Tensor):
            raise UserError(f"the {self.name} has its own pooling only: choose vision.pooling tower")
        if self.pooling == "cls" and not _has_class_token(model, features):
            raise UserError(f"the {self.name} has no class token: choose vision.pooling tower, mean or max")
        if features.ndim == 4:
            places = (1, 2) if _is_last(model) else (2, 3)
            return features.mean(places) if self.pooling == "mean" else features.amax(places)
        prefix = int(cast(int, getattr(model, "num_prefix_tokens", 0)))
        tokens = features if self.pooling == "cls" else features[:, prefix:]
        pooled = masked_pool(tokens, torch.ones_like(tokens[..., 0], dtype=torch.bool), self.pooling)
        norm = getattr(model, "fc_norm", None)
        return pooled if norm is None else cast(torch.Tensor, norm(pooled))


def _is_last(model: nn.Module) -> bool:
    """Whether channels are the last dimension of a map."""
    return getattr(model, "output_fmt", "NCHW") == "NHWC"


def _has_class_token(model: nn.Module, features: torch.Tensor) -> bool:
    """Whether the first token is a class token: registers, which also come first, do not count."""
    prefix = int(cast(int, getattr(model, "num_prefix_tokens", 0)))
    return features.ndim == 3 and prefix > 0 and getattr(model, "cls_token", None) is not None


def make_transform(preprocessing: Preprocessing) -> Any:
    """Make timm's evaluation transform, stopping at uint8 so that images are kept small until they are used."""
    return create_transform(
        input_size=(len(preprocessing.mean), *preprocessing.size),
        is_training=False,
        use_prefetcher=True,
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
        crop_pct=preprocessing.crop_pct,
        crop_mode=preprocessing.crop_mode,
    )
