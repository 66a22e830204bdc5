"""Write a tower as a folder that its own library and ``build_vision`` or ``build_text`` open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from timm.models import load_model_config_from_hf
from torch import nn
from transformers import PreTrainedModel

from polyalign.models.towers import sentence_transformers
from polyalign.models.towers.common import read_json
from polyalign.models.towers.text import TextTower
from polyalign.models.towers.text_loading import path_in_whole, quiet
from polyalign.models.towers.vision import VisionTower
from polyalign.utils import storage

# What timm says about the weights that it downloads, which are not those of the folder.
_ELSEWHERE = (
    *("url", "file", "hf_hub_id", "hf_hub_filename", "source", "tag", "license", "origin_url", "paper_ids"),
    *("paper_name", "notes", "label_names", "label_descriptions", "test_input_size", "test_crop_pct"),
)
POOLINGS = {"cls": "cls", "mean": "mean", "max": "max", "last": "lasttoken"}
"""The names of our poolings in sentence-transformers."""


def timm_config(tower: VisionTower) -> dict[str, Any]:
    """Return timm's ``config.json`` of the tower: its architecture, arguments and preprocessing."""
    name, args = tower.source
    source, _, place = name.partition(":")
    if source == "local-dir":
        args = {**(read_json(Path(place) / "config.json").get("model_args") or {}), **args}
    elif place:
        args = {**load_model_config_from_hf(place)[2], **args}
    facts = {key: value for key, value in tower.model.pretrained_cfg.items() if _is_json(value)}  # type: ignore[union-attr,operator]
    for key in _ELSEWHERE:
        facts.pop(key, None)
    how = tower.preprocessing
    facts |= {"input_size": [len(how.mean), *how.size], "num_classes": 0, "custom_load": False}
    facts |= how.model_dump(mode="json", include={"mean", "std", "crop_pct", "interpolation", "crop_mode"})
    config = {"num_classes": 0, "num_features": tower.model.num_features, "model_args": args}
    return {"architecture": facts.pop("architecture"), **config, "pretrained_cfg": facts}


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return value is not None


def save_vision(folder: Path, tower: VisionTower) -> None:
    """Write a folder in timm's format, which timm opens as ``local-dir:FOLDER``."""
    folder.mkdir(parents=True)
    storage.write_text(folder / "config.json", json.dumps(timm_config(tower), indent=2) + "\n")
    save_file(plain_tensors(tower.model), folder / "model.safetensors", {"format": "pt"})


def save_encoder(folder: Path, model: PreTrainedModel, dtype: torch.dtype = torch.float32) -> None:
    """Write a folder in the format of transformers, with weights in ``dtype``, under the names of the whole model."""
    with quiet():
        prefix = path_in_whole(model)
        state = cast(nn.Module, model).state_dict()
        for key, value in state.items():
            state[key] = value.to(dtype) if value.is_floating_point() else value
        model.save_pretrained(folder, state_dict={prefix + key: value for key, value in state.items()})
    (folder / "model.safetensors").chmod(0o644)


def save_text(folder: Path, tower: TextTower) -> None:
    """Write a folder in the format of transformers, or of sentence-transformers if there is more than a pooling."""
    save_encoder(folder, cast(PreTrainedModel, tower.model))
    tower.tokenizer.save_pretrained(folder)
    if not len(tower.head) and not tower.lower_case:
        return
    parts = [("Transformer", ""), ("Pooling", "1_Pooling")]
    width = tower.model.config.hidden_size  # type: ignore[union-attr]
    pooling = {"embedding_dimension": width, "pooling_mode": POOLINGS.get(tower.pooling, tower.pooling)}
    _write_config(folder / "1_Pooling", pooling)
    for number, part in enumerate(tower.head, 2):
        kind = "Normalize" if isinstance(part, sentence_transformers.UnitLength) else "Dense"
        parts.append((kind, f"{number}_{kind}"))
        if kind == "Dense":
            linear, activation = cast(nn.Sequential, part)
            kept = {"in_features": linear.in_features, "out_features": linear.out_features}
            name = f"{type(activation).__module__}.{type(activation).__name__}"
            config = {**kept, "bias": linear.bias is not None, "activation_function": name}
            _write_config(folder / parts[-1][1], config)
            tensors = {f"linear.{key}": value for key, value in plain_tensors(linear).items()}
            save_file(tensors, folder / parts[-1][1] / "model.safetensors", {"format": "pt"})
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(parts)
    ]
    storage.write_text(folder / "modules.json", json.dumps(modules, indent=2) + "\n")
    settings = {"max_seq_length": tower.max_tokens, "do_lower_case": tower.lower_case}
    storage.write_text(folder / "sentence_bert_config.json", json.dumps(settings, indent=2) + "\n")


def _write_config(folder: Path, config: dict[str, Any]) -> None:
    storage.write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")


def plain_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state of a module as tensors that share no memory, on the CPU."""
    return {name: one.detach().cpu().clone().contiguous() for name, one in module.state_dict().items()}
