"""Pretrain a vision tower alone: no image is ever paired with a text.

On the starter world it learns to name what was drawn; on a folder of folders, the folders' names; on a flat folder,
to tell two views of one image from all other images. What comes out is a folder that a recipe can name as its tower.
"""

from __future__ import annotations

import json
from pathlib import Path

import tomli_w
import torch

from polyalign.pretrain import vision_folder, vision_starter
from polyalign.pretrain.loop import discard, run_stages, save_atomically
from polyalign.pretrain.vision_task import Config, Tower
from polyalign.utils.progress import Progress

__all__ = ["Config", "run"]


def run(config: Config, out: Path, resume: bool, progress: Progress | None = None) -> Path:
    """Pretrain a tower into the folder ``out``: weights, ``tower.toml`` and a card with measured numbers.

    Raises:
        UserError: timm cannot build the model, the images cannot be read, or ``out`` holds another run.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    tower = Tower(config)
    task = (vision_folder if config.images else vision_starter).task(config, tower, out, progress)
    settings = config.model_dump(mode="json", exclude={"seed"})
    run_stages(task.model, task.stages, out=out, seed=config.seed, settings=settings, resume=resume, progress=progress)
    _write(config, tower, out, task.story, task.measure())
    for path in task.scratch:
        path.unlink()
    discard(out)
    return out


def _write(config: Config, tower: Tower, out: Path, story: str, measured: dict[str, str]) -> None:
    state = tower.model.state_dict()
    halved = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    save_atomically(halved, out / "model.safetensors")
    facts = config.model_dump(mode="json", include={"model", "image_px", "mean", "std"})
    tower_toml = tomli_w.dumps({**facts, "crop_pct": 1.0, "args": config.timm_args()})
    (out / "tower.toml").write_text(tower_toml, encoding="utf-8")
    (out / "README.md").write_text(_card(config, tower, story, measured), encoding="utf-8")


def _card(config: Config, tower: Tower, story: str, measured: dict[str, str]) -> str:
    parameters = sum(p.numel() for p in tower.parameters())
    rows = "\n".join(f"| {name} | {value} |" for name, value in measured.items())
    used = json.dumps({**config.model_dump(mode="json"), "args": config.timm_args()}, indent=2)
    return f"""# A vision tower pretrained alone

timm `{config.model}`, {parameters:,} parameters, stored in half precision, {config.image_px} px. Made by
`polyalign pretrain vision`. It has never seen a text.

{story}

| measured | |
|---|---|
{rows}

Settings:

```json
{used}
```
"""
