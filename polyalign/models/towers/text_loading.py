"""Load a text tower: which network of a model's folder encodes text, with which pooling, prompt and tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForTextEncoding,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from polyalign.config.tower import STARTER, TextSpec
from polyalign.models.towers import sentence_transformers
from polyalign.models.towers.common import check_numbers, check_size, entries, fingerprint, to_safetensors
from polyalign.models.towers.staging import find_blocks
from polyalign.models.towers.text import TextTower
from polyalign.utils.errors import UserError, first_line
from polyalign.utils.hub import check_hub
from polyalign.utils.text import clean

logger = logging.getLogger(__name__)

# Of timm, which would load weights of its own.
_BACKBONES = ("backbone", "use_timm_backbone", "use_pretrained_backbone")


def build_text(spec: TextSpec, *, pretrained: bool = True, tokenizer: Path | None = None) -> TextTower:
    """Build the tower that a recipe names.

    ``pretrained=False`` gives random weights; with an ``architecture`` in the spec it needs neither network nor file.
    ``tokenizer`` is a folder (from a checkpoint) that is used in place of the model's own. What the spec leaves open
    (pooling, prompt) comes from a sentence-transformers folder; otherwise the pooling is the mean, without a prompt.

    Raises:
        UserError: no such model or folder, it does not fit the stated architecture, or it is not an encoder that reads
            ``max_tokens`` token ids.
    """
    if not pretrained and spec.architecture:
        spec = spec.model_copy(update={"pooling": spec.pooling or "mean"})
        fresh = partial(_random, _stated_config(spec), spec.pooling)
        return TextTower(fresh(), None, spec, fresh, nn.Sequential())
    modules = sentence_transformers.read(_root(spec), spec.revision, spec.pooling)
    spec = modules.completed(spec)
    config = _config(spec)
    fresh = partial(_random, config, spec.pooling)
    if not pretrained:
        return TextTower(fresh(), None, spec, fresh, modules.head)
    _check_architecture(spec, config)
    own = _with_pad(load_tokenizer(spec, tokenizer), spec.model)
    model = _without_pooler(load_encoder(spec).eval(), spec.pooling)
    tower = TextTower(model, own, spec, fresh, modules.head)
    tower.lower_case = modules.lower_case
    tower.fingerprint = fingerprint(tower.model, tower.head)
    return tower


def load_encoder(spec: TextSpec) -> PreTrainedModel:
    """Load the model alone, quietly; without its pooler where the file has none.

    Raises:
        UserError: no such model or folder, or it lacks weights, which transformers would draw at random.
    """
    source, config = _source(spec), _config(spec)
    check_size(partial(_random, config, spec.pooling), _weights(spec, source, config), spec.model)
    try:
        with quiet():
            how = {"dtype": torch.float32, "use_safetensors": True, "trust_remote_code": False}
            load = _auto_class(config).from_pretrained
            model, info = load(source, revision=spec.revision, output_loading_info=True, **how)
    except Exception as error:  # transformers raises many types on files that do not fit each other
        raise _cannot_load(spec.model, error) from error
    encoder = _encoder(model)
    kept = {id(tensor) for tensor in [*encoder.parameters(), *encoder.buffers()]}
    used = {name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if id(tensor) in kept}
    _check_layers(spec, encoder, info["unexpected_keys"])
    missing = sorted(key for key in info["missing_keys"] if key in used)
    pooler = [key for key in missing if "pooler." in key]
    if len(pooler) < len(missing) or (pooler and spec.pooling == "pooler"):
        lost = next((key for key in missing if key not in pooler), missing[0])
        raise UserError(f"{spec.model} lacks {len(missing)} of the tower's weights, such as {lost}")
    return _without_pooler(encoder, spec.pooling) if pooler else encoder


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the messages and progress bars of transformers."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _check_layers(spec: TextSpec, encoder: nn.Module, spare: Iterable[str]) -> None:
    """Check that the file has no more layers than the configuration states."""
    stacks = {path.rpartition(".")[0] for path in find_blocks(encoder)}
    left = sorted(key for key in spare if any(f".{stack}." in f".{key}" and "decoder" not in key for stack in stacks))
    if left:
        raise UserError(f"{spec.model} has weights of layers that its config.json does not state, such as {left[0]}")


def _auto_class(config: PretrainedConfig) -> Any:
    """Return the auto class that loads the model: the one for text encoding where a family has one for it alone."""
    encoder_decoder = bool(getattr(config, "is_encoder_decoder", False)) or config.model_type in ("t5", "mt5", "umt5")
    in_mapping = type(config) in AutoModelForTextEncoding._model_mapping
    return AutoModelForTextEncoding if encoder_decoder and in_mapping else AutoModel


def _encoder(model: Any) -> PreTrainedModel:
    """Return the network that encodes text: the text side of a multimodal model, the encoder of a translation model."""
    sides = [side for side in ("text_model", "language_model") if hasattr(model, side)]
    if hasattr(model.config, "text_config") and sides:
        model = getattr(model, sides[0])
    elif getattr(model.config, "is_encoder_decoder", False) and hasattr(model, "decoder"):
        model = model.get_encoder()
    return cast(PreTrainedModel, model)


def path_in_whole(encoder: PreTrainedModel) -> str:
    """Return the prefix of the encoder's tensors in a file, which is that of the model that it is a part of."""
    with torch.device("meta"):
        whole = _auto_class(encoder.config).from_config(encoder.config, trust_remote_code=False)
    paths = (path for path, part in whole.named_modules() if type(part) is type(encoder))
    return "".join(f"{path}." for path in [next(paths, "")] if path)


