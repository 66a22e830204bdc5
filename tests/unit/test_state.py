from __future__ import annotations

import json

import pytest
import torch

from polyalign.evaluation.results import DevEvaluation
from polyalign.models import checkpoint
from polyalign.training import state
from polyalign.training.optim import adamw
from polyalign.utils import storage
from polyalign.utils.errors import UserError
from polyalign.utils.process import Spent
from tests import tiny

SETTINGS = "settings"
DEV = DevEvaluation(step=2, seconds=1.5, loss=0.5, dev_mean_recall=0.25)


@pytest.fixture
def run(tmp_path):
    """An aligner and its optimiser after one step, and the file of their state."""
    aligner = tiny.aligner("projection")
    optimiser = adamw(aligner, tiny.resolved().optim)
    for parameter in aligner.trainable().values():
        parameter.grad = torch.ones_like(parameter)
    optimiser.step()
    position = state.State(2, Spent(1.5, 2.5), [DEV], [0.5], checkpoint.trained_state(aligner), finished=False)
    state.save(tmp_path / "state", position, aligner, optimiser, SETTINGS)
    return tmp_path / "state", aligner, optimiser


def resume(path):
    aligner = tiny.aligner("projection")
    optimiser = adamw(aligner, tiny.resolved().optim)
    return state.load(path, aligner, optimiser, SETTINGS), aligner, optimiser


def test_it_comes_back_to_the_bit(run):
    path, aligner, optimiser = run
    found, restored, other = resume(path)
    assert (found.step, found.spent, found.dev_evaluations) == (2, Spent(1.5, 2.5), [DEV])
    assert (found.losses, found.finished) == ([0.5], False)
    assert found.best.keys() == checkpoint.trained_state(aligner).keys()
    for name, parameter in aligner.trainable().items():
        one, two = optimiser.state[parameter], other.state[restored.trainable()[name]]
        assert one.keys() == two.keys()
        assert all(torch.equal(one[slot], two[slot]) for slot in one)


@pytest.mark.parametrize("part", ["optimiser", "best", "model"])
@pytest.mark.parametrize("change", ["shape", "dtype", "name", "slot", "missing", "part"])
def test_a_tensor_that_does_not_fit_is_an_error_of_one_line(part, change, run):
    path, _, _ = run
    tensors, metadata = storage.load_tensors(path)
    for key in sorted(key for key in tensors if key.startswith(f"{part}/"))[::3]:
        made = dict(tensors)
        tensor = made.pop(key)
        if change == "shape":
            made[key] = torch.zeros(*tensor.shape, 2, dtype=tensor.dtype)
        elif change == "dtype":
            made[key] = tensor.half()
        elif change == "name":
            made[key.replace("/", "/odd.", 1)] = tensor
        elif change == "slot":
            made[f"{key}odd"] = tensor
        elif change == "part":
            made[f"odd{key}"] = tensor
        storage.save_tensors(path, made, metadata)
        with pytest.raises(UserError, match=r"does not fit its recipe|is not a training state") as caught:
            resume(path)
        assert "\n" not in str(caught.value)


def positions() -> list[object]:
    right = {
        "step": 2,
        "spent": {"seconds": 1.5, "cpu_seconds": 2.5},
        "dev_evaluations": [DEV.model_dump()],
        "losses": [0.5],
        "finished": False,
    }
    odd = [None, -1, "x", [], {}, [None], {"step": None}, 1e300, True]
    found = [{name: value for name, value in right.items() if name != key} for key in right]
    # Of these, some can be right.
    fits = {"losses": ([],), "finished": (True,), "spent": ({},)}
    found += [{**right, key: value} for key in right for value in odd if value not in fits.get(key, ())]
    return [*found, {**right, "odd": 1}, [], 3, None]


@pytest.mark.parametrize("position", [*map(json.dumps, positions()), "", "{", "[" * 100_000])
def test_a_position_of_another_form_is_an_error_of_one_line(position, run):
    path, _, _ = run
    tensors, metadata = storage.load_tensors(path)
    storage.save_tensors(path, tensors, {**metadata, "position": position})
    with pytest.raises(UserError, match=f"{path}") as caught:
        resume(path)
    assert "\n" not in str(caught.value)


def test_no_position_is_an_error_of_one_line(run):
    path, _, _ = run
    tensors, metadata = storage.load_tensors(path)
    del metadata["position"]
    storage.save_tensors(path, tensors, metadata)
    with pytest.raises(UserError, match="is not a training state"):
        resume(path)
