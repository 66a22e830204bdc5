from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from polyalign.config.tower import first_trainable
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


@pytest.mark.parametrize("cut", range(6))
def test_encoding_from_a_cut_equals_encoding_the_whole(frozen, cut):
    tokens = frozen.text.collate(frozen.text.tokenize(["red", "a blue and a green"]))
    cut = min(cut, len(frozen.vision.stages()))
    image, text = frozen.vision.run(pixels(), 0, cut), frozen.text.run(tokens, 0, cut)
    assert torch.equal(frozen.encode_image(image, cut), frozen.encode_image(pixels()))
    assert torch.equal(frozen.encode_text(text, cut), frozen.encode_text(tokens))


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
    stages = [[nn.Parameter(torch.zeros(1), requires_grad=False)] for _ in range(3)]
    assert first_trainable(stages) == 3
    stages[2][0].requires_grad_(True)
    assert first_trainable(stages) == 2
    stages[0].append(nn.Parameter(torch.zeros(1)))
    assert first_trainable(stages) == 0
    assert first_trainable([[], []]) == 2


def test_the_seed_decides_the_projections():
    one, same, other = (tiny.aligner(train={"seed": seed}).vision_projection.weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
