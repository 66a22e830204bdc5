from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from polyalign.pretrain import loop
from polyalign.utils.errors import UserError


class StoppedError(Exception):
    pass


def build() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.LayerNorm(8), nn.Linear(8, 1))


def stages(model: nn.Module, lr: float = 1e-2) -> list[loop.Stage]:
    def loss(rng: np.random.Generator) -> torch.Tensor:
        x = torch.from_numpy(rng.normal(size=(16, 4)).astype(np.float32))
        return (model(x).squeeze(1) - x.sum(dim=1)).square().mean()

    return [loop.Stage(name, steps=5, loss=loss, lr=lr, warmup_steps=2) for name in ("first", "second")]


def train(out: Path, *, resume: bool = False, stop_after: int | None = None, **settings: object) -> nn.Module:
    model, seen = build(), []

    def progress(task: str, done: int, total: int, note: str = "") -> None:
        seen.append((task, done, total, note))
        if len(seen) == stop_after:
            raise StoppedError

    loop.run_stages(
        model, stages(model), out=out, seed=3, settings=settings, resume=resume, progress=progress, save_every_s=0
    )
    return model


@pytest.mark.parametrize("stop_after", [1, 4, 5, 7])
def test_a_stopped_and_resumed_run_ends_in_the_very_weights_of_an_uninterrupted_one(
    tmp_path: Path, stop_after: int
) -> None:
    whole = train(tmp_path / "whole")
    with pytest.raises(StoppedError):
        train(tmp_path / "cut", stop_after=stop_after)
    resumed = train(tmp_path / "cut", resume=True)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_training_moves_every_parameter_and_resuming_a_finished_run_moves_none(tmp_path: Path) -> None:
    trained = train(tmp_path)
    for (name, before), after in zip(build().named_parameters(), trained.parameters(), strict=True):
        assert not torch.equal(before, after), name
    again = train(tmp_path, resume=True, stop_after=1)
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), again.parameters(), strict=True))


def test_a_checkpoint_is_not_overwritten_unasked(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(UserError, match="left from an earlier run"):
        train(tmp_path)
    loop.discard(tmp_path)
    train(tmp_path)


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    train(tmp_path, width=8)
    with pytest.raises(UserError, match="width was 8, is 9"):
        train(tmp_path, resume=True, width=9)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / loop.CHECKPOINT).write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="not a checkpoint"):
        train(tmp_path, resume=True)


def test_a_loss_that_is_not_finite_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    model = build()
    stage = loop.Stage("s", steps=2, loss=lambda _: next(model.parameters()).sum() * float("nan"), lr=1e-3)
    with pytest.raises(UserError, match="lower the learning rate"):
        loop.run_stages(model, [stage], out=tmp_path, seed=0, settings={}, resume=False)


def test_learning_rate_warms_up_and_falls_to_nothing() -> None:
    stage = loop.Stage("s", steps=100, loss=lambda _: torch.zeros(()), lr=1.0, warmup_steps=10)
    rates = [loop.learning_rate(stage, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(0.5 * (1 + np.cos(np.pi * 0.09)))
    assert rates[50] == pytest.approx(0.5)
    assert rates[99] < 1e-3
