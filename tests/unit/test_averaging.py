"""Weights averaged between before and after training, and over seeds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from polyalign.data.pairs import PairTable
from polyalign.data.trained_images import TRAINED_IMAGES, load_trained_images, save_trained_images
from polyalign.experiments.run_folders import train_into
from polyalign.models import checkpoint
from polyalign.models.build import build_aligner
from polyalign.models.embed import embed
from polyalign.training import averaging
from polyalign.training.averaging import RECORD, Average, interpolate, mixed, rotate, rotation, soup
from polyalign.training.train import RESULT
from polyalign.utils.errors import UserError
from tests import tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    """Runs of a few steps by name: ``full`` with two seeds, another length, and strategies that cannot be averaged."""
    root = tmp_path_factory.mktemp("runs")
    short = {"epochs": 1}
    wanted = {
        "zero": tiny.resolved("full", optim=short, train={"seed": 0}, test={"languages": ["de"]}),
        "one": tiny.resolved("full", optim={**short, "lr": 1e-3}, train={"seed": 1}, data={"data_seed": 1}),
        "longer": tiny.resolved("full", optim={"epochs": 2}),
        "lilt": tiny.resolved("lilt", optim=short),
        "projection": tiny.resolved("projection", optim=short),
        "scratch": tiny.resolved("scratch", optim=short),
        "other tower": tiny.resolved(
            "full", optim=short, text={"model": str(tiny.text("distilbert")), "max_tokens": 24}
        ),
    }
    for name, recipe in wanted.items():
        train_into(root / name, recipe, resume=False, overwrite=False)
    return {name: root / name for name in wanted}


def state(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.detach() for name, tensor in checkpoint.trained_state(checkpoint.load(folder)[0]).items()}


def before(folder: Path) -> dict[str, torch.Tensor]:
    """What trains, as it was before training."""
    return checkpoint.trained_state(build_aligner(checkpoint.load(folder)[1]))


def inside(name: str) -> bool:
    return name.startswith(("vision.", "text."))


@pytest.mark.parametrize("name", ["zero", "lilt"])
@pytest.mark.parametrize("alpha", [0, 1])
def test_the_ends_are_exact_to_the_bit(alpha, name, trained, tmp_path):
    assert interpolate(trained[name], [alpha], out=tmp_path / "out") == []
    found, start, end = state(tmp_path / "out"), before(trained[name]), state(trained[name])
    assert any(not torch.equal(start[one], end[one]) for one in start if inside(one))
    assert tiny.same(found, {one: start[one] if alpha == 0 and inside(one) else end[one] for one in end})


def test_a_weight_in_between_by_hand():
    before = {"vision.a": torch.tensor([1.0, -0.0]), "vision.n": torch.tensor(1), "logit_scale": torch.tensor(1.0)}
    after = {"vision.a": torch.tensor([3.0, 2.0]), "vision.n": torch.tensor(5), "logit_scale": torch.tensor(9.0)}
    found = mixed(before, after, 0.25)
    assert found["vision.a"].tolist() == [1.5, 0.5]
    assert (found["vision.n"], found["logit_scale"]) == (5, 9)
    assert torch.signbit(mixed(before, after, 0)["vision.a"]).tolist() == [False, True]


def test_the_best_on_dev_is_saved_and_of_equal_ones_the_smallest(trained, tmp_path, monkeypatch):
    found = interpolate(trained["zero"], [1, 0.5, 0], out=tmp_path / "best")
    assert [set(one.dev) for one in found] == [{"en", "de"}] * 3
    assert set(interpolate(trained["zero"], [0.5], [])[0].dev) == {"en"}
    recalls = {one.alpha: one.dev["en"].value for one in found}
    record = Average.load_json(tmp_path / "best" / RECORD)
    assert recalls[record.alpha] == max(recalls.values()) == record.dev["en"]
    monkeypatch.setattr(averaging, "_measure", lambda *_: found[0].dev)
    interpolate(trained["zero"], [1, 0.5, 0.75], out=tmp_path / "equal")
    assert Average.load_json(tmp_path / "equal" / RECORD).alpha == 0.5


def test_other_commands_read_the_folder_and_it_is_no_run(run, trained, tmp_path):
    out = tmp_path / "out"
    code, shown, _ = run("soup", trained["zero"], trained["one"], "--lang", "de,hi", "--out", out, "--json")
    assert code == 0
    rows = json.loads(shown)
    assert [row["name"] for row in rows] == [str(trained["zero"]), str(trained["one"]), "soup"]
    assert set(rows[2]["dev"]) == {"en", "de", "hi"}
    assert {path.name for path in out.iterdir()} - {".polyalign.lock"} == {*checkpoint.FILES, TRAINED_IMAGES, RECORD}
    assert run("eval", out, "--json")[0] == 0
    assert run("search", out, "red", "--images", tiny.data() / "images", "--top", "1")[0] == 0
    for resumed in ((), ("--resume",), ("--overwrite",)):
        code, _, error = run("repeat", out / "recipe.toml", "--out", out, *resumed)
        assert (code, RESULT in error) == (2, False)
        assert "contains other files and no run" in error
    code, shown, _ = run("interpolate", out, "--alpha", "0.5,1")
    assert code == 0
    assert "alpha 0.5" in shown


@pytest.mark.parametrize("strategy", ["projection", "mlp", "side"])
def test_rotations_change_no_cosine(strategy):
    aligner = tiny.aligner(strategy)
    with torch.no_grad():
        for projection in (aligner.vision_projection, aligner.text_projection):
            tiny.jitter(projection)
        aligner.vision_projection.bias.add_(0.3)
        one = embed(aligner, tiny.table("dev"))
        turn = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
        rotate(aligner, turn)
        other = embed(aligner, tiny.table("dev"))
    assert np.abs(one.images - other.images).max() > 0.1
    np.testing.assert_allclose(one.images @ one.captions.T, other.images @ other.captions.T, atol=1e-6)
    back = rotation(np.concatenate([other.images, other.captions]), np.concatenate([one.images, one.captions]))
    rotate(aligner, back)
    np.testing.assert_allclose(embed(aligner, tiny.table("dev")).images, one.images, atol=1e-4)


@pytest.mark.parametrize("rows", [3, 40])
def test_a_rotation_is_orthogonal_and_that_of_equal_vectors_is_none(rows):
    vectors = np.random.default_rng(0).normal(size=(rows, 16)).astype(np.float32)
    np.testing.assert_allclose(rotation(vectors, vectors), np.eye(16), atol=1e-6)
    turn = rotation(vectors, vectors[:, ::-1])
    np.testing.assert_allclose(turn @ turn.T, np.eye(16), atol=1e-9)


def test_a_soup_of_a_run_with_itself_is_that_run(trained, tmp_path):
    soup([trained["zero"]] * 3, out=tmp_path / "out")
    found, wanted = state(tmp_path / "out"), state(trained["zero"])
    assert all(torch.equal(found[name], wanted[name]) for name in wanted if inside(name))
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], atol=1e-6, rtol=1e-5)


def test_a_soup_is_the_mean_of_towers_and_of_rotated_projections(trained, tmp_path):
    soup([trained["zero"], trained["one"]], out=tmp_path / "out")
    found, one, other = (state(folder) for folder in (tmp_path / "out", trained["zero"], trained["one"]))
    for name in one:
        plain = (one[name] + other[name]) / 2
        is_plain = torch.allclose(found[name], plain, atol=1e-6)
        assert is_plain == (not name.endswith(("projection.weight", "projection.bias"))), name
    record = Average.load_json(tmp_path / "out" / RECORD)
    assert (record.method, record.runs) == ("soup", (str(trained["zero"]), str(trained["one"])))


def test_the_training_images_of_a_soup_are_those_of_all_runs(trained, tmp_path):
    small = tmp_path / "small"
    shutil.copytree(trained["one"], small)
    [image, *_] = load_trained_images(small).images
    save_trained_images(small, PairTable.from_pairs("some", "en", "human", [("x.png", "", image)]))
    soup([trained["zero"], small], out=tmp_path / "out")
    found = load_trained_images(tmp_path / "out")
    assert found.image_ids == (*load_trained_images(trained["zero"]).image_ids, "x.png")


WRONG = {
    "alpha": (("interpolate", "{zero}", "--alpha", "1.5"), "alpha is 1.5"),
    "no number": (("interpolate", "{zero}", "--alpha", "half"), "--alpha half"),
    "no run": (("interpolate", "{zero}/no", "--alpha", "1"), "holds no finished checkpoint"),
    "nothing in the towers": (("interpolate", "{projection}", "--alpha", "1"), "changes nothing inside the towers"),
    "nothing before": (("interpolate", "{scratch}", "--alpha", "0.5"), "was trained from random weights"),
    "one run": (("soup", "{zero}"), "needs two runs or more"),
    "other length": (("soup", "{zero}", "{longer}"), "has optim.epochs = 2, not 1"),
    "other strategy": (("soup", "{zero}", "{lilt}"), "has strategy"),
    "other tower": (("soup", "{zero}", "{other tower}"), "has text.model"),
    "filled folder": (("soup", "{zero}", "{one}", "--out", "{zero}"), "is not empty"),
    "filled folder, interpolated": (("interpolate", "{zero}", "--alpha", "1", "--out", "{one}"), "is not empty"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_averaged_is_refused_in_one_line(case, run, trained):
    arguments, said = WRONG[case]
    code, out, error = run(*(argument.format(**trained) for argument in arguments))
    assert (code, out) == (2, "")
    assert said in error.splitlines()[-1]


def test_the_same_recipe_with_other_towers_is_refused(trained, tmp_path):
    shutil.copytree(trained["one"], tmp_path / "changed")
    towers = tmp_path / "changed" / checkpoint.TOWERS
    towers.write_text(towers.read_text().replace('"format": 1', '"format":  1'))
    with pytest.raises(UserError, match="different towers or image preprocessing"):
        soup([trained["zero"], tmp_path / "changed"])


def test_adapters_of_several_seeds_are_averaged_with_a_warning(trained, caplog):
    soup([trained["lilt"], trained["lilt"]])
    assert any("lilt inserts modules" in line for line in caplog.messages)


def test_a_language_without_a_dev_split_is_told(trained, caplog):
    assert set(interpolate(trained["zero"], [0.5], ["xx"])[0].dev) == {"en"}
    assert any(line.startswith("warning: not measured in xx") for line in caplog.messages)