def _without_pooler(model: PreTrainedModel, pooling: str | None) -> PreTrainedModel:
    """Drop BERT's sentence classifier head unless it is the pooling: it is not part of the tower, and never counted."""
    if pooling != "pooler" and isinstance(getattr(model, "pooler", None), nn.Module):
        model.pooler = nn.Identity()  # some models call it in any case
    return model


def _random(config: PretrainedConfig, pooling: str | None) -> nn.Module:
    try:
        return _without_pooler(_encoder(_auto_class(config).from_config(config, trust_remote_code=False)), pooling)
    except Exception as error:  # configurations are not checked before they are used
        problem = clean(f"{type(error).__name__} {first_line(error)}", 300).rstrip(".")
        kind = clean(config.model_type, 40)
        raise UserError(f"transformers builds no text encoder for {kind}: {problem}; choose another encoder") from error


def load_tokenizer(spec: TextSpec, folder: Path | None = None) -> Any:
    """Load the tower's tokenizer, or the one in ``folder``, without its weights.

    Raises:
        UserError: no such model or folder.
    """
    source, revision = (str(folder), None) if folder is not None else (_source(spec), spec.revision)
    try:
        return AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    except Exception as error:  # the tokenizer classes raise many types on files that are not theirs
        raise _cannot_load(f"{folder or spec.model}, its tokenizer", error) from error


def _with_pad(tokenizer: Any, model: str) -> Any:
    """Pad with the end-of-sequence token where a tokenizer has no pad token, as GPT-2's; padding is masked anyway."""
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise UserError(f"the tokenizer of {model} has no pad token and no end-of-sequence token to pad with")
        tokenizer.pad_token = tokenizer.eos_token
        logger.info(f"{model} has no pad token: {tokenizer.eos_token}, its end of sequence, is used for padding")
    return tokenizer


def _source(spec: TextSpec) -> str:
    """Return the local folder of the encoder, which can be inside a sentence-transformers folder, or its hub name."""
    root = _root(spec)
    inside = Path(root) / "0_Transformer"
    return str(inside) if inside.is_dir() else root


