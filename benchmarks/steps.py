"""One training loop for some steps: seconds of each, and the most memory held. ``training`` runs a process a case."""

from __future__ import annotations

import itertools
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks import machine
from benchmarks.material import LONGEST, SIZES, pairs

DIM = 256


@dataclass(frozen=True)
class Case:
    """What is measured: polyalign with a strategy, or open_clip with some towers locked.

    ``times`` as many steps are taken as of a step that runs everything. ``recompute`` as ``train.recompute``.
    """

    name: str
    strategy: dict[str, Any] = field(default_factory=dict)
    locked: tuple[str, ...] = ()
    times: int = 1
    recompute: bool = False

    @property
    def is_peer(self) -> bool:
        """Whether this is open_clip."""
        return not self.strategy


CASES = (
    Case("open_clip"),
    Case("open_clip, image tower locked", locked=("image",)),
    Case("open_clip, both towers locked", locked=("image", "text")),
    Case("full", {"name": "full"}),
    Case("lilt", {"name": "lilt"}),
    Case("lilt, recomputed", {"name": "lilt"}, recompute=True),
    Case("lilt, layers last:1", {"name": "lilt", "layers": "last:1"}, times=4),
    Case("lilt-deep", {"name": "lilt-deep"}),
    Case("lilt-deep, layers last:1", {"name": "lilt-deep", "layers": "last:1"}, times=4),
    Case("lora", {"name": "lora"}),
    Case("lora, recomputed", {"name": "lora"}, recompute=True),
    Case("layernorm", {"name": "layernorm"}),
    Case("bitfit", {"name": "bitfit"}),
    Case("lit", {"name": "lit", "towers": "text"}, times=4),
    Case("projection", {"name": "projection"}, times=50),
)


def recipe(case: Case, towers: Path, batch: int, steps: int) -> Any:
    """State polyalign's side as a recipe: its defaults but for what is measured."""
    from polyalign.config.resolve import validate

    raw = {
        "name": "benchmark",
        "lang": "en",
        "vision": {"model": str(towers / "vision")},
        "text": {"model": str(towers / "text"), "pooling": "mean", "max_tokens": 64},
        "projection": {"dim": DIM},
        "strategy": case.strategy,
        "source": {"name": "starter"},
        "optim": {"batch_size": batch, "epochs": 1, "min_steps": steps},
        "train": {"evals": 1, "recompute": case.recompute},
    }
    return validate(raw, "the benchmark")


def polyalign(case: Case, size: str, towers: Path, batch: int, steps: int, *, fill: bool) -> dict[str, Any]:
    """Fill the features only, or find them and train."""
    from accelerate import Accelerator

    from polyalign.models.build import build_aligner
    from polyalign.models.embed import prepare
    from polyalign.training.loop import Loop
    from polyalign.utils.progress import shown_by

    accelerator, floor = Accelerator(), machine.held_memory()
    asked = recipe(case, towers, batch, steps)
    table = pairs(SIZES[size], 2 * batch)
    aligner = build_aligner(asked).to(accelerator.device)
    began = time.perf_counter()
    features = prepare(aligner, table, asked.cache)
    found: dict[str, Any] = {"seconds": [time.perf_counter() - began], "rows": len(table)}
    if not fill:
        dev = prepare(aligner, table.take_pairs(range(batch)), asked.cache)
        loop, ticks = Loop(asked, aligner, features, [dev], accelerator), [time.perf_counter()]
        timed = shown_by(lambda *_, **__: ticks.append(time.perf_counter()))
        with tempfile.TemporaryDirectory() as folder, timed:
            loop.run(Path(folder) / "state", resume=False)
        # The first step warms up, and the last looks at dev too.
        seconds = [after - before for before, after in itertools.pairwise(ticks[1:-1])]
        found = {"seconds": seconds, "collating": _collating(loop)}
    trainable, total = aligner.count()
    return {**found, "peak": machine.peak_memory(), "floor": floor, "trainable": trainable, "total": total}


