"""Start from the weights of a finished run: its parent, or the teacher of a distilled run."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import torch

from polyalign.config.resolve import read_recipe
from polyalign.config.run_files import RECIPE, WEIGHTS, check_finished
from polyalign.config.schema import Parent, Recipe
from polyalign.data.pairs import PairTable
from polyalign.data.trained_images import load_trained_images
from polyalign.models import checkpoint
from polyalign.models.aligner import Aligner
from polyalign.utils import storage
from polyalign.utils.errors import UserError

logger = logging.getLogger(__name__)


def weights_digest(folder: Path) -> str:
    """Return the SHA-256 of the weights of a finished run.

    Raises:
        UserError: the folder holds none.
    """
    check_finished(folder)
    with (folder / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_of(parent: Parent) -> Path:
    """Return the folder of a parent or a teacher.

    Raises:
        UserError: its weights are not those that the recipe names.
    """
    folder = Path(parent.run)
    if weights_digest(folder) != parent.weights:
        raise UserError(
            f"{folder / WEIGHTS} is not the file that the recipe was made from: it was trained again or "
            "replaced; start a new run from it"
        )
    return folder


def trained_images(recipe: Recipe) -> PairTable | None:
    """Return the images that the parent or the teacher was trained on, None if there is none or they are unknown."""
    parent = recipe.parent or recipe.teacher
    if parent is None:
        return None
    found = load_trained_images(folder_of(parent))
    if found is None:
        logger.warning(f"warning: {parent.run} does not state its training images: they cannot be kept out of the test")
    return found


def inherit(aligner: Aligner, recipe: Recipe) -> None:
    """Put the weights of the parent, if any, or those of the teacher into a newly built aligner.

    A distilled run takes the vision side of its teacher, and also the text side if it is the same tower with the same
    strategy; else its text tower starts as pretrained.

    Raises:
        UserError: the folder holds no finished run, another one than the recipe names, or one that does not fit.
    """
    parent = recipe.parent or recipe.teacher
    if parent is None:
        return
    folder = folder_of(parent)
    towers = checkpoint.read_towers(folder)
    if towers.vision != aligner.vision.fingerprint or (recipe.parent and towers.text != aligner.text.fingerprint):
        raise UserError(f"the towers of {folder} are not those of this run: get the same revision of them")
    tensors, _ = storage.load_tensors(folder / WEIGHTS)
    if recipe.parent is not None:
        checkpoint.restore(aligner, tensors, str(folder / WEIGHTS))
        return
    state = checkpoint.trained_state(aligner)
    taught = read_recipe(folder / RECIPE).strategy
    same_text = towers.text == aligner.text.fingerprint and taught | {"towers": "text"} == recipe.strategy
    if not same_text or taught["towers"] == "vision":
        logger.info(f"the text tower starts as pretrained: {folder} trained another one, or with another strategy")
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("text")}
    fitting = {name: tensor for name, tensor in tensors.items() if name in state}
    if missing := sorted(aligner.inherited - fitting.keys()):
        raise UserError(f"{folder / WEIGHTS} does not fit its recipe: it lacks {missing[0]}")
    with torch.no_grad():
        for name, tensor in fitting.items():
            state[name].copy_(tensor)
