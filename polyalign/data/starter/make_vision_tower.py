"""Train the starter vision tower again: ``python -m polyalign.data.starter.make_vision_tower --out DIR``.

A small timm ViT learns to classify what was drawn, first single objects, then scenes: from whole scenes alone it learns
colours but hardly any kind. No picture has a held-out combination of kind and colour, and there is no text. An earlier
script made the tower in the package, with the same objective: a new tower is similar but not identical.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import timm
import tomli_w
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from polyalign.data.starter._fit import Training, fit, run_script
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


@dataclass(frozen=True)
class Pictures:
    """A dataset of pictures, drawn on access, with class indices ``labels (N, number of labels)``."""

    draw: Callable[[int], Image.Image]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, Tensor]:
        return self.draw(index), self.labels[index]


def objects(count: int, rng: np.random.Generator) -> Pictures:
    """Return ``count`` pictures of one object each, near and far."""
    shown = [_SHOWN[i] for i in rng.integers(len(_SHOWN), size=count)]
    grounds, seeds = rng.integers(len(BACKGROUNDS), size=count), rng.integers(2**31, size=count)
    radii = rng.uniform(8, 28, size=count)

    def picture(i: int) -> Image.Image:
        kind, color = shown[i]
        return draw_object(kind, color, BACKGROUNDS[grounds[i]], float(radii[i]), int(seeds[i]), _PX)

    rows = [(KINDS.index(kind), COLORS.index(color), int(g)) for (kind, color), g in zip(shown, grounds, strict=True)]
    return Pictures(picture, torch.tensor(rows))


def scenes(count: int, rng: np.random.Generator, *, held_out: bool = False) -> Pictures:
    """Return pictures of ``count`` scenes, all of them with a held-out combination or all without."""
    sampled = [sample_scene(rng, held_out=held_out) for _ in range(count)]
    return Pictures(lambda i: draw(sampled[i], _PX), torch.tensor([scene_labels(scene) for scene in sampled]))


def scene_labels(scene: Scene) -> list[int]:
    """Return the class indices of a scene's facts in the order of ``SCENE_LABELS``."""
    background, things, relation = scene.facts()
    row = [values.index(getattr(thing, label)) for thing in things for label, values in _THING.items()]
    return [*row, int(relation == "above"), BACKGROUNDS.index(background)]


class Namer(nn.Module):
    """The tower with one linear head for each label."""

    def __init__(self, tower: nn.Module, labels: dict[str, int]) -> None:
        super().__init__()
        self.tower = tower
        self.heads = nn.ModuleList(nn.Linear(_ARGS["embed_dim"], classes) for classes in labels.values())

    def forward(self, pixels: Tensor, labels: Tensor) -> dict[str, Any]:
        """Return the mean cross-entropy over all labels ``(B, number of labels)``, and which are predicted right."""
        features = self.tower(pixels)
        logits = [head(features) for head in self.heads]
        losses = [F.cross_entropy(scores, labels[:, k]) for k, scores in enumerate(logits)]
        named = torch.stack([scores.argmax(1) for scores in logits], dim=1)
        return {"loss": torch.stack(losses).mean(), "right": named == labels}


def collate(shift: int) -> Callable[[list[tuple[Image.Image, Tensor]]], dict[str, Tensor]]:
    """Return a collate function that moves each picture by up to ``shift`` pixels and scales it to [-1, 1]."""
    move = [v2.RandomCrop(_PX, padding=shift, padding_mode="edge")] if shift else []
    scale = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
    ready = v2.Compose([*move, *scale])

    def batch(examples: list[tuple[Image.Image, Tensor]]) -> dict[str, Tensor]:
        images, labels = zip(*examples, strict=True)
        return {"pixels": torch.stack([ready(image) for image in images]), "labels": torch.stack(labels)}

    return batch


@torch.no_grad()
def measure(model: Namer, pictures: Pictures) -> list[float]:
    """Return the accuracy of each label."""
    device = next(model.parameters()).device
    loader: Any = DataLoader(pictures, batch_size=256, collate_fn=collate(0))  # type: ignore[arg-type]
    right = [model.eval()(**{k: v.to(device) for k, v in batch.items()})["right"] for batch in loader]
    shares: list[float] = torch.cat(right).float().mean(0).tolist()
    return shares


def make(out: Path, settings: Settings) -> None:
    """Train the tower and write it to ``out``: weights, ``tower.toml`` and a card with measured figures."""
    torch.manual_seed(settings.seed)
    tower = timm.create_model(_MODEL, pretrained=False, num_classes=0, **_ARGS)
    rngs = [np.random.default_rng((settings.seed, stage)) for stage in range(4)]
    near, far = Namer(tower, OBJECT_LABELS), Namer(tower, SCENE_LABELS)
    fit(near, objects(settings.object_pictures, rngs[0]), collate(3), out, settings.object_steps, settings)
    fit(far, scenes(settings.scene_pictures, rngs[1]), collate(3), out, settings.scene_steps, settings)
    like = measure(far, scenes(settings.test_pictures, rngs[2]))
    held_out = measure(far, scenes(settings.test_pictures, rngs[3], held_out=True))
    storage.save_tensors(out / "model.safetensors", tower.half().state_dict(), {"format": "pt"})
    facts = {"model": _MODEL, "image_px": _PX, "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0, "args": _ARGS}
    (out / "tower.toml").write_text(tomli_w.dumps(facts), encoding="utf-8")
    measured = zip(SCENE_LABELS.items(), like, held_out, strict=True)
    rows = "\n".join(f"| {name} | {a:.1%} | {b:.1%} | {1 / classes:.1%} |" for (name, classes), a, b in measured)
    card = f"""# A vision tower trained on pictures only

timm `{_MODEL}`, stored in half precision, {_PX} px. Made by `python -m polyalign.data.starter.make_vision_tower`. It
has never seen a text.

It was trained on the starter world: on pictures of one object each, to predict kind, colour and background, then on
scenes, to predict kind, colour, size and count of the left or upper thing and of the right or lower one, the axis
between them and the background. No picture had one of the {len(HELD_OUT)} held-out combinations of kind and colour.

Accuracy of its linear heads on {settings.test_pictures:,} new scenes, and on as many with a held-out combination:

| label | like training | held out | chance |
|---|---|---|---|
{rows}

| setting | value |
|---|---|
{settings.rows()}
"""
    (out / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    run_script(make, Settings, __doc__)
