"""Training within a time and within a memory."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from polyalign.config import resolve as recipe
from polyalign.config.schema import Recipe
from polyalign.experiments import micro_batch as memory
from polyalign.models.embed import prepare
from polyalign.training import optim as schedule
from polyalign.training import train
from polyalign.training.state import State
from polyalign.training.train import Loop
from polyalign.utils import process
from polyalign.utils.errors import UserError
from polyalign.utils.progress import shown_by
from tests import tiny

STEPS = 12


def loop_for(found: Recipe) -> Loop:
    aligner = tiny.aligner(found.strategy["name"])
    features, dev = (prepare(aligner, tiny.table(split), found.cache) for split in ("train", "dev"))
    return Loop(found, aligner, features, [dev], Accelerator())


@pytest.fixture
def ticking(monkeypatch) -> None:
    """Let a second pass whenever the clock is read, which training does once a step."""
    clock = itertools.count()
    monkeypatch.setattr(process.time, "monotonic", lambda: float(next(clock)))


def within(
    seconds: float, folder: Path, *, resume: bool = False, patience: int = 9
) -> tuple[State, list[float], list[int]]:
    """Train so many seconds of steps; gives the state, the learning rates of the steps and the progress shown."""
    loop = loop_for(tiny.resolved(train={"max_seconds": 1000, "evals": 3, "patience": patience}))
    loop.seconds = seconds
    rates, shown = [], []
    step = loop._step

    def noted(number: int) -> float:
        rates.append(loop.optimiser.param_groups[0]["lr"])
        return step(number)

    loop._step = noted  # type: ignore[method-assign]
    with shown_by(lambda task, done, total, note="": shown.append(done)):
        state = loop.run(folder / train.STATE, resume=resume)
    return state, rates, shown


def test_time_that_is_over_ends_training_with_a_look_and_the_learning_rate_at_its_end(ticking, tmp_path):
    state, rates, shown = within(6, tmp_path)
    assert state.step == 6
    assert shown == [2, 4, 6, 8, 10, 12]
    assert [look.step for look in state.dev_evaluations] == [2, 4, 6]
    optim = tiny.resolved().optim
    assert rates == [schedule.learning_rate(optim, place, STEPS) for place in (0, 2, 4, 6, 8, 10)]
    assert state.best


def test_looks_that_time_jumps_over_are_one_look(ticking, tmp_path):
    state, _, shown = within(2, tmp_path)
    assert shown == [6, 12]
    assert [look.step for look in state.dev_evaluations] == [1, 2]


def test_more_time_than_is_needed_changes_nothing(ticking, tmp_path):
    state, rates, _ = within(500, tmp_path)
    assert [look.step for look in state.dev_evaluations] == [4, 8, 12]
    assert rates == [schedule.learning_rate(tiny.resolved().optim, step, STEPS) for step in range(STEPS)]


def test_time_spent_before_a_stop_is_spent(ticking, tmp_path):
    before, *_ = within(6, tmp_path)
    state, rates, _ = within(6, tmp_path, resume=True)
    assert (state.step, rates) == (before.step, [])
    longer, rates, _ = within(12, tmp_path, resume=True)
    assert (longer.step, len(rates)) == (12, 6)


def test_the_frozen_part_takes_of_the_time(tmp_path):
    loop = loop_for(tiny.resolved(train={"max_seconds": 1e-9}))
    with pytest.raises(UserError, match="leaves no time to train: allow more time"):
        loop.run(tmp_path / train.STATE, resume=False)


def test_more_memory_than_allowed_is_refused(tmp_path):
    loop = loop_for(tiny.resolved(train={"max_memory_bytes": 2**20}))
    with pytest.raises(UserError, match=r"holds \d\.\d\d GiB, over its bound of 0.00 GiB: lower optim.micro_batch"):
        loop.run(tmp_path / train.STATE, resume=False)


def test_memory_is_measured_on_the_longest_captions_whatever_the_bounds(monkeypatch):
    batches = []
    monkeypatch.setattr(Loop, "_step", lambda loop, step: batches.append(loop.batch(step)) or torch.zeros(()))
    found = tiny.resolved("full", train={"max_memory_bytes": 1, "max_seconds": 1e-9}, optim={"micro_batch": 8})
    assert memory.peak_of(found) > 2**20
    assert len(batches) == 2
    captions = tiny.table("train").captions
    longest = sorted((len(caption.split()) for caption in captions), reverse=True)[:32]
    assert [len(captions[pair].split()) for pair in batches[0]] == longest


def test_peak_memory_is_the_process_s_own_and_not_its_parent_s():
    child = "import torch; from polyalign.utils.process import peak_memory; print(peak_memory(torch.device('cpu')))"
    parent = f"x = bytes([1]) * (3 << 28); import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=True)
    assert 2**25 < int(done.stdout) < 3 * 2**28


# In words


def test_a_budget_becomes_the_keys_that_keep_to_it():
    assert recipe.budget_overrides("1000-pairs") == {"data": {"budget": "1k-pairs"}}
    assert recipe.budget_overrides("20min") == {"data": {"budget": None}, "train": {"max_seconds": 1200}}
    assert recipe.budget_overrides("90s+10k-pairs+4GiB") == {
        "data": {"budget": "10k-pairs"},
        "train": {"max_seconds": 90, "max_memory_bytes": 4 * 2**30},
    }


@pytest.mark.parametrize("text", ["", "+", "20min+", "20min+30min", "1k-pairs+2k-pairs"])
def test_what_is_no_budget_is_an_error(text):
    with pytest.raises(UserError, match="budget"):
        recipe.budget_overrides(text)


@pytest.mark.parametrize("text", ["10k-pairs", "20min", "4GiB", "50-pairs+90s+512MiB", "1k-pairs+2h", "30min+1GiB"])
def test_a_recipe_names_its_budget_in_the_same_words(text):
    found = recipe.resolve("starter", "sw", "lilt", recipe.gather_overrides([], budget=text))
    assert found.budget == text
    assert recipe.Recipe.model_validate(recipe.tomllib.loads(found.to_toml())) == found


def test_set_wins_over_a_budget():
    found = recipe.resolve("starter", "sw", "lilt", recipe.gather_overrides(["train.max_seconds=60"], budget="20min"))
    assert found.budget == "1min"
