"""The text tower: any Hugging Face encoder, cut into stages so that a frozen lower part can be computed once."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from polyalign.config.tower import STARTER, TextSpec
from polyalign.models.towers.common import fingerprint, masked_pool
from polyalign.utils.errors import UserError


@dataclass(frozen=True)
class Tokens:
    """A padded batch part-way through the text tower.

    ``values`` is ``(B, L)`` token ids before stage 0 and ``(B, L, W)`` hidden states after it; ``mask`` ``(B, L)``
    is true at real tokens.
    """

    values: torch.Tensor
    mask: torch.Tensor

    def to(self, device: torch.device | str) -> Tokens:
        """Move both tensors."""
        return Tokens(self.values.to(device), self.mask.to(device))


class TextTower(nn.Module):
    """A Hugging Face encoder with masked pooling.

    The BERT and RoBERTa families have ``layers + 2`` stages: token ids to hidden states, each layer, pooling. Any other
    encoder is one stage. ``run(x, start, stop)`` computes the stages from ``start`` up to but not including ``stop``;
    the last stage gives ``(B, width)`` features.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, spec: TextSpec) -> None:
        """Wrap ``model``; ``tokenizer`` is None where only parameters are counted."""
        super().__init__()
        self.model = _without_pooler(model)
        self.tokenizer = tokenizer
        self.pooling = spec.pooling
        self.revision = spec.revision
        self.max_tokens = spec.max_tokens
        self.fingerprint: str | None = None
        self.variant = f"{spec.pooling} {_facts(cast(Any, model.config))}"
        self.is_random = False
        self.width = int(cast(Any, model.config).hidden_size)
        self.name = f"text tower ({type(model).__name__})"

    def tokenize(self, captions: list[str]) -> list[list[int]]:
        """Turn captions into token ids with the tower's special tokens, cut by the tokenizer at ``max_tokens``."""
        if not captions:
            return []
        encoded = self.tokenizer(captions, truncation=True, max_length=self.max_tokens, add_special_tokens=True)
        return cast(list[list[int]], encoded["input_ids"])

    def collate(self, ids: list[list[int]]) -> Tokens:
        """Pad token ids to the longest of the batch."""
        length = max(map(len, ids))
        values = torch.full((len(ids), length), int(self.tokenizer.pad_token_id))
        mask = torch.zeros((len(ids), length), dtype=torch.bool)
        for row, sequence in enumerate(ids):
            values[row, : len(sequence)] = torch.tensor(sequence)
            mask[row, : len(sequence)] = True
        return Tokens(values, mask)

    @property
    def blocks(self) -> nn.ModuleList | None:
        """The transformer layers, lowest first, or None where the encoder has no list of them."""
        lists = [module for module in self.model.modules() if isinstance(module, nn.ModuleList)]
        depth = getattr(self.model.config, "num_hidden_layers", None)
        return next((found for found in lists if len(found) == depth), lists[0] if lists else None)

    @property
    def is_staged(self) -> bool:
        """Whether the forward pass is ``embeddings`` then ``encoder.layer``, as in BERT, RoBERTa and XLM-R."""
        encoder = getattr(self.model, "encoder", None)
        return hasattr(self.model, "embeddings") and isinstance(getattr(encoder, "layer", None), nn.ModuleList)

    @property
    def top(self) -> list[nn.Module]:
        """The modules above the layers: none in the BERT family, a final norm in others."""
        blocks = self.blocks
        inside = set() if blocks is None else set(blocks.modules())
        return [part for name, part in self.model.named_children() if "norm" in name.lower() and part not in inside]

    def reinitialise(self) -> None:
        """Throw the pretrained weights away: random weights, as transformers initialises this model."""
        self.model = _without_pooler(type(self.model)(self.model.config))
        self.is_random = True

    def stages(self) -> list[list[nn.Parameter]]:
        """List the parameters of every stage, lowest first; pooling has none."""
        if not self.is_staged:
            return [list(self.model.parameters())]
        layers = cast(nn.ModuleList, cast(nn.Module, self.model.encoder).layer)
        blocks = [list(layer.parameters()) for layer in layers]
        above = {id(parameter) for stage in blocks for parameter in stage}
        embed = [parameter for parameter in self.model.parameters() if id(parameter) not in above]
        return [embed, *blocks, []]

    def run(self, x: Tokens, start: int, stop: int) -> Tokens | torch.Tensor:
        """Compute stages ``start`` to ``stop`` (exclusive): hidden states, or features when ``stop`` is the last."""
        last = len(self.stages())
        if start >= stop:
            return x
        if not self.is_staged:
            hidden = self.model(input_ids=x.values, attention_mask=x.mask.long()).last_hidden_state
            return masked_pool(hidden, x.mask, self.pooling)
        hidden = x.values
        if start < last - 1:
            model = _slice(self.model, start, min(stop, last - 1))
            given = {"input_ids": x.values} if start == 0 else {"inputs_embeds": x.values}
            hidden = model(**given, attention_mask=x.mask.long()).last_hidden_state
        return masked_pool(hidden, x.mask, self.pooling) if stop == last else Tokens(hidden, x.mask)

    def forward(self, x: Tokens) -> torch.Tensor:
        """Return ``(B, width)`` features for a batch of token ids."""
        return cast(torch.Tensor, self.run(x, 0, len(self.stages())))


