"""What the scripts of the two starter towers share: settings, training with transformers' ``Trainer``, command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments


@dataclass(frozen=True)
class Training:
    """Settings of the optimiser, and the seed of the whole script."""

    batch_size: int
    lr: float
    seed: int = 0

    def rows(self) -> str:
        """Format all settings as rows of a Markdown table."""
        return "\n".join(f"| `{name}` | {value} |" for name, value in asdict(self).items())


def fit(model: nn.Module, examples: Any, collate: Callable[..., Any], out: Path, steps: int, use: Training) -> None:
    """Train ``model``, which returns ``{"loss": ...}`` for a collated batch: AdamW, warm-up, cosine; store nothing."""
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=use.batch_size,
        learning_rate=use.lr,
        lr_scheduler_type="cosine",
        warmup_steps=min(100, steps // 2),
        weight_decay=0.05,
        seed=use.seed,
        save_strategy="no",
        logging_steps=100,
        remove_unused_columns=False,
        report_to=[],
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    Trainer(model, arguments, collate, examples).train()


def run_script(make: Callable[[Path, Any], None], settings: Callable[..., Any], about: str | None) -> None:
    """Make a tower as the command line says: ``--out DIR --seed N``."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the tower into")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    make(given.out, settings(seed=given.seed))
