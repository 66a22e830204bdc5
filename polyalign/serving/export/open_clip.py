"""open_clip: a timm image tower and a transformers text tower, whose projection has no bias."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import timm
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from polyalign.data.pairs import ImageRef
from polyalign.evaluation.encoders import Encoder, Vectors, in_batches
from polyalign.models.aligner import Aligner
from polyalign.models.towers.common import read_json
from polyalign.models.towers.saving import plain_tensors, timm_config
from polyalign.models.towers.staging import is_norm
from polyalign.models.towers.text import TextTower
from polyalign.models.towers.text_loading import quiet
from polyalign.models.towers.vision import VisionTower
from polyalign.serving.export import plain
from polyalign.utils import storage
from polyalign.utils.errors import UserError
from polyalign.utils.text import clean

if TYPE_CHECKING:
    from polyalign.serving.export.run import Source

LIBRARIES = {"open_clip_torch": "open_clip"}
EXTRA = "peers"
OPTIONS = ("repo",)
TOLERANCE = 1e-4

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"

_POOLERS = {"mean": "mean_pooler", "cls": "cls_last_hidden_state_pooler"}
_FAMILIES = ("bert", "roberta", "xlm-roberta", "m2m_100")


def problem(aligner: Aligner) -> str | None:
    """Return what of the model open_clip cannot hold, or None."""
    return plain.problem(aligner) or _of_text(aligner) or _of_images(aligner.vision)


def _of_text(aligner: Aligner) -> str | None:
    text = aligner.text
    family = text.model.config.model_type  # type: ignore[union-attr]
    if family not in _FAMILIES:
        return f"its text encoders are {', '.join(_FAMILIES)}, and not {clean(family, 40)}"
    if text.pooling not in _POOLERS:
        return f"it has no text.pooling = {text.pooling}"
    if len(text.head) or text.prompt or text.lower_case:
        return "it has no prompt, lower case or sentence-transformers modules"
    if _last_norm(text) is None or aligner.text_projection.out_features > text.width:
        return "its text projection has no bias, and the text tower's last norm cannot take it"
    return None


def _of_images(tower: VisionTower) -> str | None:
    how = tower.preprocessing
    height, width = how.size
    if how.crop_mode == "border" or len(how.mean) == 1 or how.interpolation not in ("bicubic", "bilinear"):
        return f"it cannot prepare images with {how.interpolation}, crop mode {how.crop_mode}, {len(how.mean)} channels"
    if math.floor(min(height, width) / how.crop_pct) != min(height, width):
        return f"it crops no edges off, and the vision tower's images are cropped to {how.crop_pct:g}"
    return None if height == width or how.crop_mode == "squash" else "it cannot crop images that are not square"


def _last_norm(text: TextTower) -> str | None:
    """Return the path of the norm that gives the last hidden states, if it has a bias."""
    norms = [path for path in text.trace.calls if is_norm(text.model.get_submodule(path))]
    found = norms[-1] if norms else None
    return found if found and getattr(text.model.get_submodule(found), "bias", None) is not None else None


def write(folder: Path, source: Source) -> None:
    """Write a folder that ``open_clip.create_model_and_transforms("local-dir:FOLDER")`` opens."""
    aligner, text = source.aligner, source.aligner.text
    encoder = cast(PreTrainedModel, text.model)
    tensors = {
        **{f"visual.trunk.{name}": one for name, one in plain_tensors(aligner.vision.model).items()},
        **{f"visual.head.proj.{name}": one for name, one in plain_tensors(aligner.vision_projection).items()},
        **{f"text.transformer.{name}": one for name, one in plain_tensors(text.model).items()},
        "text.proj.weight": aligner.text_projection.weight.detach().clone(),
        "logit_scale": aligner.scale.detach().log(),
        **({} if aligner.logit_bias is None else {"logit_bias": aligner.logit_bias.detach().clone()}),
    }
    norm = f"text.transformer.{_last_norm(text)}.bias"
    tensors[norm] = tensors[norm] + _before(aligner.text_projection)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    with quiet():
        encoder.config.save_pretrained(folder)
    # One file for both: transformers reads its own keys of it, and timm those of the image tower.
    both = {**timm_config(aligner.vision), **read_json(folder / "config.json")}
    storage.write_text(folder / "config.json", json.dumps(both, indent=2) + "\n")
    plain.save_tokenizer(folder, text)
    _write_config(folder, source, f"local-dir:{folder}", str(folder))


def finish(folder: Path, source: Source) -> None:
    """State the place from which open_clip is to load the configuration of the towers: a folder, or a hub name."""
    place = source.repo or str(source.out)
    _write_config(folder, source, f"hf-hub:{place}" if source.repo else f"local-dir:{place}", place)


def _before(projection: nn.Linear) -> torch.Tensor:
    """Return what has to be added to the input of a linear map in place of its bias: ``(in_features,)``."""
    weight, bias = projection.weight.detach().double(), projection.bias.detach().double()
    solved: torch.Tensor = torch.linalg.lstsq(weight, bias.unsqueeze(1), driver="gelsd").solution
    return solved[:, 0].float()


def _write_config(folder: Path, source: Source, timm_place: str, place: str) -> None:
    aligner, how = source.aligner, source.aligner.vision.preprocessing
    config = {
        "model_cfg": {
            "embed_dim": aligner.text_projection.out_features,
            "custom_text": True,
            "vision_cfg": {
                "timm_model_name": _registered(aligner.vision) or timm_place,
                "timm_model_pretrained": False,
                "timm_pool": "",
                "timm_proj": "linear",
                "timm_proj_bias": True,
                "image_size": how.image_px,
            },
            "text_cfg": {
                "hf_model_name": place,
                "hf_tokenizer_name": place,
                "hf_model_pretrained": False,
                "hf_proj_type": "linear",
                "hf_pooler_type": _POOLERS[aligner.text.pooling],
                "context_length": aligner.text.max_tokens,
            },
            **({} if aligner.logit_bias is None else {"init_logit_bias": aligner.logit_bias.item()}),
        },
        "preprocess_cfg": {
            "mean": how.mean,
            "std": how.std,
            "interpolation": how.interpolation,
            "resize_mode": "squash" if how.crop_mode == "squash" else "shortest",
        },
    }
    storage.write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def _registered(tower: VisionTower) -> str | None:
    """Return the name that timm builds the network from without arguments, if there is one."""
    config = timm_config(tower)
    known = timm.get_pretrained_cfg(config["architecture"], allow_unregistered=True)
    usual = known is not None and tuple(known.input_size[1:]) == tower.preprocessing.size
    return config["architecture"] if not set(config["model_args"]) - ({"img_size"} if usual else set()) else None


@dataclass(frozen=True)
class Reloaded:
    """A model of open_clip as an encoder."""

    name: str
    model: Any
    transform: Any
    tokenizer: Any

    def encode_image(self, images: Sequence[ImageRef]) -> Vectors:
        """Return unit vectors ``(N, D)``."""

        def encode(batch: Sequence[ImageRef]) -> torch.Tensor:
            pixels = torch.stack([self.transform(image.open()) for image in batch])
            return cast(torch.Tensor, self.model.encode_image(pixels, normalize=True))

        return in_batches(images, encode, "images in open_clip")

    def encode_text(self, texts: Sequence[str], lang: str | None = None) -> Vectors:
        """Return unit vectors ``(N, D)``.

        Raises:
            UserError: open_clip changes a sentence before it tokenizes it.
        """
        for text in texts:
            if "".join(self.tokenizer.clean_fn(text).split()) != "".join(text.split()):
                raise UserError(
                    f'open_clip replaces characters of sentences such as "{clean(text, 60)}", which changes their '
                    "vectors: use --to sentence-transformers or onnx"
                )
        return in_batches(
            texts,
            lambda batch: self.model.encode_text(self.tokenizer(list(batch)), normalize=True),
            "sentences in open_clip",
        )


def reload(folder: Path) -> dict[str, Encoder]:
    """Open the folder with open_clip."""
    import open_clip

    name = f"local-dir:{folder}"
    with quiet():
        model, _, transform = open_clip.create_model_and_transforms(name)
        return {"fp32": Reloaded(str(folder), model.eval(), transform, open_clip.get_tokenizer(name))}
