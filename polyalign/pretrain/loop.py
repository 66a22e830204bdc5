"""The training loop that pretraining a vision tower and a text tower share: seeded, resumable, atomic.

Nothing random outlives a step. Every step draws from generators seeded by (seed, stage, step), so a run that was
stopped and resumed sees the same batches and the same dropout as one that was not, and ends in the same weights.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from polyalign.utils.errors import UserError
from polyalign.utils.progress import Progress

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class Stage:
    """A part of pretraining with one objective and its own optimiser: AdamW, warm-up, cosine to zero.

    ``loss`` gives the scalar loss of one step; all its chance must come from the generator it is handed, and from
    torch's global one (dropout). Weight decay is for matrices only, never for biases and normalisation.
    """

    name: str
    steps: int
    loss: Callable[[np.random.Generator], Tensor]
    lr: float
    weight_decay: float = 0.05
    warmup_steps: int = 100
    clip_norm: float = 1.0


def run_stages(
    model: nn.Module,
    stages: Sequence[Stage],
    *,
    out: Path,
    seed: int,
    settings: Mapping[str, Any],
    resume: bool,
    progress: Progress | None = None,
    save_every_s: float = 30.0,
) -> None:
    """Train ``model`` in place through all stages, keeping a checkpoint in ``out`` from which ``resume`` goes on.

    ``model`` holds everything that is trained, heads included. ``settings`` (JSON values) is all that decides the
    result: a checkpoint made with other settings is refused. The checkpoint stays when the last stage is done, so
    that resuming a finished run does nothing; the caller removes it (``discard``) once its own output is written.

    Raises:
        UserError: ``out`` already holds a checkpoint and ``resume`` is false, or it is of other settings or
            unreadable, or the loss is no longer finite.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / CHECKPOINT
    if path.exists() and not resume:
        raise UserError(f"{path} is left from an earlier run: resume it, or choose another output folder")
    seeded_settings = {**settings, "seed": seed}
    reached = _Position(0, 0)
    state: dict[str, Tensor] = {}
    if path.exists():
        reached, state = _read(path, seeded_settings)
        _load_model(model, state)

    for number, stage in enumerate(stages):
        if number < reached.stage:
            continue
        optimiser = torch.optim.AdamW(_groups(model, stage.weight_decay), lr=stage.lr)
        first = reached.step if number == reached.stage else 0
        if first:
            _load_optimiser(optimiser, state)
        saved = time.monotonic()
        for step in range(first, stage.steps):
            loss = _step(model, optimiser, stage, step, (seed, number, step))
            if time.monotonic() - saved >= save_every_s:
                _write(path, model, optimiser, _Position(number, step + 1), seeded_settings)
                saved = time.monotonic()
            if progress:
                progress(stage.name, step + 1, stage.steps, f"loss {loss:.3f}")
        _write(path, model, None, _Position(number + 1, 0), seeded_settings)


def discard(out: Path) -> None:
    """Remove the checkpoint of a run whose output is written."""
    (out / CHECKPOINT).unlink(missing_ok=True)


def save_atomically(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file that is either whole or not there, whenever the process is killed."""
    partial = path.with_name(path.name + ".partial")
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    partial.write_bytes(save(contiguous, metadata=dict(metadata or {})))
    partial.replace(path)


def learning_rate(stage: Stage, step: int) -> float:
    """Give the rate for a step counted from zero: linear warm-up, then a cosine that would reach zero at the end."""
    warm = min(1.0, (step + 1) / max(1, stage.warmup_steps))
    return stage.lr * warm * 0.5 * (1.0 + math.cos(math.pi * step / stage.steps))


@dataclass(frozen=True)
class _Position:
    """The step that comes next: ``step`` of stage number ``stage``."""

    stage: int
    step: int


def _step(model: nn.Module, optimiser: torch.optim.Optimizer, stage: Stage, step: int, key: tuple[int, ...]) -> float:
    rng = np.random.default_rng(key)
    torch.manual_seed(int(rng.integers(2**63)))
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(stage, step)
    model.train()
    loss = stage.loss(rng)
    value = loss.item()
    if not math.isfinite(value):
        raise UserError(f"the loss is {value} at step {step + 1} of {stage.name}: lower the learning rate")
    optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(_trained(model), stage.clip_norm)
    optimiser.step()
    return value


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    trained = _trained(model)
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


def _write(
    path: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer | None,
    position: _Position,
    settings: Mapping[str, Any],
) -> None:
    tensors = {f"model/{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    if optimiser is not None:
        for index, slots in optimiser.state_dict()["state"].items():
            tensors.update({f"optimiser/{index}/{slot}": tensor for slot, tensor in slots.items()})
    where = json.dumps({"stage": position.stage, "step": position.step})
    save_atomically(tensors, path, {"position": where, "settings": json.dumps(settings, sort_keys=True)})


def _read(path: Path, settings: Mapping[str, Any]) -> tuple[_Position, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        theirs, position = json.loads(metadata["settings"]), _Position(**json.loads(metadata["position"]))
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not a checkpoint of pretraining ({error}): remove it and start anew") from error
    ours = json.loads(json.dumps(settings))
    if theirs != ours:
        changed = _changed(theirs, ours)
        raise UserError(f"{path} was made with other settings ({changed}): give the same, or another output folder")
    return position, tensors


def _changed(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    keys: Iterable[str] = sorted(theirs.keys() | ours.keys())
    return ", ".join(f"{k} was {theirs.get(k)}, is {ours.get(k)}" for k in keys if theirs.get(k) != ours.get(k))


def _load_model(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    prefix = "model/"
    model.load_state_dict({name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)})


def _load_optimiser(optimiser: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        kind, _, rest = name.partition("/")
        if kind == "optimiser":
            index, slot = rest.split("/")
            slots.setdefault(int(index), {})[slot] = tensor
    optimiser.load_state_dict({"state": slots, "param_groups": optimiser.state_dict()["param_groups"]})
