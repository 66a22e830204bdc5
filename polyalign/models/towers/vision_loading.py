"""Load a vision tower: a timm model from the hub, a local folder or a file of weights, or that of another library."""

from __future__ import annotations

import logging
import sys
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import timm
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data import resolve_model_data_config
from timm.models import build_model_with_cfg
from torch import nn

from polyalign.config.language import describe_error
from polyalign.config.shipped import read_toml
from polyalign.config.tower import STARTER, Preprocessing, VisionSpec
from polyalign.models.towers.common import check_numbers, check_size, fingerprint, read_json, to_safetensors
from polyalign.models.towers.external import FAMILIES, build_external
from polyalign.models.towers.vision import VisionTower
from polyalign.utils.errors import UserError, did_you_mean, first_line
from polyalign.utils.hub import check_hub
from polyalign.utils.text import clean

logger = logging.getLogger(__name__)

# Of weights on the hub only the safetensors file; without it, timm would fall back to pickles and to other servers.
_SAFE_WEIGHTS = {"hf_hub_filename": "model.safetensors", "custom_load": False, "url": None, "file": None}
# All that timm reads from the arguments of a model before it passes the others on to the architecture.
_CONTROLS = {
    *(set(signature(timm.create_model).parameters) | set(signature(build_model_with_cfg).parameters)) - {"kwargs"},
    *("features_only", "out_indices", "feature_cls", "pruned", "num_classes"),
}


def build_vision(
    spec: VisionSpec, *, pretrained: bool = True, preprocessing: Preprocessing | None = None
) -> VisionTower:
    """Build the tower that a recipe names.

    ``pretrained=False`` gives random weights and needs neither network nor file. ``preprocessing`` (from a
    checkpoint) replaces what the model's configuration says.

    Raises:
        UserError: unknown timm name, missing or misfitting weights, no network and nothing in the local cache, or the
            model does not take images of the size that the recipe states.
    """
    if spec.model.partition(":")[0] in FAMILIES:
        return build_external(spec, pretrained=pretrained, preprocessing=preprocessing)
    name, args, weights, stated = _locate(spec)
    _check_args(args, f"vision.args of {spec.model}")
    if stated.image_px is not None and "img_size" not in args and _is_of_fixed_size(name):
        args["img_size"] = stated.image_px
    fresh = partial(_create, name, args, hub=False)
    file = Path(name.partition(":")[2]) / "model.safetensors" if name.startswith("local-dir:") else weights
    if pretrained and file is not None:
        check_size(fresh, [file], spec.model)
    model = _create(name, args, hub=True) if pretrained and weights is None else fresh()
    if pretrained and weights is not None:
        _load_weights(model, weights)
    tower = VisionTower(model.eval(), preprocessing or _preprocessing(model, stated, args), spec.pooling, fresh)
    tower.source, tower.place = (name, args), spec.model
    if pretrained:
        tower.fingerprint = fingerprint(model)
    if pretrained and weights is not None and preprocessing is None:
        _warn_if_assumed(stated, args, tower.preprocessing)
    return tower


def _warn_if_assumed(stated: VisionSpec, args: dict[str, Any], used: Preprocessing) -> None:
    """Say which preprocessing is assumed for a file of weights, which does not state its own."""
    values = {"image_px": stated.image_px or args.get("img_size"), "mean": stated.mean, "std": stated.std}
    if assumed := [key for key, value in values.items() if value is None]:
        shown = ", ".join(f"vision.{key} = {getattr(used, key)}" for key in assumed)
        logger.warning(
            f"warning: {stated.weights or stated.model} does not state its preprocessing: assuming {shown}, timm's for "
            f"{stated.model}; set what the weights were trained with"
        )


def _locate(spec: VisionSpec) -> tuple[str, dict[str, Any], Path | None, VisionSpec]:
    """Return the timm name, its arguments, the weights file if local, and the spec with the folder's own facts."""
    folder = STARTER / "vision" if spec.model == "starter" else None
    local = spec.model.removeprefix("local-dir:")  # timm's way to name a folder
    if folder is None and (local != spec.model or "/" in local) and not local.startswith(("hf-hub:", "hf_hub:")):
        folder = Path(local).expanduser()
        if not folder.is_dir():
            raise UserError(f"no such folder: {spec.model} (a hub model is written hf-hub:{spec.model})")
    if folder is None:
        return spec.model, dict(spec.args), spec.weights, spec
    if not (folder / "tower.toml").is_file():
        if (folder / "config.json").is_file():
            _check_timm_folder(folder)
            return f"local-dir:{folder}", dict(spec.args), None, spec
        raise UserError(f"{folder} holds no vision tower: expected tower.toml (polyalign's) or config.json (timm's)")
    facts = read_toml(folder / "tower.toml")
    given = spec.model_dump(exclude_none=True, exclude={"args", "pooling", "weights", "model"})
    try:
        stated = VisionSpec.model_validate({**facts, **given, "pooling": spec.pooling})
    except ValidationError as error:
        raise UserError(f"{folder / 'tower.toml'}: {describe_error(error)}") from error
    if ":" in stated.model:
        raise UserError(f"{folder / 'tower.toml'}: model must be a plain timm name, not {clean(stated.model, 80)}")
    return stated.model, {**stated.args, **spec.args}, spec.weights or folder / "model.safetensors", stated


