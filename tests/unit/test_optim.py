from __future__ import annotations

import itertools
import math

import pytest
import torch

from polyalign.config.schema import Optim
from polyalign.models.aligner import Aligner
from polyalign.training.optim import adamw, learning_rate
from polyalign.utils.errors import UserError
from tests import tiny


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


def rates(aligner: Aligner, **optim: float) -> dict[str, tuple[float, float]]:
    """The rate and the weight decay of each parameter, by name."""
    names = {id(parameter): name for name, parameter in aligner.trainable().items()}
    groups = adamw(aligner, Optim(**optim)).param_groups
    assert all(group["lr"] == pytest.approx(group["lr_scale"] * optim.get("lr", 1e-3)) for group in groups)
    return {names[id(one)]: (group["lr"], group["weight_decay"]) for group in groups for one in group["params"]}


def test_only_matrices_decay():
    aligner = tiny.aligner()
    optimiser = adamw(aligner, Optim(lr=0.1, weight_decay=0.5))
    before = {name: parameter.detach().clone() for name, parameter in aligner.trainable().items()}
    for parameter in aligner.trainable().values():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    for name, parameter in aligner.trainable().items():
        torch.testing.assert_close(parameter.data, before[name] * (0.95 if name.endswith("weight") else 1))


def test_by_default_there_are_two_groups_in_the_order_of_the_parameters():
    aligner = tiny.aligner("lilt")
    trainable = list(aligner.trainable().values())
    matrices, vectors = adamw(aligner, Optim(lr=0.3)).param_groups
    for group, wanted in (
        (matrices, [p for p in trainable if p.ndim >= 2]),
        (vectors, [p for p in trainable if p.ndim < 2]),
    ):
        assert list(map(id, group["params"])) == list(map(id, wanted))
        assert (group["lr"], group["lr_scale"]) == (0.3, 1.0)
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.02, 0.0)


def test_rates_and_weight_decays_of_towers_and_projections():
    own = {"vision_lr": 0.2, "text_lr": 0.4, "vision_weight_decay": 0.0, "projection_weight_decay": 0.3}
    found = rates(tiny.aligner("full", optim={"loss": "sigmoid"}), lr=0.1, weight_decay=0.02, **own)
    assert found["vision.model.blocks.0.mlp.fc1.weight"] == (0.2, 0.0)
    assert found["text.model.encoder.layer.2.output.dense.weight"] == (0.4, 0.02)
    assert found["text.model.encoder.layer.2.output.dense.bias"] == (0.4, 0.0)
    assert found["vision_projection.weight"] == (0.1, 0.3)
    assert found["logit_scale"] == found["logit_bias"] == found["text_projection.bias"] == (0.1, 0.0)
    assert rates(tiny.aligner(), lr=0.1, projection_lr=0.7)["logit_scale"] == (pytest.approx(0.7), 0.0)


def test_rates_fall_with_depth_from_the_top_block_to_the_embeddings():
    found = rates(tiny.aligner("full"), lr=1.0, vision_lr=8.0, layer_decay=0.5)
    wanted = {"norm": 8.0, "blocks.2": 4.0, "blocks.1": 2.0, "blocks.0": 1.0, "patch_embed": 0.5, "pos_embed": 0.5}
    for path, rate in wanted.items():
        assert {value for name, (value, _) in found.items() if name.startswith(f"vision.model.{path}")} == {rate}
    wanted = {"encoder.layer.2": 0.5, "encoder.layer.1": 0.25, "encoder.layer.0": 0.125, "embeddings": 0.0625}
    for path, rate in wanted.items():
        assert {value for name, (value, _) in found.items() if name.startswith(f"text.model.{path}")} == {rate}
    assert found["text_projection.weight"][0] == found["vision_projection.bias"][0] == 1.0


@pytest.mark.parametrize("strategy", ["lilt", "lora", "lilt-deep"])
def test_what_a_strategy_inserts_has_the_rate_of_its_block(strategy):
    aligner = tiny.aligner(strategy)
    found = rates(aligner, lr=1.0, layer_decay=0.5)
    for tower in (aligner.vision, aligner.text):
        for height, block in enumerate(reversed(tower.blocks), start=1):
            held = {id(parameter) for parameter in block.parameters()}
            inside = [name for name, parameter in aligner.trainable().items() if id(parameter) in held]
            assert inside
            assert {found[name][0] for name in inside} == {0.5**height}


def test_a_tower_without_blocks_has_no_layer_decay():
    aligner = tiny.aligner("full", vision={"model": str(tiny.conv())})
    with pytest.raises(
        UserError, match=r"optim\.layer_decay needs transformer blocks .* the vision tower \(.*\)"
    ) as told:
        adamw(aligner, Optim(layer_decay=0.9))
    assert "\n" not in str(told.value)
    locked = tiny.aligner("full", vision={"model": str(tiny.conv())}, strategy={"towers": "text"})
    assert rates(locked, lr=1.0, layer_decay=0.5)["vision_projection.weight"][0] == 1.0
