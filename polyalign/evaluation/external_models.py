"""Published vision-language models as encoders.

Names are ``open_clip:NAME/PRETRAINED`` (or a folder with ``open_clip_config.json``), ``hf:NAME_OR_FOLDER`` (CLIP,
SigLIP and VisionTextDualEncoder of transformers) and ``mclip:NAME_OR_FOLDER``. Weights are read from safetensors only,
computed in float32, and no code of a model repository is run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from polyalign.data.pairs import ImageRef
from polyalign.evaluation.encoders import Vectors, device, in_batches
from polyalign.models.towers import external
from polyalign.models.towers.common import masked_pool
from polyalign.utils import storage
from polyalign.utils.errors import UserError, did_you_mean

# The vision towers that M-CLIP's text towers were trained to match (see its model card), by open_clip name.
_MCLIP_VISION = {
    "XLM-Roberta-Large-Vit-B-32": "ViT-B-32/openai",
    "XLM-Roberta-Large-Vit-L-14": "ViT-L-14/openai",
    "XLM-Roberta-Large-Vit-B-16Plus": "ViT-B-16-plus-240/laion400m_e32",
    "LABSE-Vit-L-14": "ViT-L-14/openai",
}


@dataclass(frozen=True)
class ExternalModel:
    """The two encoders of an external model; each returns features ``(B, D)`` of a batch, not yet normalised.

    ``model`` has both sides; it is None where they are of two models.
    """

    name: str
    images: Callable[[list[Image.Image]], torch.Tensor]
    captions: Callable[[list[str]], torch.Tensor]
    model: nn.Module | None = None

    def encode_image(self, images: Sequence[ImageRef]) -> Vectors:
        """Return unit vectors ``(I, D)``."""
        return in_batches(images, lambda batch: _unit(self.images([one.open() for one in batch])), "embedding images")

    def encode_text(self, captions: Sequence[str], lang: str | None = None) -> Vectors:
        """Return unit vectors ``(C, D)``."""
        return in_batches(captions, lambda batch: _unit(self.captions(list(batch))), "embedding captions")


def is_external(model: str) -> bool:
    """Return whether ``model`` names an external model rather than the folder of a run."""
    return model.partition(":")[0] in _LOADERS and not Path(model).exists()


def load(model: str) -> ExternalModel:
    """Load an external model by name, such as ``hf:openai/clip-vit-base-patch32``.

    Raises:
        UserError: its library is not installed, there is no such model, or it has no safetensors weights.
    """
    family, _, name = model.partition(":")
    if family not in _LOADERS:
        raise UserError(f'unknown model family "{family}": {did_you_mean(family, _LOADERS)}')
    with external.reported(model):
        return _LOADERS[family](name)


def _unit(features: torch.Tensor) -> torch.Tensor:
    return F.normalize(features.float(), dim=-1)


def _open_clip(name: str) -> ExternalModel:
    model, architecture = external.open_clip_model(name)
    from open_clip import get_tokenizer
    from open_clip.transform import PreprocessCfg, image_transform_v2

    place, net = device(), cast(Any, model.eval().to(device()))
    transform = image_transform_v2(PreprocessCfg(**net.visual.preprocess_cfg), is_train=False)
    with external.open_clip_log():
        tokenize = get_tokenizer(architecture)
    return ExternalModel(
        f"open_clip:{name}",
        lambda batch: net.encode_image(torch.stack([transform(image) for image in batch]).to(place)),
        lambda batch: net.encode_text(tokenize(batch).to(place)),
        model,
    )


def _hf(name: str) -> ExternalModel:
    from transformers import AutoImageProcessor, AutoTokenizer

    place, model = device(), external.hf_model(name).eval()
    tower = external.tower_of(f"hf:{name}", model)
    model.to(place)
    processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    tokenizer: Any = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    limit = _max_tokens(model.config.text_config, tokenizer)
    # SigLIP and SigLIP 2 were trained on captions padded to the full length and without an attention mask. The
    # published SigLIP tokenizers return none; others, such as Gemma's, do.
    is_siglip = model.config.model_type.startswith("siglip")
    padding, wanted = ("max_length", {"input_ids"}) if is_siglip else (True, {"input_ids", "attention_mask"})

    def images(batch: list[Image.Image]) -> torch.Tensor:
        if tower is None:  # such as patches of images of any size
            return external.pooled(model.get_image_features(**processor(images=batch, return_tensors="pt").to(place)))
        return cast(torch.Tensor, tower.to(place)(torch.stack([tower.transform(image) for image in batch]).to(place)))

    def captions(batch: list[str]) -> torch.Tensor:
        tokens = tokenizer(batch, padding=padding, truncation=True, max_length=limit, return_tensors="pt").to(place)
        return external.pooled(model.get_text_features(**{key: tokens[key] for key in tokens if key in wanted}))

    return ExternalModel(f"hf:{name}", images, captions, model)


def _max_tokens(config: Any, tokenizer: Any) -> int:
    """Return the maximum caption length in tokens; RoBERTa's positions start after the padding index."""
    offset = config.pad_token_id + 1 if "roberta" in config.model_type else 0
    return min(int(tokenizer.model_max_length), int(config.max_position_embeddings) - offset)


def _mclip(name: str) -> ExternalModel:
    """Load an M-CLIP text tower and the vision tower it was trained for; ``FOLDER+NAME/PRETRAINED`` names another."""
    from huggingface_hub import snapshot_download
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    text, _, vision = name.partition("+")
    stem = text.rstrip("/").rpartition("/")[2]
    if not vision and stem not in _MCLIP_VISION:
        raise UserError(f"the vision tower of {text} is not known: state it as mclip:{text}+NAME/PRETRAINED")
    folder = Path(text)
    if not folder.is_dir():
        folder = Path(snapshot_download(text, allow_patterns=["*.json", "*.model", "*.safetensors"]))
    if not (folder / "model.safetensors").is_file():
        raise UserError(f"{folder} has no model.safetensors: convert its pytorch_model.bin (pickles are not read)")
    facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights, _ = storage.read_tensors(folder / "model.safetensors")
    # The configuration of the base model is in the folder ``base``, else on the hub.
    base = folder / "base" if (folder / "base").is_dir() else facts["modelBase"]
    config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    encoder: Any = AutoModel.from_config(config, trust_remote_code=False)
    # Files written by transformers before 4.31 hold the buffer ``position_ids``, which is computed from the sizes.
    inner = {
        key.removeprefix("transformer."): value
        for key, value in weights.items()
        if key.startswith("transformer.") and key != "transformer.embeddings.position_ids"
    }
    encoder.load_state_dict(inner)
    place = device()
    encoder.eval().to(place)
    matrix, bias = (weights[f"LinearTransformation.{part}"].to(place) for part in ("weight", "bias"))
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    limit = _max_tokens(encoder.config, tokenizer)

    def captions(batch: list[str]) -> torch.Tensor:
        tokens = tokenizer(batch, padding=True, truncation=True, max_length=limit, return_tensors="pt").to(place)
        hidden = encoder(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
        return F.linear(masked_pool(hidden, tokens["attention_mask"].bool(), "mean"), matrix, bias)

    return ExternalModel(f"mclip:{name}", _open_clip(vision or _MCLIP_VISION[stem]).images, captions)


_LOADERS: dict[str, Callable[[str], ExternalModel]] = {"open_clip": _open_clip, "hf": _hf, "mclip": _mclip}
