from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from polyalign.config.schema import Optim
from polyalign.training.optim import adamw, learning_rate


def test_a_schedule_by_hand():
    optim = Optim(lr=1.0, min_lr_ratio=0.1, warmup_steps=2)
    rates = [learning_rate(optim, step, 22) for step in range(22)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[12] == pytest.approx(0.55)  # half of the twenty steps after warm-up: midway between 1 and 0.1
    assert rates[7] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert all(a > b for a, b in itertools.pairwise(rates[2:]))
    assert 0.1 < rates[-1] < 0.11


def test_a_short_run_warms_up_for_a_tenth_of_it_at_most():
    optim = Optim(lr=1.0, warmup_steps=1000)
    assert [learning_rate(optim, step, 30) for step in range(4)] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert learning_rate(optim, 0, 5) == 1.0
    assert learning_rate(optim, 0, 1) == 1.0


def test_no_rate_is_above_the_one_asked_for_or_below_the_lowest():
    optim = Optim(lr=3e-4, min_lr_ratio=0.5, warmup_steps=7)
    for steps in (1, 2, 10, 100):
        rates = [learning_rate(optim, step, steps) for step in range(steps)]
        assert max(rates) <= 3e-4
        assert min(rates[7:], default=3e-4) >= 1.5e-4


def test_only_matrices_decay():
    shapes = {"weight": (2, 2), "bias": (2,), "scale": ()}
    parameters = {name: nn.Parameter(torch.ones(shape)) for name, shape in shapes.items()}
    optimiser = adamw(parameters, Optim(lr=0.1, weight_decay=0.5))
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    assert parameters["weight"].tolist() == [[pytest.approx(0.95)] * 2] * 2
    assert parameters["bias"].tolist() == [1, 1]
    assert parameters["scale"].item() == 1


def test_one_kind_of_parameter_alone_is_fine():
    assert len(adamw({"bias": nn.Parameter(torch.ones(2))}, Optim()).param_groups) == 1
