from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

import polyalign
from polyalign.data.trained_images import TRAINED_IMAGES
from polyalign.models import checkpoint
from polyalign.models.aligner import Aligner
from polyalign.models.strategies import lora
from polyalign.models.towers.sentence_transformers import UnitLength
from polyalign.serving.export.check import RECORD
from polyalign.serving.export.run import MERGED, Options, export
from polyalign.utils.errors import UserError
from tests import tiny

USUAL = ("projection", "lilt", "lora", "lit")
MORE = ("mlp", "side", "layernorm", "bitfit", "lilt-deep", "full", "scratch")
MIXED = (("lilt", "lora"), ("lit", "lilt"))
STRATEGIES = (*USUAL, *(pytest.param(name, marks=pytest.mark.repeated) for name in MORE))


def trained(folder, strategy: str = "lilt", /, **sections) -> Aligner:
    """Save a run of the tiny towers, copied beside it, whose parameters differ from their initial values."""
    sides = {"vision": tiny.vision(), "text": tiny.text(), **sections.pop("towers", {})}
    for side, path in sides.items():
        shutil.copytree(path, folder.parent / "towers" / side)
        sections[side] = {"model": str(folder.parent / "towers" / side), **sections.get(side, {})}
    recipe = tiny.resolved(strategy, **sections)
    aligner = tiny.build_aligner(recipe)
    inherited = [parameter for name, parameter in aligner.named_parameters() if name in aligner.inherited]
    tiny.jitter(torch.nn.ParameterList([*aligner.trainable().values(), *inherited]))
    checkpoint.save(folder, aligner, recipe)
    return aligner


