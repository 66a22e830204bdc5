"""How the two starter towers are trained: transformers' ``Trainer``, with nothing stored and nothing reported."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PrinterCallback, Trainer, TrainingArguments


def fit(
    model: nn.Module,
    examples: Any,
    collate: Callable[[list[Any]], dict[str, Any]],
    out: Path,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
) -> None:
    """Train ``model``, whose forward pass on a collated batch returns ``{"loss": ...}``; AdamW, warm-up, cosine."""
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=lr,
        lr_scheduler_type="cosine",
        warmup_steps=min(100, steps // 2),
        weight_decay=0.05,
        seed=seed,
        save_strategy="no",
        logging_steps=100,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        report_to=[],
    )
    trainer = Trainer(model, arguments, collate, examples)
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def save_half(state: dict[str, torch.Tensor], path: Path) -> None:
    """Write weights in half precision."""
    half = {name: t.half() if t.is_floating_point() else t for name, t in state.items()}
    save_file({name: t.cpu().contiguous() for name, t in half.items()}, path, metadata={"format": "pt"})
    path.chmod(0o644)


def run_script(make: Callable[[Path, Any], None], settings: Callable[..., Any], about: str | None) -> None:
    """Make a tower as the command line says: ``--out DIR --seed N``."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the tower into")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    make(given.out, settings(seed=given.seed))
