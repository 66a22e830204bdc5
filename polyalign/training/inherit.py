"""Start from the weights of a finished run: its parent, or the teacher of a distilled run."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from polyalign.config.resolve import read_recipe
from polyalign.config.run_files import RECIPE, WEIGHTS, check_finished
from polyalign.config.schema import Parent, Recipe, Teacher
from polyalign.data.pairs import PairTable
from polyalign.data.trained_images import load_trained_images
from polyalign.evaluation.encoders import Encoder
from polyalign.evaluation.evaluate import open_model
from polyalign.evaluation.external_models import ExternalModel, is_external
from polyalign.models import checkpoint
from polyalign.models.aligner import Aligner
from polyalign.models.towers.common import weights_hash
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


def open_teacher(teacher: Teacher) -> Encoder:
    """Load a teacher for its text vectors.

    Raises:
        UserError: the weights of an external model are not those that the recipe names.
    """
    model = open_model(teacher.run)
    if isinstance(model, ExternalModel) and weights_of(model) != teacher.weights:
        raise UserError(
            f"the weights of {teacher.run} are not those that the recipe was made from: get the same revision of them, "
            "or start a new run"
        )
    return model


def weights_of(teacher: ExternalModel) -> str:
    """Return the SHA-256 of the weights of an external model.

    Raises:
        UserError: it cannot be a teacher, because its sides are of two models.
    """
    if teacher.model is None:
        raise UserError(
            f"{teacher.name} cannot teach: its text tower is a student itself; name the model of its images, such as "
            "open_clip:ViT-B-32/openai"
        )
    return weights_hash(teacher.model)


def trained_images(recipe: Recipe) -> PairTable | None:
    """Return the images that the parent or the teacher was trained on, None if there is none or they are unknown."""
    parent = recipe.parent or recipe.teacher
    if parent is None:
        return None
    found = None if is_external(parent.run) else load_trained_images(folder_of(parent))
    if found is None:
        logger.warning(f"warning: {parent.run} does not state its training images: they cannot be kept out of the test")
    return found


def inherit(aligner: Aligner, recipe: Recipe, load_teacher: Callable[[], Encoder] | None = None) -> None:
    """Put the weights of the parent, if any, or those of the teacher into a newly built aligner.

    A distilled run takes the vision side of its teacher, and also the text side if it is the same tower with the same
    strategy; else its text tower starts as pretrained. The joint space of an external teacher, which ``load_teacher``
    opens (default: ``open_teacher``), is that of its own image vectors.

    Raises:
        UserError: the folder holds no finished run, another one than the recipe names, or one that does not fit.
    """
    parent = recipe.parent or recipe.teacher
    if parent is None:
        return
    if recipe.distils and is_external(parent.run):
        assert recipe.teacher is not None
        return _join(aligner, (load_teacher or partial(open_teacher, recipe.teacher))())
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


@torch.no_grad()
def _join(aligner: Aligner, teacher: Encoder) -> None:
    """Take the image vectors of an external model as they are, and its temperature."""
    assert isinstance(teacher, ExternalModel)
    nn.init.eye_(aligner.vision_projection.weight)
    nn.init.zeros_(aligner.vision_projection.bias)
    scale = getattr(teacher.model, "logit_scale", None)
    if isinstance(scale, nn.Parameter):
        aligner.logit_scale.copy_(scale.detach().reshape(()))
