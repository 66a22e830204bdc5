"""Read what a sentence-transformers folder says about its encoder: pooling, prompt, and the modules on top.

The formats are those of sentence-transformers: ``modules.json`` lists the modules in order; each has a folder with a
``config.json``, and a ``Dense`` module also has weights. Prompts are in ``config_sentence_transformers.json``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers.utils.hub import cached_file

from polyalign.config.tower import TextSpec
from polyalign.models.towers.common import read_json
from polyalign.utils.errors import UserError, first_line
from polyalign.utils.text import clean

_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
}
_NAMES = {"cls": "cls", "mean": "mean", "max": "max", "lasttoken": "last"}
_ACTIVATIONS = {"Identity": nn.Identity, "Tanh": nn.Tanh, "ReLU": nn.ReLU, "GELU": nn.GELU}


class UnitLength(nn.Module):
    """Scale features ``(B, W)`` to unit length."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return unit vectors ``(B, W)``."""
        return F.normalize(features, dim=-1)


@dataclass(frozen=True)
class Modules:
    """What the folder states; nothing where it is not a sentence-transformers folder."""

    pooling: str | None = None
    prompt: str | None = None
    head: nn.Sequential = field(default_factory=nn.Sequential)
    lower_case: bool = False

    def completed(self, spec: TextSpec) -> TextSpec:
        """Return the spec with the folder's pooling and prompt where it states none itself; else mean, without."""
        pooling = spec.pooling or self.pooling or "mean"
        prompt = spec.prompt if spec.prompt is not None else self.prompt
        return spec.model_copy(update={"pooling": pooling, "prompt": prompt})


def read(source: str, revision: str | None, stated: str | None = None) -> Modules:
    """Read the modules of a local folder or a model on the hub; its pooling is not read where one is ``stated``.

    Raises:
        UserError: a module is of a kind that is not supported, or its files cannot be read.
    """
    listed = json_of(source, "modules.json", revision)
    if listed is None:
        return Modules()
    try:
        return _read(source, listed, revision, stated)
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, SafetensorError) as error:
        problem = f"{type(error).__name__} {first_line(error)}"
        raise UserError(f"the sentence-transformers files of {source} cannot be read: {problem}") from error


def _read(source: str, listed: Any, revision: str | None, stated: str | None) -> Modules:
    pooling: str | None = None
    parts: list[nn.Module] = []
    _check_listed(source, listed)
    kinds = [str(module["type"]).rpartition(".")[2] for module in listed]
    if kinds[:1] != ["Transformer"]:
        raise UserError(f"{source}: its first sentence-transformers module is {kinds[:1]}, and must be a Transformer")
    settings = json_of(source, "config_sentence_transformers.json", revision) or {}
    prompt = (settings.get("prompts") or {}).get(settings.get("default_prompt_name"))
    for kind, folder in zip(kinds[1:], (str(module["path"]) for module in listed[1:]), strict=True):
        config = json_of(source, f"{folder}/config.json", revision) or {}
        if kind == "Pooling":
            if parts:
                raise UserError(f"{source}: a Dense or Normalize module before Pooling is not supported")
            if prompt and config.get("include_prompt") is False:
                raise UserError(f'{source}: pooling without the prompt is not supported: set text.prompt="" or another')
            pooling = stated or _pooling(config, source)
        elif kind == "Normalize":
            parts.append(UnitLength())
        elif kind == "Dense":
            parts.append(_dense(source, folder, config, revision))
        elif kind != "Dropout":
            supported = "Pooling, Dense and Normalize are"
            raise UserError(f"{source}: sentence-transformers module {kind} is not supported ({supported})")
    inner = json_of(source, "sentence_bert_config.json", revision) or {}
    return Modules(pooling, prompt, nn.Sequential(*parts), bool(inner.get("do_lower_case")))


def _check_listed(source: str, listed: Any) -> None:
    """Check that the modules are those of sentence-transformers, and their files those of this model."""
    for module in listed:
        kind, path = str(module["type"]), Path(module["path"])
        if not kind.startswith("sentence_transformers."):
            raise UserError(
                f"{source}: module {clean(kind, 80)} is code of the model, which is never run: choose another"
            )
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"{source}: the path {clean(path, 80)} of a module is outside of the model")


def _pooling(config: dict[str, Any], source: str) -> str:
    chosen = [_POOLING.get(key, key) for key, on in config.items() if key.startswith("pooling_mode_") and on is True]
    if isinstance(mode := config.get("pooling_mode"), str):
        chosen = [_NAMES.get(mode, mode)]
    if not chosen:
        raise UserError(f"{source}: its pooling is not stated: set text.pooling")
    if len(chosen) > 1 or chosen[0] not in _NAMES.values():
        raise UserError(f"{source}: its pooling {' and '.join(chosen)} is not supported: set text.pooling")
    return chosen[0]


def _dense(source: str, folder: str, config: dict[str, Any], revision: str | None) -> nn.Sequential:
    linear = nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True))
    activation = str(config.get("activation_function", "torch.nn.modules.linear.Identity")).rpartition(".")[2]
    if activation not in _ACTIVATIONS:
        raise UserError(f"{source}: activation {activation} of its Dense module is not supported")
    path = file_of(source, f"{folder}/model.safetensors", revision)
    if path is None:
        raise UserError(f"{source} has no {folder}/model.safetensors: its Dense module has no readable weights")
    try:
        linear.load_state_dict({key.removeprefix("linear."): value for key, value in load_file(path).items()})
    except (OSError, RuntimeError) as error:
        raise UserError(f"cannot read {path}: {first_line(error)}") from error
    return nn.Sequential(linear, _ACTIVATIONS[activation]())


def json_of(source: str, name: str, revision: str | None) -> Any:
    """Return the contents of a JSON file of a local folder or a model on the hub; None if it has no such file.

    Raises:
        UserError: the file cannot be read.
    """
    path = file_of(source, name, revision)
    return None if path is None else read_json(path)


def file_of(source: str, name: str, revision: str | None) -> str | None:
    """Return the path of a file of the model; None if the model does not have it, or the hub cannot be reached."""
    try:
        path: str | None = cached_file(
            source,
            name,
            revision=revision,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, ValueError):  # no such model: loading the model itself reports it
        return None
    return path