def _check_args(args: dict[str, Any], where: str) -> None:
    """Check that the arguments are of the architecture, of possible size, and do not tell timm what to load."""
    if wrong := sorted(set(args) & _CONTROLS):
        raise UserError(f"{where}: {', '.join(wrong)} cannot be set, only arguments of the architecture")
    check_numbers(args, where)


def _check_timm_folder(folder: Path) -> None:
    """Check a folder in timm's own format before timm follows it."""
    facts = read_json(folder / "config.json")
    inner = facts.get("pretrained_cfg", facts) if isinstance(facts, dict) else None
    args = facts.get("model_args") or {} if isinstance(facts, dict) else None
    if not isinstance(inner, dict) or not isinstance(args, dict) or not timm.is_model(str(facts.get("architecture"))):
        raise UserError(
            f"{folder / 'config.json'} names no known architecture of timm: a text encoder belongs to text.model"
        )
    _check_args(args, f"{folder / 'config.json'}, model_args")
    if not (folder / "model.safetensors").is_file():
        raise UserError(
            f"{folder} has no model.safetensors: other formats are not read, since they can run code; "
            f"to convert one: {to_safetensors('pytorch_model.bin')}"
        )


def _is_of_fixed_size(name: str) -> bool:
    """Whether the model is built for one image size, which is then an argument of the model."""
    if ":" in name:
        return False
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return bool(config is not None and config.fixed_input_size)


def _create(name: str, args: dict[str, Any], *, hub: bool) -> nn.Module:
    base = name.partition(".")[0]
    if ":" not in name and not timm.is_model(base):
        known = did_you_mean(base, timm.list_models()).split(" (known")[0]
        raise UserError(f'timm knows no model "{base}": {known}')
    if is_from_hub := hub and not name.startswith("local-dir:"):
        check_hub()
    try:
        overlay = None if name.startswith("local-dir:") else _SAFE_WEIGHTS
        return timm.create_model(name, pretrained=hub, num_classes=0, pretrained_cfg_overlay=overlay, **args)
    except Exception as error:  # timm passes the arguments on without checks
        hint = " (without network, give a local folder or vision.weights)" if is_from_hub else ""
        raise UserError(f"timm cannot build {name} with {args}: {_short(error)}{hint}") from error


def _load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors file; timm's own filter fits position embeddings to the size of the images."""
    try:
        state = load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read weights from {path}: {first_line(error)}") from error
    family = sys.modules[type(model).__module__]
    if hasattr(family, "checkpoint_filter_fn"):
        state = family.checkpoint_filter_fn(state, model)
    wanted = set(model.state_dict())
    missing = wanted - set(state)
    spare = {key for key in set(state) - wanted if not key.startswith(("head.", "fc.", "classifier."))}
    if missing or spare:
        raise UserError(
            f"{path} does not fit the model: {len(missing)} tensors missing {sorted(missing)[:3]}, "
            f"{len(spare)} not wanted {sorted(spare)[:3]}; check the timm name and args"
        )
    try:
        model.load_state_dict({key: value for key, value in state.items() if key in wanted})
    except RuntimeError as error:
        raise UserError(f"{path} does not fit the model: {_short(error)}; check the timm name and args") from error


def _short(error: BaseException) -> str:
    """Return the first two lines of an error's text: torch names the tensors that do not fit in the second."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] or type(error).__name__


def _preprocessing(model: nn.Module, spec: VisionSpec, args: dict[str, Any]) -> Preprocessing:
    """Take timm's data configuration of the weights, with what the recipe states in its place."""
    config = resolve_model_data_config(model)
    own = preprocessing_of({**config, "input_size": (args.get("in_chans", 3), *config["input_size"][1:])})
    stated = {"image_px": spec.image_px or args.get("img_size"), "mean": spec.mean, "std": spec.std}
    changes = {**stated, "crop_pct": spec.crop_pct}
    try:
        return Preprocessing(**{**own.model_dump(), **{k: value for k, value in changes.items() if value is not None}})
    except ValidationError as error:
        problem = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"the image preprocessing of the vision tower cannot be right: {problem}") from error


def preprocessing_of(config: dict[str, Any]) -> Preprocessing:
    """Read timm's data configuration of a model; grey images have the mean of the statistics of the colours."""
    channels, height, width = config["input_size"]
    mean, std = (
        values if len(values) == channels else (sum(values) / len(values),) * channels
        for values in (config["mean"], config["std"])
    )
    return Preprocessing(
        image_px=height if height == width else (height, width),
        mean=mean,
        std=std,
        crop_pct=config["crop_pct"],
        interpolation=config["interpolation"],
        crop_mode=config["crop_mode"],
    )
