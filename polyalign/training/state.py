"""The training state: all that is needed to resume a run to the same result, in one safetensors file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn

from polyalign.evaluation.results import DevEvaluation
from polyalign.models import checkpoint
from polyalign.models.aligner import Aligner
from polyalign.utils import storage
from polyalign.utils.errors import UserError
from polyalign.utils.process import Spent


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
        UserError: the file is unreadable or belongs to another recipe.
    """
    tensors, metadata = storage.load_tensors(path)
    if metadata.get("recipe") != recipe_toml:
        raise UserError(
            f"{path} belongs to a run with other settings: use the same settings, another --out, or --overwrite"
        )
    position = json.loads(metadata["position"])
    position["spent"] = Spent(**position["spent"])
    position["dev_evaluations"] = [DevEvaluation(**one) for one in position["dev_evaluations"]]
    parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "best": {}, "optimiser": {}}
    for key, tensor in tensors.items():
        part, _, name = key.partition("/")
        parts[part][name] = tensor
    checkpoint.restore(aligner, parts["model"], str(path))
    parameters = aligner.trainable()
    for key, tensor in parts["optimiser"].items():
        name, _, slot = key.rpartition("/")
        parameter = parameters[name]
        optimiser.state[parameter][slot] = tensor.to(parameter.device)
    return State(**position, best=parts["best"])


def _names(aligner: Aligner, optimiser: torch.optim.Optimizer) -> dict[int, str]:
    names = {id(parameter): name for name, parameter in aligner.trainable().items()}
    held: list[nn.Parameter] = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    assert {id(parameter) for parameter in held} == set(names)
    return names
