"""What a vision tower learns from the starter world alone: to name what was drawn, object by object, then scenes.

Learning from whole scenes at once teaches colours and hardly a kind; objects in the middle of the picture come first.
Held-out combinations of kind and colour are in none of the pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from polyalign.data.starter.scenes import draw, draw_object, sample_scene
from polyalign.data.starter.world import BACKGROUNDS, COLORS, COUNTS, HELD_OUT, KINDS, SIZES, Scene
from polyalign.pretrain.loop import Stage
from polyalign.pretrain.pixels import Pixels, shifted, stored
from polyalign.pretrain.probe import linear_probe
from polyalign.pretrain.vision_task import Config, Task, Tower
from polyalign.utils.progress import Progress

OBJECT_LABELS: Final = {"kind": len(KINDS), "color": len(COLORS), "background": len(BACKGROUNDS)}
SCENE_LABELS: Final = {
    **{f"{label}_{slot}": n for slot in (0, 1) for label, n in
       (("kind", len(KINDS)), ("color", len(COLORS)), ("size", len(SIZES)), ("count", len(COUNTS)))},
    "axis": 2, "background": len(BACKGROUNDS),
}  # fmt: skip
"""How many values each label has. Slot 0 is the thing on the left or above, slot 1 the other; the axis says which."""

_RADII: Final = (8.0, 28.0)
_SHIFT: Final = 3
_SHOWN: Final = [(kind, color) for kind in KINDS for color in COLORS if (kind, color) not in HELD_OUT]


@dataclass(frozen=True)
class Pictures:
    """Pictures still to be drawn, with a row of labels each, ``(N, number of labels)``."""

    draw: Callable[[int], Image.Image]
    labels: npt.NDArray[np.int64]


def objects(count: int, rng: np.random.Generator, image_px: int) -> Pictures:
    """Draw up ``count`` pictures of one object each, near and far."""
    which = rng.integers(len(_SHOWN), size=count)
    grounds = rng.integers(len(BACKGROUNDS), size=count)
    radii = rng.uniform(*_RADII, size=count)
    seeds = rng.integers(2**31, size=count)

    def picture(i: int) -> Image.Image:
        kind, color = _SHOWN[which[i]]
        return draw_object(kind, color, BACKGROUNDS[grounds[i]], float(radii[i]), int(seeds[i]), image_px)

    shown = [_SHOWN[i] for i in which]
    kinds = [KINDS.index(kind) for kind, _ in shown]
    colors = [COLORS.index(color) for _, color in shown]
    return Pictures(picture, np.stack([kinds, colors, grounds], axis=1).astype(np.int64))


def scenes(count: int, rng: np.random.Generator, image_px: int, *, held_out: bool) -> Pictures:
    """Draw up ``count`` scenes, all of them with a held-out combination or all without."""
    sampled = [sample_scene(rng, held_out=held_out) for _ in range(count)]
    return Pictures(lambda i: draw(sampled[i], image_px), np.array([scene_labels(s) for s in sampled]))


def scene_labels(scene: Scene) -> list[int]:
    """Number a scene's facts in the order of ``SCENE_LABELS``."""
    background, things, relation = scene.facts()
    row = []
    for thing in things:
        row += [KINDS.index(thing.kind), COLORS.index(thing.color), SIZES.index(thing.size), COUNTS.index(thing.count)]
    return [*row, int(relation == "above"), BACKGROUNDS.index(background)]


class _Namer(nn.Module):
    """A tower with one linear head for each label of each stage."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.tower = tower
        self.objects = self._heads(OBJECT_LABELS)
        self.scenes = self._heads(SCENE_LABELS)
        self.to(tower.device)

    def _heads(self, labels: dict[str, int]) -> nn.ModuleList:
        return nn.ModuleList(nn.Linear(self.tower.width, values) for values in labels.values())

    def loss(self, heads: nn.ModuleList, pixels: Pixels, labels: npt.NDArray[np.int64]) -> Tensor:
        """Average the cross-entropies of all labels."""
        features = self.tower(pixels)
        truth = torch.from_numpy(labels).to(features.device)
        losses = [F.cross_entropy(head(features), truth[:, k]) for k, head in enumerate(heads)]
        return torch.stack(losses).mean()


def task(config: Config, tower: Tower, out: Path, progress: Progress | None) -> Task:
    """Set up both stages of learning from the starter world, their pictures drawn into ``out``."""
    model = _Namer(tower)
    near = objects(config.object_pictures, np.random.default_rng((config.seed, 1)), config.image_px)
    far = scenes(config.scene_pictures, np.random.default_rng((config.seed, 2)), config.image_px, held_out=False)
    paths = [out / f"{name}-{config.digest()}.npy" for name in ("objects", "scenes")]

    def stage(name: str, steps: int, heads: nn.ModuleList, pictures: Pictures, path: Path) -> Stage:
        pixels = stored(path, len(pictures.labels), pictures.draw, progress)

        def loss(rng: np.random.Generator) -> Tensor:
            batch = rng.integers(len(pixels), size=config.batch_size)
            return model.loss(heads, shifted(pixels[batch], _SHIFT, rng), pictures.labels[batch])

        return Stage(name, steps, loss, config.lr, config.weight_decay, config.warmup_steps)

    stages = [
        stage("objects", config.object_steps, model.objects, near, paths[0]),
        stage("scenes", config.scene_steps, model.scenes, far, paths[1]),
    ]
    story = (
        f"It learned on the embedded starter world: {config.object_pictures:,} pictures of one object each, to name "
        f"its kind, colour and background ({config.object_steps:,} steps of {config.batch_size}), then "
        f"{config.scene_pictures:,} scenes, to name kind, colour, size and count of the left or upper thing and of "
        f"the right or lower one, the axis between them and the background ({config.scene_steps:,} steps). No picture "
        f"held one of the {len(HELD_OUT)} held-out combinations of kind and colour.\n\n"
        "The table gives what a linear layer reads off the frozen features, in percent of scenes right: scenes like "
        "those it learned from, scenes with a held-out combination, and chance."
    )
    return Task(model, stages, lambda: probe(config, tower), story, paths)


def probe(config: Config, tower: Tower) -> dict[str, str]:
    """Measure on new scenes how much of each label a linear layer reads off the features."""
    seeds = np.random.SeedSequence((config.seed, 3)).spawn(3)
    sizes = ((config.probe_pictures, False), (config.probe_pictures // 5, False), (config.probe_pictures // 5, True))
    sets = []
    for seed, (count, held_out) in zip(seeds, sizes, strict=True):
        pictures = scenes(count, np.random.default_rng(seed), config.image_px, held_out=held_out)
        pixels = np.stack([np.asarray(pictures.draw(i)) for i in range(count)])
        sets.append((tower.features(pixels), torch.from_numpy(pictures.labels)))
    measured = {"label": "like trained / held out / chance"}
    (features, labels), *tests = sets
    for k, (name, values) in enumerate(SCENE_LABELS.items()):
        like, held = linear_probe(features, labels[:, k], [(x, y[:, k]) for x, y in tests])
        measured[name] = f"{like:.1%} / {held:.1%} / {1 / values:.1%}"
    return measured
