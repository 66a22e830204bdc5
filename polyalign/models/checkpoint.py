"""Checkpoints: the trained parameters, and hashes that identify the pretrained rest."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from polyalign.config.language import describe_error
from polyalign.config.resolve import read_recipe
from polyalign.config.run_files import RECIPE, WEIGHTS, check_finished
from polyalign.config.schema import Recipe
from polyalign.config.shipped import read_toml
from polyalign.config.tower import Preprocessing
from polyalign.models.aligner import Aligner
from polyalign.models.build import build_aligner
from polyalign.utils import storage
from polyalign.utils.errors import UserError, first_line
from polyalign.utils.text import clean

logger = logging.getLogger(__name__)

TOWERS, TOKENIZER = "towers.json", "tokenizer"
FILES = (WEIGHTS, RECIPE, TOWERS, TOKENIZER)
"""All that ``save`` writes into a folder."""

PLACES = (
    *(("vision", "model"), ("vision", "weights"), ("text", "model"), ("source", "root"), ("source", "images")),
    *(("parallel", "text"), ("parent", "run"), ("teacher", "run")),
)
"""The keys of a recipe that say where files are; they may be changed in a finished run."""


class Towers(BaseModel):
    """The towers that a checkpoint belongs to: hashes of their pretrained weights, and the image preprocessing.

    ``merged`` towers contain what was trained in them; what they were before is not known.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = 1
    vision: str
    text: str
    preprocessing: Preprocessing
    merged: bool = False


def trained_state(aligner: Aligner) -> dict[str, torch.Tensor]:
    """Return what training changes: trainable parameters, and the statistics of norms in training mode.

    Parameters that a teacher trained are among them.

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
    inherited = {name: one for name, one in aligner.named_parameters() if name in aligner.inherited}
    return {**aligner.trainable(), **inherited, **buffers}


def save(folder: Path, aligner: Aligner, recipe: Recipe, *, merged: bool = False) -> int:
    """Write a checkpoint into ``folder`` and return the size in bytes of its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    towers = Towers(
        vision=aligner.vision.fingerprint or "",
        text=aligner.text.fingerprint or "",
        preprocessing=aligner.vision.preprocessing,
        merged=merged,
    )
    tokenizer = folder / TOKENIZER
    if links := [path for path in (tokenizer, *tokenizer.glob("*")) if path.is_symlink()]:
        raise UserError(f"{links[0]} is a link, whose target would be overwritten: remove it, and use --resume")
    try:
        aligner.text.tokenizer.save_pretrained(folder / TOKENIZER)
    except OSError as error:
        raise storage.cannot_write(folder / TOKENIZER, error) from error
    facts = towers.model_dump_json(indent=2, exclude=None if merged else {"merged"})
    storage.write_text(folder / TOWERS, facts + "\n")
    storage.write_text(folder / RECIPE, recipe.to_toml())
    metadata = {"format": "polyalign 1", "files": json.dumps(_digests(folder))}
    storage.save_tensors(folder / WEIGHTS, trained_state(aligner), metadata)
    return (folder / WEIGHTS).stat().st_size


def replace_recipe(folder: Path, recipe: Recipe) -> None:
    """Replace the recipe of a checkpoint by one with other places of files, also in what its weights record.

    Weights are written again only if more than ``PLACES`` differ.
    """
    before = _recipe_digest(folder / RECIPE)
    storage.write_text(folder / RECIPE, recipe.to_toml())
    if _recipe_digest(folder / RECIPE) != before:
        tensors, metadata = storage.load_tensors(folder / WEIGHTS)
        if "files" in metadata:
            storage.save_tensors(folder / WEIGHTS, tensors, metadata | {"files": json.dumps(_digests(folder))})


