"""Checkpoints: the trained parameters, and hashes that identify the pretrained rest."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from polyalign.config.language import describe_error
from polyalign.config.resolve import read_recipe
from polyalign.config.schema import Recipe
from polyalign.config.tower import Preprocessing
from polyalign.models.aligner import Aligner
from polyalign.models.build import build_aligner
from polyalign.utils import storage
from polyalign.utils.errors import UserError

WEIGHTS, RECIPE, TOWERS, TOKENIZER = "model.safetensors", "recipe.toml", "towers.json", "tokenizer"
FILES = (WEIGHTS, RECIPE, TOWERS, TOKENIZER)
"""All that ``save`` writes into a folder."""


class Towers(BaseModel):
    """The towers that a checkpoint belongs to: hashes of their pretrained weights, and the image preprocessing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = 1
    vision: str
    text: str
    preprocessing: Preprocessing


def trained_state(aligner: Aligner) -> dict[str, torch.Tensor]:
    """Return what training changes: trainable parameters, and the statistics of norms in training mode.

    The training mode of the aligner does not change.
    """
    modes = [(module, module.training) for module in aligner.modules()]
    aligner.train()
    buffers = {
        f"{path}.{name}": buffer
        for path, module in aligner.named_modules()
        if module.training
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    }
    for module, training in modes:
        module.training = training
    return {**aligner.trainable(), **buffers}


def save(folder: Path, aligner: Aligner, recipe: Recipe) -> int:
    """Write a checkpoint into ``folder`` and return the size in bytes of its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    towers = Towers(
        vision=aligner.vision.fingerprint or "",
        text=aligner.text.fingerprint or "",
        preprocessing=aligner.vision.preprocessing,
    )
    aligner.text.tokenizer.save_pretrained(folder / TOKENIZER)
    storage.write_text(folder / TOWERS, towers.model_dump_json(indent=2) + "\n")
    storage.write_text(folder / RECIPE, recipe.to_toml())
    storage.save_tensors(folder / WEIGHTS, trained_state(aligner), {"format": "polyalign 1"})
    return (folder / WEIGHTS).stat().st_size


def check_finished(folder: Path) -> None:
    """Check that a folder holds a finished run.

    Raises:
        UserError: it does not.
    """
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} holds no finished checkpoint (no {WEIGHTS}): train first, or finish with --resume")


def load(folder: Path) -> tuple[Aligner, Recipe]:
    """Load a checkpoint: towers from their own source, the trained part from here.

    Preprocessing and tokenizer are the saved ones, whatever the hub says today.

    Raises:
        UserError: there is no checkpoint, the towers' weights are not those it was trained on, or it does not fit.
    """
    check_finished(folder)
    recipe = read_recipe(folder / RECIPE)
    towers = _read_towers(folder / TOWERS)
    aligner = build_aligner(recipe, preprocessing=towers.preprocessing, tokenizer=folder / TOKENIZER)
    for name, found, wanted in (
        ("vision", aligner.vision.fingerprint, towers.vision),
        ("text", aligner.text.fingerprint, towers.text),
    ):
        if found != wanted:
            raise UserError(
                f"the {name} tower's weights are not those this checkpoint was trained on ({found}, not {wanted}): "
                "get the same revision of the tower, or train again"
            )
    tensors, _ = storage.load_tensors(folder / WEIGHTS)
    restore(aligner, tensors, str(folder / WEIGHTS))
    return aligner.eval(), recipe


def _read_towers(path: Path) -> Towers:
    try:
        return Towers.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValidationError as error:
        raise UserError(f"{path} is not what was saved there: {describe_error(error)}") from error


@torch.no_grad()
def restore(aligner: Aligner, tensors: dict[str, torch.Tensor], where: str) -> None:
    """Put a trained state back, to the bit.

    Raises:
        UserError: the tensors are not those that the recipe trains.
    """
    state = trained_state(aligner)
    if set(state) != set(tensors) or any(state[name].shape != tensors[name].shape for name in state):
        wrong = sorted(set(state) ^ set(tensors))[:3]
        raise UserError(f"{where} does not fit its recipe: it differs in {wrong or 'shapes'}")
    for name, tensor in state.items():
        tensor.copy_(tensors[name])
