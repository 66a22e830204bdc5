from __future__ import annotations

import json
import random
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from polyalign.config.run_files import WEIGHTS
from polyalign.data.trained_images import TRAINED_IMAGES, load_trained_images, save_trained_images
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
    assert load_file(tmp_path / WEIGHTS).keys() == aligner.trainable().keys()
    assert {path.name for path in tmp_path.iterdir()} == {
        WEIGHTS,
        checkpoint.RECIPE,
        checkpoint.TOWERS,
        checkpoint.TOKENIZER,
    }


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
        (WEIGHTS, lambda path: path.unlink(), "holds no finished checkpoint"),
        (WEIGHTS, spoil, "cannot read .*model.safetensors"),
        (checkpoint.RECIPE, lambda path: path.unlink(), "recipe.toml was deleted after model.safetensors was saved"),
        (checkpoint.RECIPE, spoil, "cannot read .*recipe.toml"),
        (checkpoint.TOWERS, lambda path: path.unlink(), "towers.json was deleted after"),
        (checkpoint.TOWERS, spoil, "towers.json was changed after"),
        (checkpoint.TOKENIZER, shutil.rmtree, "tokenizer/tokenizer.json was deleted after"),
        (f"{checkpoint.TOKENIZER}/tokenizer.json", spoil, "tokenizer/tokenizer.json was changed after"),
        (f"{checkpoint.TOKENIZER}/evil.py", spoil, "tokenizer/evil.py was added after"),
    ],
)
def test_a_file_that_is_missing_or_corrupt_is_an_error_of_one_line(name, change, said, tmp_path):
    saved(tmp_path, "projection")
    change(tmp_path / name)
    with pytest.raises(UserError, match=said) as caught:
        checkpoint.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop("logit_scale"), "differs in logit_scale"),
        (lambda tensors: tensors.update(odd=torch.zeros(1)), "differs in odd"),
        (
            lambda tensors: tensors.update(logit_scale=torch.zeros(2)),
            r"differs in logit_scale \(torch.float32 \[2\], not ",
        ),
        (
            lambda tensors: tensors.update(logit_scale=tensors["logit_scale"].double()),
            r"differs .* \(torch.float64 \[\], ",
        ),
    ],
)
def test_weights_of_another_strategy_are_refused(change, said, tmp_path):
    saved(tmp_path, "projection")
    tensors, metadata = storage.load_tensors(tmp_path / WEIGHTS)
    change(tensors)
    storage.save_tensors(tmp_path / WEIGHTS, tensors, metadata)
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


def without_digests(folder, **metadata):
    """Write the weights anew with this metadata instead of the digests of the other files."""
    tensors, _ = storage.load_tensors(folder / WEIGHTS)
    storage.save_tensors(folder / WEIGHTS, tensors, {"format": "polyalign 1", **metadata})


def test_a_checkpoint_of_an_older_version_is_loaded_with_a_message(tmp_path, caplog):
    saved(tmp_path, "projection")
    without_digests(tmp_path)
    with caplog.at_level("INFO"):
        checkpoint.load(tmp_path)
    assert caplog.text.count("changes to them cannot be detected") == 1


@pytest.mark.parametrize("files", ["", "3", "[]", "[1]", '{"x": 1}', '{"../recipe.toml": ""}', "null"])
def test_digests_of_another_form_are_an_error_of_one_line(files, tmp_path):
    saved(tmp_path, "projection")
    without_digests(tmp_path, files=files)
    with pytest.raises(UserError) as caught:
        checkpoint.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [spoil, spoil_json])
def test_other_files_of_an_older_checkpoint_are_errors_of_one_line(change, tmp_path):
    saved(tmp_path, "projection")
    without_digests(tmp_path)
    change(tmp_path / checkpoint.TOWERS)
    with pytest.raises(UserError, match=r"towers.json is not what was saved") as caught:
        checkpoint.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_flipped_byte_in_any_file_names_it_or_changes_nothing(tmp_path):
    table = tiny.table("train").take_pairs(range(8))
    aligner = saved(tmp_path, "projection")
    save_trained_images(tmp_path, table)
    right, trained = embed(aligner, table), load_trained_images(tmp_path)
    chance = random.Random(0)
    for path in sorted(path for path in tmp_path.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        for place in [*chance.sample(range(len(whole)), 8), *range(8), len(whole) - 1]:
            path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << chance.randrange(8))]) + whole[place + 1 :])
            said = ""
            try:
                if path.name == TRAINED_IMAGES:
                    assert load_trained_images(tmp_path).image_ids == trained.image_ids
                else:
                    found, _ = checkpoint.load(tmp_path)
                    assert np.array_equal(embed(found, table).captions, right.captions)
            except UserError as error:
                said = str(error)
            assert said == "" or (str(path) in said and "\n" not in said)
        path.write_bytes(whole)
    checkpoint.load(tmp_path)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("image_px", value) for value in (0, -1, 1.5, 10**6, 10**9, [32, 10**7], [32], "x")),
        *(("mean", value) for value in ([], [NAN] * 3, [INF] * 3, [1e39] * 3)),
        *(("std", value) for value in ([], [0] * 3, [-1] * 3, [NAN] * 3, [1e-50] * 3)),
        ("std", [INF] * 3),
        *(("crop_pct", value) for value in (0, -1, NAN, INF, 1e-9, 1e9)),
        *(("interpolation", value) for value in ("", "foo", "\0")),
        ("crop_mode", "x"),
        ("odd", 1),
    ],
)
def test_preprocessing_that_cannot_be_right_is_an_error_of_one_line(key, value, tmp_path):
    saved(tmp_path, "projection")
    without_digests(tmp_path)
    facts = json.loads((tmp_path / checkpoint.TOWERS).read_text(encoding="utf-8"))
    facts["preprocessing"][key] = value
    (tmp_path / checkpoint.TOWERS).write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        checkpoint.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_places_of_towers_and_data_may_be_edited_and_nothing_else(tmp_path):
    saved(tmp_path)
    text = (tmp_path / checkpoint.RECIPE).read_text()
    moved = shutil.copytree(tiny.vision(), tmp_path / "moved")
    edited = text.replace(str(tiny.vision()), str(moved))
    assert edited != text
    (tmp_path / checkpoint.RECIPE).write_text(edited)
    assert checkpoint.load(tmp_path)[1].vision.model == str(moved)
    (tmp_path / checkpoint.RECIPE).write_text(text.replace("seed = ", "seed = 1"))
    with pytest.raises(UserError, match=r"recipe.toml was changed after .* only the places of towers and data may be"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("link", ["tokenizer", "tokenizer/tokenizer.json"])
def test_a_link_in_place_of_the_tokenizer_is_refused_and_its_target_kept(link, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "tokenizer.json").write_text("precious")
    place = tmp_path / "run" / link
    place.parent.mkdir(parents=True)
    place.symlink_to(mine / "tokenizer.json" if "/" in link else mine)
    with pytest.raises(UserError, match="is a link, whose target would be overwritten"):
        saved(tmp_path / "run")
    assert (mine / "tokenizer.json").read_text() == "precious"