def _root(spec: TextSpec) -> str:
    """Return the local folder of the model, or its name on the hub."""
    source = str(STARTER / "text") if spec.model == "starter" else str(Path(spec.model).expanduser())
    if Path(source).is_dir():
        return source
    if spec.model.startswith(("/", "~", ".")) or ("/" in spec.model and Path(spec.model).parent.is_dir()):
        raise UserError(f"no such folder: {spec.model}")
    check_hub()
    return spec.model


def _cannot_load(what: str, error: Exception) -> UserError:
    problem = clean(first_line(error), 300)
    if "trust_remote_code" in str(error):
        problem = "it needs code of its own"
        hint = "which is never run: choose a model of a type that transformers knows"
    elif "model.safetensors" in problem:
        convert = to_safetensors("pytorch_model.bin")
        hint = f"only safetensors files are read, since other formats can run code; to convert one: {convert}"
    else:
        is_local = Path(what.partition(",")[0]).expanduser().is_dir()
        hint = "check the files in the folder" if is_local else "without network, give a local folder"
    return UserError(f"cannot load the text tower {what}: {problem} ({hint})")


def _config(spec: TextSpec) -> PretrainedConfig:
    source = _source(spec)
    _check_files(spec, source)
    try:
        with quiet():
            return AutoConfig.from_pretrained(source, revision=spec.revision, trust_remote_code=False)  # type: ignore[no-any-return]
    except Exception as error:  # transformers validates configurations with errors of its own
        raise _cannot_load(spec.model, error) from error


def _check_files(spec: TextSpec, source: str) -> None:
    """Check the files that tell transformers what to load, before it follows them."""
    facts = sentence_transformers.json_of(source, "config.json", spec.revision)
    if not isinstance(facts, dict | None):
        raise UserError(f"{spec.model} has a config.json that is not a table")
    if sentence_transformers.file_of(source, "adapter_config.json", spec.revision) is not None:
        raise UserError(f"{spec.model} is an adapter of another model: merge both with peft's merge_and_unload")
    check_numbers(facts, f"{spec.model}: its config.json")
    for key, value in entries(facts):
        if value and (key in _BACKBONES or (key == "model_type" and str(value).startswith("timm"))):
            stated = clean(f"{key} = {value}", 80)
            raise UserError(f"{spec.model} cannot be a text encoder: its config.json has {stated}")


def _weights(spec: TextSpec, source: str, config: PretrainedConfig) -> list[str]:
    """Return the local paths of the files of weights, which must be safetensors files beside the configuration."""
    index = sentence_transformers.json_of(source, "model.safetensors.index.json", spec.revision)
    shards = index.get("weight_map") if isinstance(index, dict) else {}
    if not isinstance(shards, dict):
        raise UserError(f"{spec.model} has a model.safetensors.index.json that is not a table")
    names = [getattr(config, "transformers_weights", None) or "model.safetensors", *shards.values()]
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or ".safetensors" not in Path(name).suffixes:
            wanted = "it must be a safetensors file in the same folder"
            raise UserError(f"{spec.model} names {clean(name, 80)} as its weights: {wanted}")
    files = [sentence_transformers.file_of(source, name, spec.revision) for name in sorted(set(names))]
    return [file for file in files if file is not None]


def _stated_config(spec: TextSpec) -> PretrainedConfig:
    """Return the configuration that the recipe states as ``architecture``."""
    try:
        with quiet():
            config: PretrainedConfig = AutoConfig.for_model(**spec.architecture)
    except Exception as error:  # transformers validates configurations with errors of its own
        raise UserError(f"cannot read the configuration of {spec.model}: {first_line(error)}") from error
    return config


def _check_architecture(spec: TextSpec, config: PretrainedConfig) -> None:
    stated = {key: getattr(config, key, None) for key in spec.architecture}
    wrong = {key: value for key, value in stated.items() if value != spec.architecture[key]}
    if wrong:
        raise UserError(f"{spec.model} is not the architecture the recipe states: it has {wrong}")
