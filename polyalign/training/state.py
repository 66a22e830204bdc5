"""The training state: all that is needed to resume a run to the same result, in one safetensors file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from polyalign.config.language import describe_error
from polyalign.evaluation.results import DevEvaluation
from polyalign.models import checkpoint
from polyalign.models.aligner import Aligner
from polyalign.utils import storage
from polyalign.utils.errors import UserError
from polyalign.utils.process import Spent
from polyalign.utils.text import clean

_ANEW = "train again with --overwrite"


@dataclass
class State:
    """Progress of a run: steps, time spent, dev evaluations, losses since the last of them, and the best weights.

    ``finished`` means that dev recall has stopped improving.
    """

    step: int = 0
    spent: Spent = field(default_factory=Spent)
    dev_evaluations: list[DevEvaluation] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    finished: bool = False

    @property
    def best_dev_evaluation(self) -> int:
        """Index of the best dev evaluation; of equal ones the first."""
        return max(
            range(len(self.dev_evaluations)), key=lambda index: (self.dev_evaluations[index].dev_mean_recall, -index)
        )


class _Position(BaseModel):
    """The fields of ``State`` that are not tensors."""

    model_config = ConfigDict(extra="forbid", strict=True)

    step: int = Field(ge=0)
    spent: Spent
    dev_evaluations: list[DevEvaluation]
    losses: list[float]
    finished: bool


def save(path: Path, state: State, aligner: Aligner, optimiser: torch.optim.Optimizer, recipe_toml: str) -> None:
    """Write the state atomically. It holds no random state, since every step is seeded by its number."""
    named = _names(aligner, optimiser)
    tensors = {f"model/{name}": tensor for name, tensor in checkpoint.trained_state(aligner).items()}
    tensors |= {f"best/{name}": tensor for name, tensor in state.best.items()}
    for parameter, slots in optimiser.state.items():
        tensors |= {f"optimiser/{named[id(parameter)]}/{slot}": torch.as_tensor(value) for slot, value in slots.items()}
    dev_evaluations = [one.model_dump() for one in state.dev_evaluations]
    position = {
        "step": state.step,
        "spent": asdict(state.spent),
        "dev_evaluations": dev_evaluations,
        "losses": state.losses,
        "finished": state.finished,
    }
    storage.save_tensors(path, tensors, {"position": json.dumps(position), "recipe": recipe_toml})


def load(path: Path, aligner: Aligner, optimiser: torch.optim.Optimizer, recipe_toml: str) -> State:
    """Restore the model and the optimiser and return the state.

    Raises:
        UserError: the file is unreadable, belongs to another recipe, or does not fit the model and its optimiser.
    """
    tensors, metadata = storage.load_tensors(path)
    if metadata.get("recipe") != recipe_toml:
        raise UserError(
            f"{path} belongs to a run with other settings: use the same settings, another --out, or --overwrite"
        )
    try:
        position = _Position.model_validate_json(metadata.get("position", ""))
    except ValidationError as error:
        raise UserError(f"{path} is not a training state: {clean(describe_error(error), 300)}; {_ANEW}") from error
    parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "best": {}, "optimiser": {}}
    for key, tensor in tensors.items():
        part, _, name = key.partition("/")
        if part not in parts:
            raise UserError(f"{path} is not a training state: it has {clean(key, 80)}; {_ANEW}")
        parts[part][name] = tensor
    trained = checkpoint.trained_state(aligner)
    checkpoint.check_fits(trained if position.dev_evaluations else {}, parts["best"], f"{path}, its best state,")
    slots = _slots(parts["optimiser"], aligner.trainable(), path)
    checkpoint.restore(aligner, parts["model"], str(path))
    optimiser.state.update(slots)
    return State(**dict(position), best=parts["best"])


def _slots(
    tensors: dict[str, torch.Tensor], parameters: dict[str, nn.Parameter], path: Path
) -> dict[torch.Tensor, dict[str, torch.Tensor]]:
    """Return AdamW's state of each parameter, as ``name/slot`` holds it.

    Raises:
        UserError: a tensor is not of the optimiser, or not of the shape and type of its parameter.
    """
    wanted = {
        f"{name}/{slot}": torch.tensor(0.0) if slot == "step" else parameter
        for name, parameter in parameters.items()
        for slot in ("step", "exp_avg", "exp_avg_sq")
        if any(key.rpartition("/")[0] == name for key in tensors)
    }
    checkpoint.check_fits(dict(wanted), tensors, f"{path}, the state of its optimiser,")
    slots: dict[torch.Tensor, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, slot = key.rpartition("/")
        parameter = parameters[name]
        slots.setdefault(parameter, {})[slot] = tensor.to(parameter.device)
    return slots


def _names(aligner: Aligner, optimiser: torch.optim.Optimizer) -> dict[int, str]:
    names = {id(parameter): name for name, parameter in aligner.trainable().items()}
    held: list[nn.Parameter] = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    assert {id(parameter) for parameter in held} == set(names)
    return names
