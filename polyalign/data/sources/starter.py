"""The embedded starter world: scenes drawn when they are opened, captions said by the grammar in any starter language.

Every language gets the very same scenes, split by split, so that languages can be compared and captions are parallel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from polyalign.config.language import Lang
from polyalign.data.pairs import PairTable
from polyalign.data.starter.grammar import say
from polyalign.data.starter.scenes import DRAWING_VERSION, draw, sample_scene
from polyalign.data.starter.world import Scene
from polyalign.utils.errors import UserError, did_you_mean

# The order in which scenes are given out: test and dev first, so that they stay the same whatever train's size.
_SPLITS: Final = ("test", "dev", "train")


class Config(BaseModel):
    """How many images each split has and how many captions each of them; ``seed`` makes another world."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(default=0, ge=0)
    train_images: int = Field(default=12_000, ge=1)
    dev_images: int = Field(default=500, ge=1)
    test_images: int = Field(default=1_000, ge=1)
    captions_per_image: int = Field(default=1, ge=1)


@dataclass(frozen=True)
class SceneImage:
    """A scene that is drawn when it is opened."""

    scene: Scene

    def open(self) -> Image.Image:
        """Draw the scene at 64 by 64 pixels."""
        return draw(self.scene)

    def key(self) -> str:
        """Name the picture by all that decides its pixels."""
        scene = self.scene
        things = ",".join(f"{t.count}-{t.size}-{t.color}-{t.kind}" for t in scene.things)
        return f"starter{DRAWING_VERSION}:{scene.background}:{things}:{scene.relation}:{scene.seed}"


def load(config: Config, lang: Lang, split: str) -> PairTable:
    """Load a split's images and their captions in a language.

    Raises:
        UserError: there is no such split, or the language has no starter lexicon.
    """
    if split not in _SPLITS:
        raise UserError(f'the starter world has no split "{split}": {did_you_mean(split, _SPLITS)}')
    scenes = _scenes(config)[split]
    per_image = config.captions_per_image
    # The generator does not depend on the language: what one language leaves unsaid, the others do.
    rngs = (
        np.random.default_rng((config.seed, _SPLITS.index(split), image, caption))
        for image in range(len(scenes))
        for caption in range(per_image)
    )
    spoken = (scene for scene in scenes for _ in range(per_image))
    return PairTable(
        name=f"starter-{split}",
        lang=lang.code,
        origin="generated",
        image_ids=tuple(f"starter-{split}-{number:06d}" for number in range(len(scenes))),
        images=tuple(SceneImage(scene) for scene in scenes),
        captions=tuple(say(scene, lang, rng) for scene, rng in zip(spoken, rngs, strict=True)),
        image_of=np.repeat(np.arange(len(scenes), dtype=np.int64), per_image),
    )


@lru_cache(maxsize=4)
def _scenes(config: Config) -> dict[str, tuple[Scene, ...]]:
    """Draw the scenes of every split; no two scenes of the world show the same facts.

    Held-out combinations of kind and colour are in about three test scenes of ten, and in no other split.
    """
    sizes = {"test": config.test_images, "dev": config.dev_images, "train": config.train_images}
    seen: set[Any] = set()
    splits = {}
    for number, split in enumerate(_SPLITS):
        rng = np.random.default_rng((config.seed, number))
        held_out = None if split == "test" else False
        scenes: list[Scene] = []
        while len(scenes) < sizes[split]:
            scene = sample_scene(rng, held_out=held_out)
            if scene.facts() not in seen:
                seen.add(scene.facts())
                scenes.append(scene)
        splits[split] = tuple(scenes)
    return splits
