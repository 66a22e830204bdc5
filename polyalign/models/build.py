"""Build the aligner of a resolved recipe."""

from __future__ import annotations

from pathlib import Path

import torch

from polyalign.config.schema import Recipe
from polyalign.config.tower import Preprocessing
from polyalign.models.aligner import Aligner
from polyalign.models.towers.text_loading import build_text
from polyalign.models.towers.vision_loading import build_vision


def build_aligner(
    recipe: Recipe,
    *,
    pretrained: bool = True,
    preprocessing: Preprocessing | None = None,
    tokenizer: Path | None = None,
) -> Aligner:
    """Build both towers and the projections and apply the strategy; seeded by ``train.seed``.

    ``pretrained=False`` initialises at random, which takes no memory under ``torch.device("meta")``.
    ``preprocessing`` and ``tokenizer`` (a folder) come from a checkpoint and replace those of the towers.

    Raises:
        UserError: a tower cannot be loaded or does not support the strategy.
    """
    vision = build_vision(recipe.vision, pretrained=pretrained, preprocessing=preprocessing)
    text = build_text(recipe.text, pretrained=pretrained, tokenizer=tokenizer)
    text.lang = recipe.lang
    torch.manual_seed(recipe.train.seed)
    aligner = Aligner(vision, text, recipe.projection.dim, bias=recipe.optim.loss == "sigmoid")
    pretrained_names = {name for name, _ in aligner.named_parameters()}
    strategy, config = recipe.plugin("strategy")
    strategy.apply(aligner, config)
    aligner.record_trainable(inserted_beside=pretrained_names)
    return aligner.eval()
