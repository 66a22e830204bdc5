"""Train the starter vision tower again: ``python -m polyalign.data.starter.make_vision_tower --out DIR``.

A small timm ViT learns to classify what was drawn, first single objects, then scenes: from whole scenes alone it learns
colours but hardly any kind. No picture has a held-out combination of kind and colour, and there is no text. An earlier
script made the tower in the package, with the same objective: a new tower is similar but not identical.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import timm
import tomli_w
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from polyalign.data.starter._fit import Training, fit, run_script, write_card
from polyalign.data.starter.scenes import draw, draw_object, sample_scene
from polyalign.data.starter.world import BACKGROUNDS, COLORS, COUNTS, HELD_OUT, KINDS, SIZES, Scene
from polyalign.utils import storage

_THING: Final[dict[str, tuple[Any, ...]]] = {"kind": KINDS, "color": COLORS, "size": SIZES, "count": COUNTS}
OBJECT_LABELS: Final = {"kind": len(KINDS), "color": len(COLORS), "background": len(BACKGROUNDS)}
SCENE_LABELS: Final = {
    **{f"{label}_{slot}": len(values) for slot in (0, 1) for label, values in _THING.items()},
    "axis": 2,
    "background": len(BACKGROUNDS),
}
"""The number of classes of each label. Slot 0 is the left or upper thing, slot 1 the other; the axis says which."""

_MODEL: Final = "vit_tiny_patch16_224"
_ARGS: Final[dict[str, Any]] = {"img_size": 64, "patch_size": 16, "embed_dim": 128, "depth": 4, "num_heads": 4}
_PX: Final = 64
_SHOWN: Final = [(kind, color) for kind in KINDS for color in COLORS if (kind, color) not in HELD_OUT]


@dataclass(frozen=True)
class Settings(Training):
    """The settings that determine the weights; the defaults are those of the tower in the package."""

    batch_size: int = 128
    lr: float = 1e-3
    object_pictures: int = 20_000
    object_steps: int = 1_500
    scene_pictures: int = 30_000
    scene_steps: int = 1_500
    test_pictures: int = 1_000


Example = tuple[Callable[[], Image.Image], list[int]]
"""A function that draws a picture, and the class index of each label."""


def objects(count: int, rng: np.random.Generator) -> list[Example]:
    """Return ``count`` pictures of one object each, near and far."""
    found: list[Example] = []
    for _ in range(count):
        (kind, color), ground = _SHOWN[rng.integers(len(_SHOWN))], BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
        picture = partial(draw_object, kind, color, ground, rng.uniform(8, 28), int(rng.integers(2**31)), _PX)
        found.append((picture, [KINDS.index(kind), COLORS.index(color), BACKGROUNDS.index(ground)]))
    return found


def scenes(count: int, rng: np.random.Generator, *, held_out: bool = False) -> list[Example]:
    """Return pictures of ``count`` scenes, all of them with a held-out combination or all without."""
    sampled = (sample_scene(rng, held_out=held_out) for _ in range(count))
    return [(partial(draw, scene, _PX), scene_labels(scene)) for scene in sampled]


def scene_labels(scene: Scene) -> list[int]:
    """Return the class indices of a scene's facts in the order of ``SCENE_LABELS``."""
    background, things, relation = scene.facts()
    row = [values.index(getattr(thing, label)) for thing in things for label, values in _THING.items()]
    return [*row, int(relation == "above"), BACKGROUNDS.index(background)]


class Namer(nn.Module):
    """The tower with a linear head for all labels."""

    def __init__(self, tower: nn.Module, labels: dict[str, int]) -> None:
        super().__init__()
        self.tower, self.classes = tower, list(labels.values())
        self.head = nn.Linear(_ARGS["embed_dim"], sum(self.classes))

    def forward(self, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the mean cross-entropy over all labels ``(B, number of labels)``, and which are predicted right."""
        logits = self.head(self.tower(pixels)).split(self.classes, dim=1)
        losses = [F.cross_entropy(scores, truth) for scores, truth in zip(logits, labels.T, strict=True)]
        named = torch.stack([scores.argmax(1) for scores in logits], dim=1)
        return {"loss": torch.stack(losses).mean(), "right": named == labels}


def collate(shift: int) -> Callable[[list[Example]], dict[str, Tensor]]:
    """Return a collate function that moves each picture by up to ``shift`` pixels and scales it to [-1, 1]."""
    move = [v2.RandomCrop(_PX, padding=shift, padding_mode="edge")] if shift else []
    scale = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
    ready = v2.Compose([*move, *scale])

    def batch(examples: list[Example]) -> dict[str, Tensor]:
        pictures, labels = zip(*examples, strict=True)
        return {"pixels": torch.stack([ready(picture()) for picture in pictures]), "labels": torch.tensor(labels)}

    return batch


def make(out: Path, settings: Settings) -> None:
    """Train the tower and write it to ``out``: weights, ``tower.toml`` and a card with measured figures."""
    torch.manual_seed(settings.seed)
    tower = timm.create_model(_MODEL, pretrained=False, num_classes=0, **_ARGS)
    rngs = [np.random.default_rng((settings.seed, stage)) for stage in range(4)]
    near, far = Namer(tower, OBJECT_LABELS), Namer(tower, SCENE_LABELS)
    fit(near, objects(settings.object_pictures, rngs[0]), collate(3), out, settings.object_steps, settings)
    trainer = fit(far, scenes(settings.scene_pictures, rngs[1]), collate(3), out, settings.scene_steps, settings)
    trainer.data_collator = collate(0)
    measured = []
    for rng, held_out in zip(rngs[2:], (False, True), strict=True):
        tested: Any = scenes(settings.test_pictures, rng, held_out=held_out)
        measured.append(np.asarray(trainer.predict(tested).predictions).mean(axis=0))
    storage.save_tensors(out / "model.safetensors", tower.half().state_dict(), {"format": "pt"})
    facts = {"model": _MODEL, "image_px": _PX, "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0, "args": _ARGS}
    (out / "tower.toml").write_text(tomli_w.dumps(facts), encoding="utf-8")
    rows = [
        (name, f"{like:.1%}", f"{held_out:.1%}", f"{1 / classes:.1%}")
        for (name, classes), like, held_out in zip(SCENE_LABELS.items(), *measured, strict=True)
    ]
    write_card(out, "vision_card.md", settings, rows)


if __name__ == "__main__":
    run_script(make, Settings, __doc__)