def _facts(config: PretrainedConfig) -> str:
    """Return the configuration as JSON with sorted keys, without the model's path and the version that wrote it."""
    facts = config.to_dict()
    for key in ("_name_or_path", "transformers_version"):
        facts.pop(key, None)
    return json.dumps(facts, sort_keys=True, default=str)


def _without_pooler(model: nn.Module) -> nn.Module:
    """Drop BERT's sentence classifier head: it is not part of the tower, and never counted."""
    if getattr(model, "pooler", None) is not None:
        model.register_module("pooler", None)
    return model


class _Given(nn.Module):
    """Stands where the embeddings stood when the hidden states are already there."""

    def forward(self, inputs_embeds: torch.Tensor, **_: Any) -> torch.Tensor:
        return inputs_embeds


def _slice(model: nn.Module, start: int, stop: int) -> nn.Module:
    """Make a shallow twin of the encoder that runs stages ``start`` to ``stop`` and shares all parameters.

    The model's own forward still builds the attention mask and calls the layers, so nothing of it is written again
    here.
    """
    encoder = cast(nn.Module, model.encoder)
    layers = cast(nn.ModuleList, encoder.layer)
    kept = nn.ModuleList(list(layers)[max(start - 1, 0) : stop - 1])
    parts: dict[str, nn.Module] = {"encoder": _twin(encoder, {"layer": kept})}
    if start > 0:
        parts["embeddings"] = _Given()
    return _twin(model, parts)


def _twin(module: nn.Module, parts: dict[str, nn.Module]) -> nn.Module:
    twin = copy.copy(module)
    twin.__dict__["_modules"] = {**module._modules, **parts}
    return twin


def build_text(spec: TextSpec, *, pretrained: bool = True, tokenizer: Path | None = None) -> TextTower:
    """Build the tower a recipe names.

    ``pretrained=False`` gives random weights; with an ``architecture`` in the spec it needs neither network nor file.
    ``tokenizer`` is a folder (from a checkpoint) to be used in place of the model's own.

    Raises:
        UserError: no such model or folder, or it does not fit the stated architecture.
    """
    source = _source(spec)
    if not pretrained:
        config = _config(spec, source)
        return TextTower(AutoModel.from_config(config), None, spec)
    model = load_encoder(spec)
    _check_architecture(spec, model.config)
    tower = TextTower(model.eval(), load_tokenizer(spec, tokenizer), spec)
    tower.fingerprint = fingerprint(tower.model)
    return tower


def load_encoder(spec: TextSpec) -> PreTrainedModel:
    """Load the model alone, quietly; without its pooler where the file has none for it.

    Raises:
        UserError: no such model or folder, or it lacks weights, which transformers would draw at random.
    """
    source = _source(spec)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, info = AutoModel.from_pretrained(
            source,
            revision=spec.revision,
            dtype=torch.float32,
            output_loading_info=True,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise _cannot_load(spec.model, error) from error
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
    missing = sorted(info["missing_keys"])
    without_pooler = [key for key in missing if not key.startswith("pooler.")]
    if without_pooler:
        raise UserError(
            f"{spec.model} lacks {len(without_pooler)} of the tower's weights, {without_pooler[0]} among them"
        )
    return cast(PreTrainedModel, _without_pooler(model) if missing else model)


def load_tokenizer(spec: TextSpec, folder: Path | None = None) -> Any:
    """Load the tower's tokenizer, or the one in ``folder``, without its weights.

    Raises:
        UserError: no such model or folder.
    """
    try:
        if folder is not None:
            return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        return AutoTokenizer.from_pretrained(_source(spec), revision=spec.revision, trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:  # a file that is no tokenizer's raises whatever reading it came upon
        raise _cannot_load(f"{folder or spec.model}, its tokenizer", error) from error


def _source(spec: TextSpec) -> str:
    """Return the local folder of the model, or its name on the hub."""
    source = str(STARTER / "text") if spec.model == "starter" else str(Path(spec.model).expanduser())
    if Path(source).is_dir():
        return source
    if spec.model.startswith(("/", "~", ".")):
        raise UserError(f"no such folder: {spec.model}")
    return spec.model


def _cannot_load(what: str, error: Exception) -> UserError:
    line = next(iter(str(error).splitlines()), type(error).__name__)
    return UserError(f"cannot load the text tower {what}: {line} (offline? give a local folder)")


def _config(spec: TextSpec, source: str) -> PretrainedConfig:
    try:
        config: PretrainedConfig = (
            AutoConfig.for_model(**spec.architecture)
            if spec.architecture
            else AutoConfig.from_pretrained(source, revision=spec.revision, trust_remote_code=False)
        )
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"cannot read the configuration of {spec.model}: {str(error).splitlines()[0]}") from error
    return config


def _check_architecture(spec: TextSpec, config: PretrainedConfig) -> None:
    wrong = {
        key: getattr(config, key, None)
        for key, value in spec.architecture.items()
        if getattr(config, key, None) != value
    }
    if wrong:
        raise UserError(f"{spec.model} is not the architecture the recipe states: it has {wrong}")
