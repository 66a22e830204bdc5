"""A self-contained copy of a run, with its towers inside: it opens without network and without other folders."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyalign.config.resolve import validate
from polyalign.config.schema import Recipe, merge
from polyalign.data.trained_images import TRAINED_IMAGES
from polyalign.evaluation.encoders import Aligned, Encoder
from polyalign.evaluation.model import Model
from polyalign.models import checkpoint
from polyalign.models.aligner import Aligner
from polyalign.models.build import build_aligner
from polyalign.models.towers.external import ExternalVision
from polyalign.models.towers.saving import save_text, save_vision
from polyalign.models.towers.text_loading import build_text
from polyalign.models.towers.vision_loading import build_vision
from polyalign.training.averaging import RECORD as AVERAGE
from polyalign.training.train import RESULT

if TYPE_CHECKING:
    from polyalign.serving.export.run import Source

LIBRARIES: dict[str, str] = {}
OPTIONS: tuple[str, ...] = ()
TOLERANCE = 1e-6


def problem(aligner: Aligner) -> str | None:
    """Return what of the model the folder of a run cannot hold, or None."""
    if isinstance(aligner.vision, ExternalVision):
        return "its vision tower is the image side of a published model, which opens from its own place"
    return None


def write(folder: Path, source: Source) -> None:
    """Write a run with its towers in ``vision`` and ``text``.

    If only weights were trained, the towers are the trained ones and the strategy is ``projection``. What a strategy
    inserted stays beside the pretrained towers.
    """
    run, aligner, recipe = source.run, source.aligner, source.recipe
    tokenizer, preprocessing = run / checkpoint.TOKENIZER, aligner.vision.preprocessing
    inserted = bool(aligner.changed_modules())
    trained = not inserted and (recipe.strategy["name"] != "projection" or recipe.teacher is not None)
    if inserted:
        aligner, _ = checkpoint.load(run)  # with low-rank updates apart, as the strategy inserts them
        vision, text = (
            build_vision(recipe.vision, preprocessing=preprocessing),
            build_text(recipe.text, tokenizer=tokenizer),
        )
    else:
        vision, text = aligner.vision, aligner.text
    save_vision(folder / "vision", vision)
    save_text(folder / "text", text)
    changes: dict[str, Any] = {
        "vision": {"model": "./vision", "pooling": recipe.vision.pooling},
        "text": {
            **recipe.text.model_dump(include={"max_tokens", "architecture"}),
            "model": "./text",
            "pooling": text.pooling,
            "prompt": text.prompt,
        },
    }
    if trained:
        loss = "infonce" if recipe.optim.loss == "mse" else recipe.optim.loss
        changes |= {"strategy": {"name": "projection"}, "optim": {"loss": loss}}
        changes |= dict.fromkeys(("teacher", "parent", "parallel"))
    merged = validate(merge(recipe.table(), changes), str(run))
    copy = build_aligner(_at(folder, merged), preprocessing=preprocessing, tokenizer=tokenizer)
    state = aligner.state_dict()
    checkpoint.restore(copy, {name: state[name] for name in checkpoint.trained_state(copy)}, str(run))
    checkpoint.save(folder, copy, merged, merged=trained or checkpoint.read_towers(run).merged)
    for name in (RESULT, AVERAGE, TRAINED_IMAGES):
        if (run / name).is_file():
            shutil.copyfile(run / name, folder / name)


def _at(folder: Path, recipe: Recipe) -> Recipe:
    """Return the recipe with its towers in ``folder``."""
    sides = {side: {**getattr(recipe, side).model_dump(), "model": str(folder / side)} for side in ("vision", "text")}
    return validate(recipe.table() | sides, str(folder))


def reload(folder: Path) -> dict[str, Encoder]:
    """Open the folder as ``polyalign.load`` does."""
    aligner, recipe = checkpoint.load(folder)
    return {"fp32": Model(Aligned(str(folder), aligner, recipe, recipe.cache, folder))}