def _collating(loop: Any) -> float:
    """Time putting a batch together, which is all that loading the next one ahead of its step could save."""

    def once() -> float:
        began = time.perf_counter()
        pairs = loop.batch(0)
        loop.features.images.batch(loop.features.image_rows(pairs, 0), loop.accelerator.device)
        loop.features.captions.batch(pairs, loop.accelerator.device)
        return time.perf_counter() - began

    return statistics.median(once() for _ in range(9))


def open_clip_model(case: Case, size: str, towers: Path) -> Any:
    """Build open_clip's model of the same two towers with the same weights, and lock what is to be locked."""
    import open_clip
    from safetensors.torch import load_file

    chosen = SIZES[size]
    vision = {
        "timm_model_name": chosen.vision, "image_size": chosen.px, "timm_pool": "", "timm_proj": "linear",
        "timm_proj_bias": True,
    }  # fmt: skip
    text = {
        "hf_model_name": str(towers / "text"), "hf_model_pretrained": True, "hf_pooler_type": "mean_pooler",
        "hf_proj_type": "linear", "context_length": LONGEST,
    }  # fmt: skip
    model = open_clip.CustomTextCLIP(embed_dim=DIM, vision_cfg=vision, text_cfg=text, output_dict=True)
    model.visual.trunk.load_state_dict(load_file(towers / "vision" / "model.safetensors"))
    if "image" in case.locked:
        model.lock_image_tower()
    if "text" in case.locked:
        model.lock_text_tower()
    return model


class _Batches:
    """What open_clip's loop takes for its data: one batch that is ready, again and again, and the clock."""

    def __init__(self, images: torch.Tensor, texts: torch.Tensor, count: int) -> None:
        self.batch = (images, texts)
        self.num_batches, self.num_samples = count, count * len(images)
        self.ticks: list[float] = []

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for _ in range(self.num_batches):
            self._tick()
            yield self.batch
        self._tick()

    def _tick(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ticks.append(time.perf_counter())


def open_clip(case: Case, size: str, towers: Path, batch: int, steps: int) -> dict[str, Any]:
    """Train with open_clip's own loop, loss and optimiser settings, on images and captions that are ready in memory."""
    from open_clip import ClipLoss
    from open_clip_train.train import train_one_epoch
    from transformers import AutoTokenizer

    logging.disable()
    floor = machine.held_memory()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = open_clip_model(case, size, towers).to(device)
    table = pairs(SIZES[size], batch)
    tokenizer = AutoTokenizer.from_pretrained(towers / "text")
    texts = tokenizer(list(table.captions), padding="max_length", max_length=LONGEST, return_tensors="pt").input_ids
    data = _Batches(torch.randn(batch, 3, SIZES[size].px, SIZES[size].px), texts, steps)
    settings = SimpleNamespace(
        device=device, precision="amp_bf16" if device == "cuda" else "fp32", distill=False, accum_freq=1,
        skip_scheduler=True, horovod=False, distributed=False, grad_clip_norm=None, rank=0, local_rank=0,
        log_local=False, log_every_n_steps=10**9, world_size=1, batch_size=batch, wandb=False,
    )  # fmt: skip
    source = {"train": SimpleNamespace(dataloader=data, set_epoch=lambda epoch: None)}
    train_one_epoch(model, source, ClipLoss(), 0, _adamw(model), None, None, None, settings)
    return {
        "seconds": [after - before for before, after in itertools.pairwise(data.ticks[1:])],
        "peak": machine.peak_memory(),
        "floor": floor,
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "total": sum(p.numel() for p in model.parameters()),
    }


def _adamw(model: torch.nn.Module) -> torch.optim.AdamW:
    """Make the optimiser that open_clip's ``main`` makes."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    plain = [p for name, p in named if p.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))]
    rest = [p for _, p in named if not any(p is other for other in plain)]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": rest, "weight_decay": 0.2}]
    return torch.optim.AdamW(groups, lr=5e-4, betas=(0.9, 0.98), eps=1e-6)


def main() -> None:
    """Measure the case that is given as JSON, and print what was found as JSON."""
    task = json.loads(sys.argv[1])
    case, fill = Case(**task.pop("case")), task.pop("fill")
    where = {**task, "towers": Path(task["towers"])}
    found = open_clip(case, **where) if case.is_peer else polyalign(case, **where, fill=fill)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
