from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from polyalign.models import checkpoint
from polyalign.models.aligner import Aligner
from polyalign.models.embed import embed
from polyalign.utils import storage
from polyalign.utils.errors import UserError
from tests import tiny


def saved(folder, name: str = "lilt", **sections) -> Aligner:
    """Save an aligner whose parameters differ from their initialisation."""
    recipe = tiny.resolved(name, **sections)
    aligner = tiny.build_aligner(recipe)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in aligner.trainable().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    checkpoint.save(folder, aligner, recipe)
    return aligner


def test_it_holds_what_trained_and_nothing_else(tmp_path):
    aligner = saved(tmp_path)
    assert load_file(tmp_path / checkpoint.WEIGHTS).keys() == aligner.trainable().keys()
    assert {path.name for path in tmp_path.iterdir()} == {
        checkpoint.WEIGHTS,
        checkpoint.RECIPE,
        checkpoint.TOWERS,
        checkpoint.TOKENIZER,
    }


def test_it_tells_the_size_of_its_weights(tmp_path):
    aligner = tiny.aligner()
    size = checkpoint.save(tmp_path, aligner, tiny.resolved())
    assert size == (tmp_path / checkpoint.WEIGHTS).stat().st_size


@pytest.mark.parametrize("loss", ["infonce", "sigmoid"])
def test_embeddings_are_the_same_to_the_bit(loss, tmp_path):
    aligner = saved(tmp_path, optim={"loss": loss})
    loaded, _ = checkpoint.load(tmp_path)
    one, other = (embed(which, tiny.table("test")) for which in (aligner, loaded))
    assert (one.images == other.images).all()
    assert (one.captions == other.captions).all()
    assert torch.equal(aligner.scale, loaded.scale)
    assert not loaded.training


def test_preprocessing_and_tokenizer_are_the_saved_ones(tmp_path):
    towers = tmp_path / "towers"
    shutil.copytree(tiny.vision(), towers / "vision")
    shutil.copytree(tiny.text(), towers / "text")
    sections = {"vision": {"model": str(towers / "vision")}, "text": {"model": str(towers / "text")}}
    aligner = saved(tmp_path / "run", "projection", **sections)
    facts = (towers / "vision" / "tower.toml").read_text().replace("0.25", "0.5")
    (towers / "vision" / "tower.toml").write_text(facts)
    shutil.copy(tiny.text("xlmr") / "tokenizer.json", towers / "text")
    loaded, _ = checkpoint.load(tmp_path / "run")
    assert loaded.vision.preprocessing == aligner.vision.preprocessing
    assert loaded.text.tokenize(["red and blue"]) == aligner.text.tokenize(["red and blue"])


@pytest.mark.parametrize("kind", ["vision", "text"])
def test_towers_of_other_weights_are_refused(kind, tmp_path):
    towers = tmp_path / "tower"
    shutil.copytree({"vision": tiny.vision, "text": tiny.text}[kind](), towers)
    saved(tmp_path / "run", "projection", **{kind: {"model": str(towers)}})
    state = load_file(towers / "model.safetensors")
    next(iter(state.values())).add_(1)
    save_file(state, towers / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"the {kind} tower's weights are not those this checkpoint was trained on"):
        checkpoint.load(tmp_path / "run")


def spoil_json(path):
    path.write_text(json.dumps({"vision": "x"}), encoding="utf-8")


def spoil(path):
    path.write_bytes(b"\x00\x01 nothing of the kind")


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (checkpoint.WEIGHTS, lambda path: path.unlink(), "holds no finished checkpoint"),
        (checkpoint.WEIGHTS, spoil, "cannot read .*model.safetensors"),
        (checkpoint.RECIPE, lambda path: path.unlink(), "cannot read .*recipe.toml"),
        (checkpoint.RECIPE, spoil, "cannot read .*recipe.toml"),
        (checkpoint.TOWERS, lambda path: path.unlink(), "cannot read .*towers.json"),
        (checkpoint.TOWERS, spoil, "towers.json is not what was saved"),
        (checkpoint.TOWERS, spoil_json, "towers.json is not what was saved"),
        (checkpoint.TOKENIZER, shutil.rmtree, "tokenizer"),
        (f"{checkpoint.TOKENIZER}/tokenizer.json", spoil, "tokenizer"),
    ],
)
def test_a_file_that_is_missing_or_corrupt_is_an_error_of_one_line(name, change, said, tmp_path):
    saved(tmp_path, "projection")
    change(tmp_path / name)
    with pytest.raises(UserError, match=said) as caught:
        checkpoint.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_unfinished_run_is_an_error_that_says_how_to_finish(tmp_path):
    with pytest.raises(UserError, match="train first, or finish with --resume"):
        checkpoint.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop("logit_scale"), r"differs in \['logit_scale'\]"),
        (lambda tensors: tensors.update(odd=torch.zeros(1)), r"differs in \['odd'\]"),
        (lambda tensors: tensors.update(logit_scale=torch.zeros(2)), "differs in shapes"),
    ],
)
def test_weights_of_another_strategy_are_refused(change, said, tmp_path):
    saved(tmp_path, "projection")
    tensors, metadata = storage.load_tensors(tmp_path / checkpoint.WEIGHTS)
    change(tensors)
    storage.save_tensors(tmp_path / checkpoint.WEIGHTS, tensors, metadata)
    with pytest.raises(UserError, match=f"does not fit its recipe: it {said}"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("training", [True, False])
def test_asking_for_the_state_leaves_the_mode_as_it_is(training):
    aligner = tiny.aligner("scratch", vision={"model": str(tiny.conv())}, strategy={"towers": "vision"}).train(training)
    modes = [module.training for module in aligner.modules()]
    assert any(modes) == training
    state = checkpoint.trained_state(aligner)
    assert any(name.endswith("running_mean") for name in state)
    assert [module.training for module in aligner.modules()] == modes
