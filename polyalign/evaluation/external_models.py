"""Other people's aligned models as encoders, so that their numbers come from the same code as ours.

``open_clip:NAME/PRETRAINED`` (or a folder with ``open_clip_config.json``), ``hf:NAME_OR_FOLDER`` (CLIP, SigLIP and
VisionTextDualEncoder of transformers) and ``mclip:NAME_OR_FOLDER``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image

from polyalign.data.pairs import ImageRef
from polyalign.models.towers.common import masked_pool
from polyalign.utils import storage
from polyalign.utils.errors import UserError, did_you_mean
from polyalign.utils.progress import progress

_BATCH = 64
# The vision towers that M-CLIP's text towers were taught to agree with (its model card), by open_clip's names.
_MCLIP_VISION = {
    "XLM-Roberta-Large-Vit-B-32": "ViT-B-32/openai",
    "XLM-Roberta-Large-Vit-L-14": "ViT-L-14/openai",
    "XLM-Roberta-Large-Vit-B-16Plus": "ViT-B-16-plus-240/laion400m_e32",
    "LABSE-Vit-L-14": "ViT-L-14/openai",
}

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ExternalModel:
    """A peer's two halves: a batch of images, or of captions, to features ``(B, D)`` of any length."""

    name: str
    images: Callable[[list[Image.Image]], torch.Tensor]
    captions: Callable[[list[str]], torch.Tensor]

    def encode_image(self, images: Sequence[ImageRef]) -> Vectors:
        """Give unit vectors ``(I, D)``."""
        return _embed(images, lambda batch: self.images([one.open() for one in batch]), "images")

    def encode_text(self, captions: Sequence[str]) -> Vectors:
        """Give unit vectors ``(C, D)``."""
        return _embed(captions, lambda batch: self.captions(list(batch)), "captions")


def is_external(model: str) -> bool:
    """Tell whether a model is named as a peer's, and is no folder of a run."""
    return model.partition(":")[0] in _LOADERS and not Path(model).exists()


def load(model: str) -> ExternalModel:
    """Load a peer by its name, such as ``hf:openai/clip-vit-base-patch32``.

    Raises:
        UserError: its library is not installed, or there is no such model.
    """
    family, _, name = model.partition(":")
    if family not in _LOADERS:
        raise UserError(f'unknown family of models "{family}": {did_you_mean(family, _LOADERS)}')
    if not name:
        raise UserError(f"{model} names no model: see polyalign eval --help")
    try:
        return _LOADERS[family](name)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"{model} cannot be loaded: {reason}") from error


@torch.no_grad()
def _embed(items: Sequence[Any], run: Callable[[Sequence[Any]], torch.Tensor], what: str) -> Vectors:
    parts = []
    for start in range(0, len(items), _BATCH):
        features = run(items[start : start + _BATCH]).float()
        parts.append(F.normalize(features, dim=-1).cpu().numpy())
        progress(f"embedding {what}", min(start + _BATCH, len(items)), len(items))
    vectors: Vectors = np.concatenate(parts)
    return vectors


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _open_clip(name: str) -> ExternalModel:
    try:
        import open_clip
    except ImportError as error:
        raise UserError("open_clip is not installed: pip install 'polyalign[peers]'") from error
    if Path(name).is_dir():
        architecture, pretrained = f"local-dir:{Path(name).resolve()}", None
    elif name.startswith("hf-hub:"):
        architecture, pretrained = name, None
    else:
        architecture, _, weights = name.partition("/")
        if architecture not in open_clip.list_models():
            raise UserError(f'open_clip has no "{architecture}": {did_you_mean(architecture, open_clip.list_models())}')
        if not weights:
            known = ", ".join(open_clip.list_pretrained_tags_by_model(architecture))
            raise UserError(f"say which weights, as in open_clip:{architecture}/PRETRAINED (known: {known})")
        pretrained = weights
    device = _device()
    model, transform = open_clip.create_model_from_pretrained(architecture, pretrained=pretrained, device=device)
    tokenize = open_clip.get_tokenizer(architecture)
    model.eval()
    return ExternalModel(
        f"open_clip:{name}",
        lambda batch: model.encode_image(torch.stack([transform(image) for image in batch]).to(device)),
        lambda batch: model.encode_text(tokenize(batch).to(device)),
    )