def _digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a checkpoint except the weights, by its path in the folder."""
    names = [folder / TOWERS, *sorted((folder / TOKENIZER).rglob("*"))]
    files = [path for path in names if path.is_file() and not path.name.startswith(".")]
    digests = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    if (folder / RECIPE).is_file():
        digests[RECIPE] = _recipe_digest(folder / RECIPE)
    return digests


def _recipe_digest(path: Path) -> str:
    """Return the SHA-256 of the settings of a recipe without the places of files, which may be moved."""
    table = read_toml(path)
    for section, key in PLACES:
        if isinstance(table.get(section), dict):
            table[section].pop(key, None)
    return hashlib.sha256(json.dumps(table, sort_keys=True, default=str).encode()).hexdigest()


def _check_files(folder: Path, recorded: str | None) -> None:
    """Check that no file of a checkpoint was changed, deleted or added since its weights were saved."""
    if recorded is None:
        return logger.info(f"{folder} was saved before its files were recorded: changes to them cannot be detected")
    try:
        then, now = dict(json.loads(recorded)), _digests(folder)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"cannot read the files of {folder}: {first_line(error)}") from error
    for name in sorted({*then, *now}):
        if then.get(name) != now.get(name):
            how = "deleted" if name not in now else "changed" if name in then else "added"
            hint = "copy the whole folder again, or train again"
            if name == RECIPE:
                hint += "; only the places of towers and data may be edited"
            raise UserError(f"{folder / clean(name)} was {how} after {WEIGHTS} was saved: {hint}")


def identity(folder: Path) -> str:
    """Return a hash of the weights of a checkpoint, in which its other files are recorded.

    Raises:
        UserError: there is no checkpoint, or it cannot be read.
    """
    check_finished(folder)
    try:
        with (folder / WEIGHTS).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {folder / WEIGHTS}: {error.strerror}") from error


def load(folder: Path, *, text_only: bool = False) -> tuple[Aligner, Recipe]:
    """Load a checkpoint: towers from their own source, the trained part from here.

    Preprocessing and tokenizer are the saved ones, whatever the hub says today. With ``text_only`` the vision tower is
    not loaded: it is on the meta device, and only sentences can be embedded.

    Raises:
        UserError: there is no checkpoint, a file of it was changed, the towers' weights are not those it was trained
            on, or it does not fit.
    """
    check_finished(folder)
    tensors, metadata = storage.load_tensors(folder / WEIGHTS)
    _check_files(folder, metadata.get("files"))
    recipe = read_recipe(folder / RECIPE)
    towers = read_towers(folder)
    try:
        aligner = build_aligner(
            recipe, preprocessing=towers.preprocessing, tokenizer=folder / TOKENIZER, text_only=text_only
        )
    except UserError as error:
        raise UserError(f"{folder / RECIPE}: {error}") from error
    for name, found, wanted in (
        ("vision", aligner.vision.fingerprint, towers.vision),
        ("text", aligner.text.fingerprint, towers.text),
    ):
        if found != wanted and not (text_only and name == "vision"):
            raise UserError(
                f"the {name} tower's weights are not those this checkpoint was trained on ({found}, not {wanted}): "
                "get the same revision of the tower, or train again"
            )
    restore(aligner, tensors, str(folder / WEIGHTS))
    return aligner.eval(), recipe


def read_towers(folder: Path) -> Towers:
    """Read which towers the checkpoint in a folder belongs to.

    Raises:
        UserError: the file is missing or malformed.
    """
    path = folder / TOWERS
    try:
        return Towers.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValidationError as error:
        raise UserError(f"{path} is not what was saved there: {describe_error(error)}") from error


def check_pretrained(folder: Path) -> None:
    """Check that the towers of a checkpoint are as they were before training.

    Raises:
        UserError: the folder was written by ``polyalign merge``, and its towers are the trained ones.
    """
    if (folder / TOWERS).is_file() and read_towers(folder).merged:
        raise UserError(f"{folder} was merged: its towers before training are not in it; give the run it was made from")


@torch.no_grad()
def restore(aligner: Aligner, tensors: dict[str, torch.Tensor], where: str) -> None:
    """Put a trained state back, to the bit.

    Raises:
        UserError: the tensors are not those that the recipe trains.
    """
    state = trained_state(aligner)
    check_fits(state, tensors, where)
    for name, tensor in state.items():
        tensor.copy_(tensors[name])


def check_fits(state: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor], where: str) -> None:
    """Check that tensors have the names, shapes and types of a trained state.

    Raises:
        UserError: they have not.
    """
    names = state.keys() & tensors.keys()
    kinds = [(name, tensors[name], state[name]) for name in sorted(names)]
    wrong = sorted(state.keys() ^ tensors.keys()) or [
        f"{name} ({found.dtype} {list(found.shape)}, not {wanted.dtype} {list(wanted.shape)})"
        for name, found, wanted in kinds
        if (found.dtype, found.shape) != (wanted.dtype, wanted.shape)
    ]
    if wrong:
        raise UserError(f"{where} does not fit its recipe: it differs in {clean(', '.join(wrong[:3]), 300)}")