def vectors(folder) -> tuple[np.ndarray, np.ndarray]:
    model, table = polyalign.load(folder), tiny.table("test")
    return model.encode_image(table.images), model.encode_text(table.captions)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_merged_run_has_the_same_vectors_without_its_towers(strategy, tmp_path):
    trained(tmp_path / "run", strategy)
    before = vectors(tmp_path / "run")
    done = export(tmp_path / "run", MERGED, tmp_path / "merged")
    assert max(done.image, done.text) <= done.tolerance == 1e-6
    shutil.rmtree(tmp_path / "towers")
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / "merged").rename(tmp_path / "elsewhere" / "model")
    for one, other in zip(before, vectors(moved), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("strategy", "taught"), [("lit", "lora"), *(pytest.param(*two, marks=pytest.mark.repeated) for two in MIXED)]
)
def test_a_distilled_run_needs_no_teacher(strategy, taught, tmp_path):
    teacher = {"run": "gone", "weights": "0" * 64, "strategy": tiny.resolved(taught).strategy}
    sections = {"strategy": {"towers": "text"}, "parallel": {"text": "captions"}, "optim": {"loss": "mse"}}
    aligner = trained(tmp_path / "run", strategy, teacher=teacher, **sections)
    assert any(name.startswith("vision.") for name in aligner.inherited)
    before = vectors(tmp_path / "run")
    export(tmp_path / "run", MERGED, tmp_path / "merged")
    export(tmp_path / "merged", MERGED, tmp_path / "again")
    assert checkpoint.read_towers(tmp_path / "again").merged
    shutil.rmtree(tmp_path / "towers")
    shutil.rmtree(tmp_path / "merged")
    for one, other in zip(before, vectors(tmp_path / "again"), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


def test_lora_leaves_nothing_behind(tmp_path):
    aligner = trained(tmp_path / "run", "lora")
    export(tmp_path / "run", MERGED, tmp_path / "merged")
    merged, recipe = checkpoint.load(tmp_path / "merged")
    assert recipe.strategy["name"] == "projection"
    assert sum(p.numel() for p in merged.parameters()) < sum(p.numel() for p in aligner.parameters())
    assert not merged.changed_modules()


def test_a_weight_read_without_a_call_is_merged_too():
    linear = torch.nn.Linear(4, 6)
    before = linear.weight.detach().clone()
    low_rank = lora.LowRank(linear.weight, lora.Config())
    torch.nn.init.ones_(low_rank.b)
    torch.nn.utils.parametrize.register_parametrization(linear, "weight", low_rank, unsafe=True)
    expected = linear.weight.detach().clone()
    lora.merge(torch.nn.Sequential(linear))
    assert type(linear) is torch.nn.Linear
    assert torch.equal(linear.weight, expected)
    assert not torch.equal(before, expected)


def test_a_head_of_sentence_transformers_is_kept(tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

    place = tmp_path / "labse"
    parts = (Transformer(str(tiny.text())), Pooling(32, "cls"), Dense(32, 12), Normalize())
    SentenceTransformer(modules=parts, device="cpu").save(str(place))
    aligner = trained(tmp_path / "run", "lit", towers={"text": place})
    assert isinstance(aligner.text.head[1], UnitLength)
    before = vectors(tmp_path / "run")
    export(tmp_path / "run", MERGED, tmp_path / "merged")
    shutil.rmtree(tmp_path / "towers")
    np.testing.assert_allclose(before[1], vectors(tmp_path / "merged")[1], rtol=0, atol=1e-6)
    own = SentenceTransformer(str(tmp_path / "merged" / "text"), device="cpu").encode(["red and blue"])
    tower = checkpoint.load(tmp_path / "merged")[0].text
    with torch.no_grad():
        np.testing.assert_allclose(own, tower(tower.collate(tower.tokenize(["red and blue"]))), rtol=0, atol=1e-6)


def test_it_can_be_evaluated_and_trained_from_but_its_towers_have_no_before(run, tmp_path):
    trained(tmp_path / "run", "lora")
    (tmp_path / "run" / TRAINED_IMAGES).write_bytes(b"?")
    code, out, _ = run("merge", tmp_path / "run", "--out", tmp_path / "merged", "--json")
    assert code == 0
    assert json.loads(out)["images"] == 24
    assert (tmp_path / "merged" / TRAINED_IMAGES).read_bytes() == b"?"
    (tmp_path / "merged" / TRAINED_IMAGES).unlink()
    assert run("eval", tmp_path / "merged")[0] == 0
    assert run("train", "--from", tmp_path / "merged", "--out", tmp_path / "next", "--set", "optim.epochs=1")[0] == 0
    code, _, err = run("retention", tmp_path / "merged")
    assert (code, err.count("\n")) == (2, 1)
    assert "was merged: its towers before training are not in it" in err


def test_without_its_data_it_is_compared_on_generated_pictures(tmp_path, caplog):
    trained(tmp_path / "run", "projection", source={"name": "folder", "root": str(tmp_path / "gone")})
    done = export(tmp_path / "run", MERGED, tmp_path / "merged")
    assert "32 generated pictures" in done.compared_on
    assert "cannot be loaded" in caplog.text
    options = Options(overrides={"source": {"name": "folder", "root": str(tmp_path / "gone")}})
    with pytest.raises(UserError, match="gone"):
        export(tmp_path / "run", MERGED, tmp_path / "again", options)
    assert not (tmp_path / "again").exists()


def test_nothing_is_left_of_a_merge_that_differs(monkeypatch, tmp_path):
    from polyalign.serving import merge

    trained(tmp_path / "run")
    monkeypatch.setattr(merge, "TOLERANCE", -1.0)
    with pytest.raises(UserError, match="differs from the run"):
        export(tmp_path / "run", MERGED, tmp_path / "merged")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "towers"}


def test_an_existing_folder_and_an_unfinished_run_are_refused(run, tmp_path):
    trained(tmp_path / "run")
    code, _, err = run("merge", tmp_path / "run", "--out", tmp_path / "towers")
    assert (code, "already exists" in err) == (2, True)
    code, _, err = run("merge", tmp_path, "--out", tmp_path / "merged")
    assert (code, "no finished checkpoint" in err) == (2, True)
    assert not (tmp_path / "merged").exists()
    assert not list((tmp_path / "towers").glob(RECORD))
