"""Students of published models: models of open_clip and transformers with random weights, as local folders."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import polyalign
from polyalign.config.tower import VisionSpec
from polyalign.evaluation import external_models
from polyalign.experiments.compare import Grid
from polyalign.experiments.run_folders import distillation
from polyalign.models import checkpoint
from polyalign.models.towers.vision_loading import build_vision
from polyalign.serving.export import run as exporting
from polyalign.training import train
from polyalign.utils.errors import UserError
from tests import tiny
from tests.unit.test_external_models import clip, dual, open_clip_folder, siglip, siglip2

MAKE = {"hf": clip, "open_clip": open_clip_folder}
WEIGHTS = {"hf": "model.safetensors", "open_clip": "open_clip_model.safetensors"}

pytestmark = pytest.mark.filterwarnings("ignore")


def teacher(folder: Path, family: str, seed: int = 1) -> str:
    """Make a model that gives different sentences different vectors, unlike one that was just initialised."""
    MAKE[family](folder)
    path, generator = folder / WEIGHTS[family], torch.Generator().manual_seed(seed)
    noise = {name: torch.randn(one.shape, generator=generator) for name, one in load_file(path).items()}
    noisy = {name: one + noise[name] * ("embed" in name and one.ndim == 2) for name, one in load_file(path).items()}
    save_file({**noisy, "logit_scale": torch.tensor(3.0)}, path, {"format": "pt"})
    return f"{family}:{folder}"


def sentences() -> list[str]:
    return [" ".join(words) for count in (1, 2) for words in itertools.product(tiny.COLORS, repeat=count)]


def backwards(text: str) -> str:
    return " ".join(text.split()[::-1])


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    tiny.write(folder / "tiny.toml", "lilt", optim={"epochs": 30})
    rows = ["en\tde", *(f"{text}\t{backwards(text)}" for text in sentences())]
    (folder / "text.tsv").write_text("\n".join(rows), encoding="utf-8")
    return folder


def student_of(model: str, inputs: Path, **changes):
    changes = {"parallel": {"text": str(inputs / "text.tsv")}, **changes}
    return distillation(model, "de", "full", changes, str(inputs / "tiny.toml"))


@pytest.fixture(scope="module", params=MAKE)
def taught(request, inputs, tmp_path_factory):
    model = teacher(tmp_path_factory.mktemp("teacher"), request.param)
    out = tmp_path_factory.mktemp("student") / "run"
    settings = {"recipe": inputs / "tiny.toml", "overrides": {"test.knowledge": True}}
    made = polyalign.distill(model, lang="de", parallel=inputs / "text.tsv", strategy="full", out=out, **settings)
    return model, out, made.record


def test_a_student_finds_what_its_teacher_says_and_learns_only_the_text_side(taught):
    """The German sentences are the English ones backwards."""
    model, out, run = taught
    said, found = external_models.load(model).encode_text(sentences()), polyalign.load(out)
    near = (found.encode_text(list(map(backwards, sentences()))) * said).sum(1).mean()
    best_constant = np.sqrt((said @ said.T).mean())
    assert 1 - near < (1 - best_constant) / 2
    losses = [one.loss for one in run.dev_evaluations]
    assert losses[-1] < losses[0] / 5
    aligner, recipe = checkpoint.load(out)
    assert all(name.startswith("text") for name in aligner.trainable())
    assert (recipe.teacher.run, recipe.vision.model, recipe.projection.dim) == (model, model, 16)
    assert recipe.teacher.weights == run.recipe["teacher"]["weights"]
    assert aligner.scale.item() == pytest.approx(np.exp(3))


def test_a_student_has_the_image_vectors_of_its_teacher(taught):
    model, out, _ = taught
    rng = np.random.default_rng(0)
    sizes = (67, 41, 3), (35, 32, 3), (9, 70, 3)
    odd = [Image.fromarray(rng.integers(256, size=size, dtype=np.uint8)) for size in sizes]
    peer, student = (polyalign.load(one) for one in (model, out))
    for images in (odd, tiny.table("test").images):
        np.testing.assert_allclose(student.encode_image(images), peer.encode_image(images), atol=1e-5)


def test_a_student_is_searched_with_and_evaluated(taught, run):
    _, out, _ = taught
    words = ("search", out, "red blue", "--images", tiny.data(), "--json")
    code, found, error = run(*words)
    assert code == 0, error
    assert ".png" in found
    assert run(*words)[1] == found  # with the text tower alone
    code, found, error = run("eval", out, "--json")
    assert code == 0, error
    assert [one["lang"] for one in json.loads(found)] == ["de"]


def test_formats_that_cannot_hold_a_student_name_the_one_that_can(taught, tmp_path):
    for target in ("open-clip", "transformers", "sentence-transformers", exporting.MERGED):
        with pytest.raises(UserError, match=r"cannot hold this full model: its vision tower .*; use --to onnx$"):
            exporting.export(taught[1], target, tmp_path / target)


@pytest.mark.repeated
def test_a_student_is_exported_as_onnx(taught, tmp_path):
    assert exporting.export(taught[1], "onnx", tmp_path / "onnx").image < 1e-4


def test_other_weights_than_those_of_the_teacher_are_refused(inputs, tmp_path):
    model = teacher(tmp_path, "hf")
    recipe = student_of(model, inputs, optim={"epochs": 1})
    train.train(recipe, tmp_path / "run", resume=False)
    path = tmp_path / WEIGHTS["hf"]
    tensors = load_file(path)
    changed = {name: one + 1 if name.startswith("text_projection") else one for name, one in tensors.items()}
    save_file(changed, path, {"format": "pt"})
    with pytest.raises(UserError, match=r"the weights of hf:.* are not those that the recipe was made from"):
        train.set_up(recipe)
    polyalign.load(tmp_path / "run")  # the vision side is still the same
    changed = {name: one + 1 if name.startswith("visual_projection") else one for name, one in tensors.items()}
    save_file(changed, path, {"format": "pt"})
    with pytest.raises(UserError, match="the vision tower's weights are not those this checkpoint was trained on"):
        polyalign.load(tmp_path / "run")


@pytest.mark.parametrize("make", [siglip, dual])
def test_the_image_side_of_other_families_is_the_models_own(make, tmp_path):
    make(tmp_path)
    tower = build_vision(VisionSpec(model=f"hf:{tmp_path}"))
    images = [image.open() for image in tiny.table("test").images[:3]]
    with torch.no_grad():
        found = torch.nn.functional.normalize(tower(torch.stack([tower.transform(image) for image in images])), dim=-1)
    whole, processor = (kind.from_pretrained(tmp_path) for kind in _transformers())
    with torch.no_grad():
        own = whole.eval().get_image_features(**processor(images=images, return_tensors="pt")).pooler_output
    np.testing.assert_allclose(found, torch.nn.functional.normalize(own, dim=-1), atol=1e-5)
    assert not [name for name, _ in tower.named_parameters() if "text" in name]


def _transformers():
    from transformers import AutoImageProcessor, AutoModel

    return AutoModel, AutoImageProcessor


def test_what_cannot_teach_says_why(inputs, tmp_path, monkeypatch):
    siglip2(tmp_path)
    with pytest.raises(UserError, match="prepares images in a way that a vision tower cannot"):
        train.set_up(student_of(f"hf:{tmp_path}", inputs))
    with pytest.raises(UserError, match="which does not embed both images and captions"):
        student_of(f"hf:{tiny.text()}", inputs)
    two = external_models.ExternalModel("mclip:x", images=len, captions=len)
    monkeypatch.setitem(external_models._LOADERS, "mclip", lambda name: two)
    with pytest.raises(UserError, match=r"mclip:x cannot teach: .* name the model of its images"):
        student_of("mclip:x", inputs)
    with pytest.raises(UserError, match=r"vision\.image_px: .* leave it out"):
        build_vision(VisionSpec(model=f"hf:{tmp_path}", image_px=64))


def test_the_recipe_of_a_student_is_that_of_its_text_tower(taught, inputs, tmp_path):
    model, text = taught[0], {"parallel": {"text": str(inputs / "text.tsv")}}
    usual = distillation(model, "de", "lora", text)
    assert (usual.text.model, usual.optim.loss) == ("FacebookAI/xlm-roberta-base", "mse")
    assert (usual.parallel.pivot, usual.strategy["towers"]) == ("en", "text")
    axes = ((str(inputs / "tiny.toml"),), ("de",), (), ("lora",))
    grid = Grid(*axes, 1, text, tmp_path, tmp_path, model)
    job = grid.job(grid.cells()[0], 0)
    assert (job.recipe.teacher, job.recipe.text.model) == (usual.teacher, str(tiny.text()))


def test_bad_settings_of_a_student_are_one_line(inputs, tmp_path):
    model = teacher(tmp_path, "hf")
    with pytest.raises(UserError, match="the vision side is that of hf:"):
        student_of(model, inputs, projection={"dim": 8})
    with pytest.raises(UserError, match=r"parallel\.pivot: text.tsv has no sentences in es: it has en, de"):
        train.set_up(student_of(model, inputs, parallel={"text": str(inputs / "text.tsv"), "pivot": "es"}))
    with pytest.raises(UserError, match="distillation needs parallel sentences"):
        distillation(model, "de", "full", {}, str(inputs / "tiny.toml"))
    with pytest.raises(UserError, match="leave out --recipe"):
        distillation("runs/some", "de", "full", {}, "starter")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("open_clip:ViT-B-33/x", "did you mean"),
        ("hf:no/such", "cannot be loaded"),
        ("hf:", "name is missing"),
        ("nowhere", "no finished checkpoint"),
    ],
)
def test_a_wrong_name_is_one_line_and_exit_code_2(name, message, run):
    code, _, error = run("distill", "--teacher", name, "--lang", "de", "--parallel", "captions")
    assert code == 2
    assert message in error
    assert "\n" not in error.strip()
