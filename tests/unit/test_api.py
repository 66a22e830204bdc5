"""What ``import polyalign`` offers: the functions of the main commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import polyalign
from polyalign import api
from polyalign.evaluation.results import Run
from polyalign.training import train as training
from tests import tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> polyalign.TrainedRun:
    folder = tmp_path_factory.mktemp("api")
    recipe = tiny.write(folder / "tiny.toml", "projection")
    return polyalign.train(
        recipe, lang="en", strategy="lilt", out=folder / "run", overrides={"optim.lr": 2e-3, "train": {"seed": 3}}
    )


@pytest.fixture(scope="module")
def model(trained) -> polyalign.Model:
    return polyalign.load(trained.folder)


def test_train_returns_the_record_that_is_saved_with_all_overrides(trained):
    assert trained.record == Run.load_json(trained.folder / training.RESULT)
    assert (trained.record.strategy, trained.record.seed) == ("lilt", 3)
    assert trained.record.recipe["optim"]["lr"] == 2e-3
    assert trained.mean_recall == trained.record.test[0].mean_recall.value


def test_vectors_are_float32_of_unit_length_and_are_those_of_the_evaluation(model):
    table = tiny.table("test")
    images = model.encode_image([image.path for image in table.images])
    captions = model.encode_text(table.captions)
    assert (images.dtype, captions.dtype) == (np.float32, np.float32)
    assert (images.shape, captions.shape) == ((24, 16), (48, 16))
    for vectors in (images, captions):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(images, model.encoder.encode_image(table.images), atol=1e-5)
    np.testing.assert_allclose(captions, model.encoder.encode_text(table.captions), atol=1e-5)
    likeness = model.similarity(images, captions)
    assert likeness.shape == (24, 48)
    paths = [image.path for image in table.images]
    np.testing.assert_allclose(model.similarity(paths, iter(table.captions)), likeness, atol=1e-5)


def test_a_path_a_picture_and_an_array_are_the_same_image(model):
    path = tiny.table("test").images[0].path
    picture = Image.open(path).convert("RGB")
    vectors = model.encode_image([str(path), path, picture, np.asarray(picture)])
    np.testing.assert_allclose(vectors, vectors[:1].repeat(4, 0), atol=1e-6)
    grey = np.full((40, 30), 200, np.uint8)
    np.testing.assert_allclose(*model.encode_image([grey, np.stack([grey] * 3, -1)]), atol=1e-6)


def test_nothing_gives_no_rows(model):
    assert model.encode_image([]).shape == (0, 16)
    assert model.encode_text([]).shape == (0, 16)


NO_IMAGES = [
    "no/such.jpg",
    __file__,
    np.zeros((4, 4, 3)),
    np.zeros((4, 4, 2), np.uint8),
    np.zeros((0, 0, 3), np.uint8),
    7,
]


@pytest.mark.parametrize("image", NO_IMAGES)
def test_what_is_no_image_is_a_user_error(model, image):
    with pytest.raises(polyalign.UserError, match=r"image") as caught:
        model.encode_image([image])
    assert caught.tb is not None  # the frames are alive, and yet gradients are on again
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_one_string_is_not_taken_for_a_list(model):
    with pytest.raises(polyalign.UserError, match="a list of sentences"):
        model.encode_text("red")
    with pytest.raises(polyalign.UserError, match="a list of images"):
        model.encode_image("a.jpg")
    with pytest.raises(polyalign.UserError, match="a list of images"):
        model.encode_image(np.zeros((40, 40, 3), np.uint8))
    for wrong in (None, [1, 2]):
        with pytest.raises(polyalign.UserError, match="a list of sentences"):
            model.encode_text(wrong)
    with pytest.raises(polyalign.UserError, match=r'langs must be a list: write langs=\["en"\]'):
        polyalign.evaluate(model, langs="en")
    with pytest.raises(polyalign.UserError, match="load takes the folder of a run"):
        polyalign.load(None)


def test_evaluate_takes_a_model_a_folder_or_pairs(trained, model):
    own = trained.record.test[0]
    assert polyalign.evaluate(model) == [own]
    assert polyalign.evaluate(trained) == [own]
    assert polyalign.evaluate(trained.folder, langs=["en"]) == [own]
    assert polyalign.evaluate(model, tiny.table("test")) == [own]
    [other] = polyalign.evaluate(model, "starter", langs=["sw"], overrides={"source.test_images": 5})
    assert (other.gallery, other.lang, other.images) == ("starter-test", "sw", 5)


def test_a_task_of_the_working_folder_is_found_with_its_settings(model, tmp_path, monkeypatch, caplog):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "count.py").write_text(
        "from pydantic import BaseModel, ConfigDict\n"
        "class Config(BaseModel):\n"
        "    model_config = ConfigDict(extra='forbid')\n"
        "    times: int = 1\n"
        "def score(encoder, gallery, config):\n"
        "    return config.times * len(encoder.encode_image(gallery.images))\n"
    )
    monkeypatch.chdir(tmp_path)
    assert polyalign.evaluate(model, task="count", options={"times": 2}) == [48]
    assert any("running code from the working folder" in line for line in caplog.messages)
    with pytest.raises(polyalign.UserError, match=r'task count: tim: .*did you mean "times"'):
        polyalign.evaluate(model, task="count", options={"tim": 2})


def test_importing_it_imports_nothing_heavy():
    code = (
        "import sys, polyalign; assert not {'torch', 'pandas', 'numpy', 'pydantic'} & set(sys.modules); dir(polyalign)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(polyalign.__file__).parents[1])


def test_every_public_name_is_there_and_documented():
    for name in polyalign.__all__:
        assert getattr(polyalign, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        polyalign.lode  # noqa: B018


def test_pairs_that_were_trained_on_are_named_too(model, caplog):
    polyalign.evaluate(model, tiny.table("train"))
    assert any("trained on images of this gallery: 64 of the 64" in line for line in caplog.messages)


def test_the_metrics_can_be_sent_to_a_tracker(trained, tmp_path, monkeypatch):
    seen = []

    def train_into(folder: Path, recipe: object, **options: object) -> Run:
        seen.append(options["track"])
        return trained.record

    monkeypatch.setattr(api, "train_into", train_into)
    polyalign.train("starter", lang="sw", out=tmp_path, track="tensorboard")
    polyalign.distill(trained, lang="sw", parallel="captions", out=tmp_path, track="wandb")
    assert seen == ["tensorboard", "wandb"]