def _hf(name: str) -> ExternalModel:
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    device = _device()
    model: Any = AutoModel.from_pretrained(name, use_safetensors=True).eval().to(device)
    if not hasattr(model, "get_image_features") or not hasattr(model, "get_text_features"):
        raise UserError(f"hf:{name} is a {type(model).__name__}, which does not embed both images and captions")
    processor = AutoImageProcessor.from_pretrained(name)
    tokenizer: Any = AutoTokenizer.from_pretrained(name)
    limit = _max_tokens(model.config.text_config, tokenizer)
    # SigLIP was trained on captions padded to the full length, with no mask.
    padding = "max_length" if model.config.model_type.startswith("siglip") else True

    def captions(batch: list[str]) -> torch.Tensor:
        tokens = tokenizer(batch, padding=padding, truncation=True, max_length=limit, return_tensors="pt")
        wanted = {key: tokens[key].to(device) for key in ("input_ids", "attention_mask") if key in tokens}
        return _pooled(model.get_text_features(**wanted))

    return ExternalModel(
        f"hf:{name}",
        lambda batch: _pooled(
            model.get_image_features(
                pixel_values=processor(images=batch, return_tensors="pt")["pixel_values"].to(device)
            )
        ),
        captions,
    )


def _pooled(features: Any) -> torch.Tensor:
    """Take the features out of what transformers wraps them in since its version 5."""
    found: torch.Tensor = features if isinstance(features, torch.Tensor) else features.pooler_output
    return found


def _max_tokens(config: Any, tokenizer: Any) -> int:
    """Give the longest caption in tokens; RoBERTa's positions begin after that of the pad."""
    offset = config.pad_token_id + 1 if "roberta" in config.model_type else 0
    return min(int(tokenizer.model_max_length), int(config.max_position_embeddings) - offset)


def _mclip(name: str) -> ExternalModel:
    """Load an M-CLIP text tower (mean over tokens, then one linear layer) beside the vision tower it was taught for.

    ``FOLDER+NAME/PRETRAINED`` names the vision tower where the folder's name does not tell it.
    """
    from huggingface_hub import snapshot_download
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    text, _, vision = name.partition("+")
    stem = text.rstrip("/").rpartition("/")[2]
    if not vision and stem not in _MCLIP_VISION:
        raise UserError(f"which vision tower {text} belongs to is not known: mclip:{text}+NAME/PRETRAINED says it")
    folder = (
        Path(text)
        if Path(text).is_dir()
        else Path(snapshot_download(text, allow_patterns=["*.json", "*.model", "*.safetensors"]))
    )
    if not (folder / "model.safetensors").is_file():
        raise UserError(f"{folder} has no model.safetensors; a pickle (pytorch_model.bin) is not read: convert it")
    facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights, _ = storage.load_tensors(folder / "model.safetensors")
    # The base's own configuration lies beside it in a folder, else on the hub.
    base = folder / "base" if (folder / "base").is_dir() else facts["modelBase"]
    encoder: Any = AutoModel.from_config(AutoConfig.from_pretrained(base))
    inner = {
        key.removeprefix("transformer."): value for key, value in weights.items() if key.startswith("transformer.")
    }
    encoder.load_state_dict(inner)
    device = _device()
    encoder.eval().to(device)
    matrix, bias = (weights[f"LinearTransformation.{part}"].to(device) for part in ("weight", "bias"))
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    limit = _max_tokens(encoder.config, tokenizer)

    def captions(batch: list[str]) -> torch.Tensor:
        tokens = tokenizer(batch, padding=True, truncation=True, max_length=limit, return_tensors="pt").to(device)
        hidden = encoder(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
        return F.linear(masked_pool(hidden, tokens["attention_mask"].bool(), "mean"), matrix, bias)

    return ExternalModel(f"mclip:{name}", _open_clip(vision or _MCLIP_VISION[stem]).images, captions)


_LOADERS: dict[str, Callable[[str], ExternalModel]] = {"open_clip": _open_clip, "hf": _hf, "mclip": _mclip}
