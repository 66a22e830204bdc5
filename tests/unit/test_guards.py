"""Nothing is trained in vain, and nothing is cached that is not what the tower gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from polyalign.config.schema import Cache
from polyalign.models.aligner import Aligner
from polyalign.models.feature_cache import image_features
from polyalign.training.guards import check_gradients, rehearse
from polyalign.utils.errors import UserError
from tests import architectures, tiny
from tests.unit.test_train import loop_for


def with_idle_parameter() -> Aligner:
    """An aligner whose strategy inserted a parameter that nothing uses."""
    aligner = tiny.aligner("layernorm")
    known = {name for name, _ in aligner.named_parameters()}
    aligner.vision.model.register_parameter("idle", nn.Parameter(torch.zeros(3)))
    aligner.record_trainable(inserted_beside=known)
    return aligner


def test_a_parameter_that_was_inserted_for_nothing_is_refused():
    with pytest.raises(UserError, match=r"1 trainable tensors would never train, such as vision\.model\.idle"):
        rehearse(with_idle_parameter())


def test_a_copied_block_with_parts_that_are_not_used_is_refused():
    aligner = architectures.aligned("text", "longformer", "lilt-deep", "all")
    with pytest.raises(UserError, match=r"6 trainable tensors would never train, .*query_global"):
        rehearse(aligner)


def test_a_gradient_that_stays_zero_is_told_from_that_of_a_closed_branch():
    rehearse(architectures.aligned("vision", "vit_small_patch14_dinov2", "lilt-deep", "all"))
    aligner = architectures.aligned("vision", "vit_relpos_medium_patch16_cls_224", "lilt-deep", "all")
    with pytest.raises(UserError, match=r"4 trainable tensors would never train, .*rel_pos\.mlp"):
        rehearse(aligner)


def test_pretrained_parameters_that_are_not_used_are_named(caplog):
    with caplog.at_level("INFO"):
        rehearse(architectures.aligned("text", "longformer", "full", "all"))
    assert "the network does not use 18 of its pretrained tensors, such as text.model.encoder" in caplog.text


def test_a_tower_whose_trainable_parameters_are_all_idle_is_refused():
    aligner = tiny.aligner("projection")
    aligner.vision.model.register_parameter("idle", nn.Parameter(torch.zeros(3)))
    aligner.record_trainable()
    with pytest.raises(UserError, match="would never train"):
        rehearse(aligner)


def test_rehearsing_leaves_no_trace():
    aligner = tiny.aligner("lilt")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    before = {name: value.clone() for name, value in aligner.state_dict().items()}
    rehearse(aligner)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, before[name]) for name, value in aligner.state_dict().items())
    assert all(parameter.grad is None for parameter in aligner.parameters())


def test_a_strategy_that_a_network_cannot_run_with_is_refused():
    aligner = tiny.aligner("projection")
    aligner.vision.model.blocks[0].norm1 = nn.Linear(7, 7)
    with pytest.raises(UserError, match=r"the towers cannot be run with this strategy: .*7x7"):
        rehearse(aligner)


def test_the_first_step_of_training_checks_too(tmp_path):
    loop = loop_for(tiny.resolved())
    loop.aligner.inserted = frozenset({"text.model.idle"})
    loop.aligner.text.model.register_parameter("idle", nn.Parameter(torch.zeros(3)))
    loop.aligner.record_trainable()
    with pytest.raises(UserError, match=r"such as text\.model\.idle"):
        loop.run(tmp_path / "state", resume=False)


def test_nothing_is_refused_where_all_is_used():
    aligner = tiny.aligner("full")
    rehearse(aligner)
    with pytest.raises(UserError, match="would never train"):
        check_gradients(aligner)  # before any backward pass


# The cut


def test_a_cut_above_something_that_trains_is_not_used(caplog):
    aligner = tiny.aligner("layernorm", strategy={"layers": "last:1"})
    assert aligner.cuts()[0] == 3
    aligner._exact = {}
    aligner.vision.model.blocks[0].norm1.weight.requires_grad_(True)
    assert not aligner.vision.is_exact(3)


# The cache


def enlarged(factor: float) -> Aligner:
    aligner = tiny.aligner("projection")
    with torch.no_grad():
        aligner.vision.model.norm.weight.mul_(factor)
    aligner.vision.fingerprint = f"enlarged {factor}"
    return aligner


def test_features_too_large_for_float16_are_cached_in_float32(caplog, monkeypatch):
    table, aligner = tiny.table(), enlarged(1e6)
    with caplog.at_level("INFO"):
        found = image_features(aligner.vision, table.images, 5, Cache())
    assert found.values.dtype == np.float32
    assert np.abs(found.values).max() > 65_504
    assert caplog.text.count("features of images exceed 65,504") == 1
    pixels = torch.stack([aligner.vision.transform(image.open()) for image in table.images])
    with torch.no_grad():
        np.testing.assert_allclose(found.values, aligner.vision(pixels).numpy(), rtol=1e-4)
    monkeypatch.setattr(aligner.vision, "prefix", lambda *_: pytest.fail("computed again"))
    assert image_features(aligner.vision, table.images, 5, Cache()).values.dtype == np.float32


def test_features_that_fit_are_cached_in_float16(caplog):
    found = image_features(enlarged(2.0).vision, tiny.table().images, 5, Cache())
    assert found.values.dtype == np.float16
    assert "exceed" not in caplog.text


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(UserError, match="features that are not finite"):
        image_features(enlarged(float("inf")).vision, tiny.table().images, 5, Cache())
