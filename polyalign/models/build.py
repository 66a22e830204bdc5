"""Build the aligner of a resolved recipe."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from polyalign.config.plugins import load_plugin
from polyalign.config.schema import Recipe, Teacher
from polyalign.config.tower import Preprocessing
from polyalign.models.aligner import Aligner
from polyalign.models.towers.base import ValuesNeededError
from polyalign.models.towers.text import TextTower
from polyalign.models.towers.text_loading import build_text
from polyalign.models.towers.vision import VisionTower
from polyalign.models.towers.vision_loading import build_vision


def build_aligner(
    recipe: Recipe,
    *,
    pretrained: bool = True,
    preprocessing: Preprocessing | None = None,
    tokenizer: Path | None = None,
    text_only: bool = False,
) -> Aligner:
    """Build both towers and ``align`` them.

    ``pretrained=False`` initialises at random, which takes no memory under ``torch.device("meta")``.
    ``preprocessing`` and ``tokenizer`` (a folder) come from a checkpoint and replace those of the towers. With
    ``text_only`` the vision tower is on the meta device, without its weights.

    Raises:
        UserError: a tower cannot be loaded or does not support the strategy.
    """
    towers = build_towers(
        recipe, pretrained=pretrained, preprocessing=preprocessing, tokenizer=tokenizer, text_only=text_only
    )
    return align(recipe, *towers)


def build_towers(
    recipe: Recipe,
    *,
    pretrained: bool = True,
    preprocessing: Preprocessing | None = None,
    tokenizer: Path | None = None,
    text_only: bool = False,
) -> tuple[VisionTower, TextTower]:
    """Build both towers as they were pretrained, see ``build_aligner``.

    Raises:
        UserError: a tower cannot be loaded.
    """
    if text_only:
        vision = _without_weights(recipe, preprocessing)
    else:
        vision = build_vision(recipe.vision, pretrained=pretrained, preprocessing=preprocessing)
    text = build_text(recipe.text, pretrained=pretrained, tokenizer=tokenizer)
    text.lang = recipe.lang
    return vision, text


def align(recipe: Recipe, vision: VisionTower, text: TextTower) -> Aligner:
    """Put projections on two towers and apply the strategy to them; seeded by ``train.seed``.

    Raises:
        UserError: a tower does not support the strategy.
    """
    torch.manual_seed(recipe.train.seed)
    aligner = Aligner(vision, text, recipe.projection.dim, bias=recipe.optim.loss == "sigmoid")
    pretrained_names = {name for name, _ in aligner.named_parameters()}
    inherited = _apply_teacher(aligner, recipe.teacher) if recipe.teacher is not None else frozenset()
    before = {name for name, _ in aligner.named_parameters()} if inherited else pretrained_names
    strategy, config = recipe.plugin("strategy")
    strategy.apply(aligner, config)
    for name, parameter in aligner.named_parameters():
        if name in inherited:
            parameter.requires_grad_(False)
    aligner.record_trainable(inserted_beside=before)
    aligner.inherited = inherited
    return aligner.eval()


def _without_weights(recipe: Recipe, preprocessing: Preprocessing | None) -> VisionTower:
    """Build the vision tower on the meta device, or with random weights if its network looks at values."""
    build = partial(build_vision, recipe.vision, pretrained=False, preprocessing=preprocessing)
    try:
        with torch.device("meta"):
            return build()
    except ValuesNeededError:
        return build()


def _apply_teacher(aligner: Aligner, teacher: Teacher) -> frozenset[str]:
    """Apply a teacher's strategy to the vision tower, and return the names of what it trained besides the text side."""
    strategy = load_plugin("strategies", str(teacher.strategy["name"]))
    if teacher.strategy["towers"] != "text":
        options = {key: value for key, value in teacher.strategy.items() if key != "name"}
        strategy.apply(aligner, strategy.Config(**{**options, "towers": "vision"}))
    names = [name for name, parameter in aligner.named_parameters() if parameter.requires_grad]
    return frozenset(name for name in names if not name.startswith("text"))
