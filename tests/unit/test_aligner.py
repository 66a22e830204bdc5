from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from polyalign.models import checkpoint
from polyalign.models.aligner import Aligner
from tests import tiny


@pytest.fixture(scope="module")
def frozen() -> Aligner:
    return tiny.aligner()


def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (4, 3, tiny.PX, tiny.PX), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def test_embeddings_are_unit_vectors_of_the_projections_width(frozen):
    tokens = frozen.text.collate(frozen.text.tokenize(["red", "a blue and a green"]))
    for embedded, count in ((frozen.encode_image(pixels()), 4), (frozen.encode_text(tokens), 2)):
        assert embedded.shape == (count, 16)
        torch.testing.assert_close(embedded.norm(dim=1), torch.ones(count))


def test_only_projections_and_temperature_train_at_first(frozen):
    assert sorted(frozen.trainable()) == [
        "logit_scale",
        "text_projection.bias",
        "text_projection.weight",
        "vision_projection.bias",
        "vision_projection.weight",
    ]
    assert frozen.count()[0] == 2 * (32 * 16 + 16) + 1


def test_the_temperature_starts_at_0_07_and_is_clamped_as_published():
    aligner = tiny.aligner()
    assert aligner.scale.item() == pytest.approx(1 / 0.07)
    for stored, divisor in ((100.0, 0.001), (-100.0, 0.5)):
        nn.init.constant_(aligner.logit_scale, stored)
        assert aligner.scale.item() == pytest.approx(1 / divisor, rel=1e-5)


def test_the_sigmoid_loss_brings_a_bias_and_its_own_start():
    aligner = tiny.aligner(optim={"loss": "sigmoid"})
    assert aligner.logit_bias is not None
    assert aligner.logit_bias.item() == -10
    assert aligner.logit_scale.item() == pytest.approx(math.log(10))
    assert "logit_bias" in aligner.trainable()
    assert tiny.aligner().logit_bias is None


def test_the_first_trainable_stage_is_the_cut():
    tower = tiny.aligner().vision
    stages = tower.stages()
    assert tower.first_trainable([]) == 5
    assert tower.first_trainable([stages[2][1]]) == 2
    assert tower.first_trainable([stages[2][1], stages[0][1]]) == 0
    assert tower.first_trainable([nn.Parameter(torch.zeros(1))]) == 5


def built_by_hand() -> Aligner:
    made = tiny.aligner()
    return Aligner(made.vision, made.text, 16)


def test_before_anything_is_recorded_requires_grad_decides_what_trains():
    aligner = built_by_hand()
    assert aligner.cuts() == (5, 5)
    aligner.vision.model.blocks[1].requires_grad_(True)
    assert aligner.cuts() == (2, 5)
    assert "vision.model.blocks.1.norm1.weight" in aligner.trainable()


@pytest.mark.parametrize("name", ["lilt", "lit", "layernorm"])
def test_what_trains_is_what_was_recorded_whatever_requires_grad_says_later(name):
    aligner = tiny.aligner(name)
    names, cuts, count = set(aligner.trainable()), aligner.cuts(), aligner.count()
    aligner.train()
    modes = {path: module.training for path, module in aligner.named_modules()}
    state = set(checkpoint.trained_state(aligner))
    for frozen in (True, False):
        aligner.requires_grad_(not frozen)
        assert set(aligner.trainable()) == names
        assert aligner.count() == count
        assert set(checkpoint.trained_state(aligner)) == state
        aligner.eval().train()
        assert {path: module.training for path, module in aligner.named_modules()} == modes
        # A layer unlocked later may be about to change: nothing above it is taken for constant.
        assert aligner.cuts() == (cuts if frozen else (0, 0))


def test_recording_again_takes_what_requires_grad_says_now():
    aligner = tiny.aligner()
    aligner.text.model.encoder.layer[2].requires_grad_(True)
    aligner.record_trainable()
    aligner.requires_grad_(False)
    assert aligner.cuts() == (5, 3)
    assert any(name.startswith("text.model.encoder.layer.2.") for name in aligner.trainable())


def test_the_seed_decides_the_projections():
    one, same, other = (tiny.aligner(train={"seed": seed}).vision_projection.weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
