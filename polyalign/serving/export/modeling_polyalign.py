"""A text and an image encoder with adapters in one space, written by ``polyalign export --to transformers``.

>>> model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True).eval()
>>> tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)
>>> tokens = tokenizer([model.config.prompt + "..."], padding=True, truncation=True, return_tensors="pt")
>>> model.get_text_features(**tokens) @ model.get_image_features(model.preprocess([image])).T
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, TimmWrapperConfig, TimmWrapperModel


class PolyalignConfig(PreTrainedConfig):
    """The two encoders (``vision``, ``text``), what is inserted into them, and the joint space."""

    model_type = "polyalign"


class Adapter(nn.Module):
    """``x + up(gelu(down(x)))``."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the input with its correction."""
        correction: torch.Tensor = self.up(F.gelu(self.down(x)))
        return x + correction


class Adapted(nn.Module):
    """A module followed by an adapter."""

    def __init__(self, base: nn.Module, adapter: Adapter) -> None:
        super().__init__()
        self.base, self.adapter = base, adapter

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the adapter of the module's output."""
        adapted: torch.Tensor = self.adapter(self.base(*args, **kwargs))
        return adapted

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)


class Projection(nn.Linear):
    """A linear map; with ``hidden``, two layers with a GELU between them are added to it."""

    def __init__(self, width: int, out: int, hidden: int | None) -> None:
        super().__init__(width, out)
        self.correction = None
        if hidden is not None:
            layers = (nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out))
            self.correction = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``(B, out)``."""
        mapped = super().forward(x)
        return mapped if self.correction is None else mapped + self.correction(x)


class UnitLength(nn.Module):
    """Scale vectors to unit length."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return unit vectors."""
        return F.normalize(x, dim=-1)


class PolyalignModel(PreTrainedModel):
    """Unit vectors ``(B, D)`` of images and sentences."""

    config_class = PolyalignConfig
    main_input_name = "pixel_values"

    def __init__(self, config: PolyalignConfig) -> None:
        super().__init__(config)
        self.vision = TimmWrapperModel(TimmWrapperConfig.from_dict(dict(config.vision)))
        text = AutoConfig.for_model(**config.text)
        self.text = getattr(transformers, config.text_class)(text)
        if config.pooling != "pooler" and hasattr(self.text, "pooler"):
            self.text.pooler = nn.Identity()
        for one in config.inserted:
            insert(self, **one)
        self.text_head = nn.Sequential(*(head(**one) for one in config.text_head))
        self.vision_projection = Projection(**config.vision_projection)
        self.text_projection = Projection(**config.text_projection)
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.logit_bias = nn.Parameter(torch.zeros(())) if config.has_logit_bias else None
        self.post_init()  # type: ignore[no-untyped-call]

    def preprocess(self, images: list[Any]) -> torch.Tensor:
        """Return the pixels ``(B, C, H, W)`` of PIL images, as the image encoder takes them."""
        from transformers import TimmWrapperImageProcessor

        mode = "RGB" if self.config.vision["pretrained_cfg"]["input_size"][0] == 3 else "L"
        processor = TimmWrapperImageProcessor(self.config.vision["pretrained_cfg"])
        pixels = torch.stack([processor.val_transforms(image.convert(mode)) for image in images])
        return pixels.to(self.device, self.dtype)

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return unit vectors ``(B, D)`` of pixels from ``preprocess``."""
        return F.normalize(self.vision_projection(self.vision(pixel_values).pooler_output), dim=-1)

    def get_text_features(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: torch.Tensor
    ) -> torch.Tensor:
        """Return unit vectors ``(B, D)`` of tokens; every sentence begins with ``config.prompt``."""
        out = self.text(input_ids=input_ids, attention_mask=attention_mask)
        pooled = out.pooler_output if self.config.pooling == "pooler" else None
        if pooled is None:
            pooled = pool(out.last_hidden_state, attention_mask.bool(), self.config.pooling)
        return F.normalize(self.text_projection(self.text_head(pooled)), dim=-1)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, pixel_values: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Return the unit vectors, and the logits ``(images, sentences)``."""
        images, texts = self.get_image_features(pixel_values), self.get_text_features(input_ids, attention_mask)
        logits = self.logit_scale.exp() * images @ texts.T + (0 if self.logit_bias is None else self.logit_bias)
        return {"image_embeds": images, "text_embeds": texts, "logits_per_image": logits}


def pool(tokens: torch.Tensor, mask: torch.Tensor, how: str) -> torch.Tensor:
    """Pool tokens ``(B, L, W)`` to ``(B, W)``: the first, the last, the maximum or the mean."""
    real = mask.unsqueeze(-1)
    if how == "cls":
        return tokens[:, 0]
    if how == "last":
        last = (torch.arange(mask.shape[1], device=mask.device) * mask).argmax(1)
        return tokens[torch.arange(len(tokens), device=mask.device), last]
    if how == "max":
        return tokens.masked_fill(~real, float("-inf")).amax(1)
    return tokens.masked_fill(~real, 0).sum(1) / real.sum(1)


def insert(model: nn.Module, kind: str, path: str, sizes: list[int]) -> None:
    """Put an adapter before or after the module at ``path``, or a block like the last one on top of a list."""
    part: Any = model.get_submodule(path)
    if kind == "block":
        part.append(copy.deepcopy(part[-1]))
    else:
        adapter = Adapter(*sizes)
        model.set_submodule(path, nn.Sequential(adapter, part) if kind == "before" else Adapted(part, adapter))


def head(kind: str, sizes: list[int], bias: bool = True) -> nn.Module:
    """Return a module on top of the text encoder: a linear map with an activation, or the scaling to unit length."""
    if kind == "UnitLength":
        return UnitLength()
    width, out = sizes
    return nn.Sequential(nn.Linear(width, out, bias=bias), getattr(nn, kind)())
