"""What the scripts of the two starter towers share: settings, training, model card, command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
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


def fit(model: nn.Module, examples: Any, collate: Callable[..., Any], out: Path, steps: int, use: Training) -> Trainer:
    """Train ``model``, which returns ``{"loss": ...}`` for a collated batch: AdamW, warm-up, cosine; store nothing."""
    arguments = TrainingArguments(
        output_dir=str(out), save_strategy="no", report_to=[], logging_steps=100, remove_unused_columns=False,
        max_steps=steps, per_device_train_batch_size=use.batch_size, seed=use.seed,
        learning_rate=use.lr, lr_scheduler_type="cosine", warmup_steps=min(100, steps // 2), weight_decay=0.05,
        dataloader_pin_memory=torch.cuda.is_available(),
    )  # fmt: skip
    trainer = Trainer(model, arguments, collate, examples)
    trainer.train()
    return trainer


def write_card(out: Path, template: str, use: Training, rows: Iterable[tuple[object, ...]]) -> None:
    """Write the model card: a template of this folder, filled with the measured rows and the settings."""

    def table(lines: Iterable[tuple[object, ...]]) -> str:
        return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)

    text = Path(__file__).with_name(template).read_text(encoding="utf-8")
    settings = table((f"`{name}`", value) for name, value in asdict(use).items())
    (out / "README.md").write_text(text.format(use=use, rows=table(rows), settings=settings), encoding="utf-8")


def run_script(make: Callable[[Path, Any], None], settings: Callable[..., Any], about: str | None) -> None:
    """Make a tower as the command line says: ``--out DIR --seed N``."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the tower into")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    make(given.out, settings(seed=given.seed))
