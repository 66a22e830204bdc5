from __future__ import annotations

import numpy as np
import pytest
import torch

from polyalign.training import train
from polyalign.training.recompute import compile_blocks, recompute_blocks
from polyalign.utils.errors import UserError
from tests import tiny


def compiled(aligner) -> list[str]:
    return [name for name, module in aligner.named_modules() if module._compiled_call_impl is not None]


def test_blocks_at_and_above_the_cut_are_compiled_and_no_name_changes():
    for strategy, expected in (
        ({"name": "projection"}, []),
        ({"name": "lit", "towers": "text", "layers": "last:1"}, ["text.model.encoder.layer.2"]),
        (
            {"name": "lilt", "layers": "last:2"},
            [*(f"vision.model.blocks.{n}" for n in (1, 2)), *(f"text.model.encoder.layer.{n}" for n in (1, 2))],
        ),
    ):
        aligner = tiny.build_aligner(tiny.resolved(strategy["name"], strategy=strategy))
        names = list(aligner.state_dict())
        compile_blocks(aligner)
        assert compiled(aligner) == expected
        assert list(aligner.state_dict()) == names


def test_a_tower_without_blocks_says_how_to_go_on():
    aligner = tiny.aligner("full", vision={"model": str(tiny.conv())})
    with pytest.raises(
        UserError, match=r"the vision tower \(.*\) has none: leave it out \(--set train.compile=false\)"
    ):
        compile_blocks(aligner)


def test_nothing_is_compiled_unless_asked():
    assert compiled(train.set_up(tiny.resolved("lilt")).loop.aligner) == []


def kept_bytes(loop, pairs) -> int:
    """Count the bytes, without weights, that autograd keeps for the backward pass."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in loop.aligner.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        image, text = loop._encode(pairs, 0, 0)
        loop.loss(image, text, pairs)
    return sum(kept.values())


@pytest.mark.parametrize("strategy", ["lilt", "full", "lora"])
def test_recomputed_blocks_give_the_same_gradients_from_less_than_half_of_what_is_kept(strategy):
    gradients, kept = [], []
    for asked in (False, True):
        recipe = tiny.resolved(strategy, train={"recompute": asked}, optim={"batch_size": 32})
        loop = train.set_up(recipe).loop
        loop.aligner.train()
        pairs = loop.batch(0)
        kept.append(kept_bytes(loop, pairs))
        loop.backward(pairs, seed=3)
        gradients.append({name: parameter.grad for name, parameter in loop.aligner.trainable().items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    assert kept[1] < kept[0] / 2


def test_a_tower_without_blocks_cannot_be_recomputed():
    with pytest.raises(UserError, match=r"train\.recompute needs transformer blocks, and the vision tower"):
        recompute_blocks(tiny.aligner("full", vision={"model": str(tiny.conv())}))


@pytest.mark.slow
def test_a_compiled_run_is_the_same_run(tmp_path):
    # The last BERT layer has dropout, and parts of the batch run twice: both must draw the same masks.
    runs = []
    for number, asked in enumerate((True, False)):
        strategy = {"towers": "text", "layers": "last:1"}
        optim = {"micro_batch": 16, "epochs": 1}
        recipe = tiny.resolved("lit", strategy=strategy, optim=optim, train={"compile": asked, "evals": 4})
        loop = train.set_up(recipe).loop
        assert bool(compiled(loop.aligner)) is asked
        state = loop.run(tmp_path / str(number), resume=False)
        assert state.step == 4
        runs.append(([look.loss for look in state.dev_evaluations], state.best))
    (losses, best), (plain_losses, plain_best) = runs
    np.testing.assert_allclose(losses, plain_losses, rtol=1e-4)
    assert best.keys() == plain_best.keys()
    for name, tensor in best.items():
        if not name.endswith("key.bias"):  # its gradient is only rounding error
            torch.testing.assert_close(tensor, plain_best[name], rtol=1e-2, atol=1e-3, msg=name)
