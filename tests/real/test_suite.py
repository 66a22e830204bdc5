"""Flickr30k-200 end to end on the photos at hand, with a model that was trained without them."""

from __future__ import annotations

import pytest

from polyalign import recipe, runs, suite
from tests import tiny


@pytest.mark.slow
def test_flickr30k_200_in_swahili_is_measured_with_a_model_trained_without_its_photos(repo, real_data, tmp_path):
    """There are no Swahili captions to train on: it is trained on English, and Swahili is zero-shot."""
    towers, photos = real_data / "towers", real_data / "data" / "flickr8k" / "images"
    captions = real_data / "data" / "benchmarks" / "flickr30k-200"
    benchmark = {"name": "flickr30k-200", "root": str(captions), "images": str(photos), "allow_missing": True}
    overrides = {
        "vision": {"weights": str(towers / "mobilenetv2_100" / "model.safetensors")},
        "text": {"model": str(towers / "mini-xlmr")},
        "source": {"name": "flickr8k", "root": str(real_data / "data" / "flickr8k"), "images": "all"},
        "data": {"budget": "1k-pairs", "leakage": "exclude", "keep_out": [benchmark]},
        "optim": {"epochs": 20},
        "train": {"evals": 4},
    }
    said: list[str] = []
    resolved = recipe.resolve(str(repo / "tests" / "real" / "flickr8k.toml"), "en", "projection", overrides)
    runs.train_into(tmp_path / "run", resolved, resume=False, overwrite=False, say=said.append)
    assert [line.partition(" are among ")[0] for line in said if line.startswith("left out")] == [
        "left out of training: 173 of the 243 test images of flickr30k-200-test",
        "left out of dev: 36 of the 243 test images of flickr30k-200-test",
    ]
    asked = suite.load("translated-flickr").within(captions.parent, photos, allow_missing=True)
    only = asked.model_copy(update={"benchmarks": asked.benchmarks[:1]})
    found = runs.evaluate_suite(tmp_path / "run", only, ["en", "sw"], tiny.quiet, allow_absent=False)
    assert [(one.lang, one.origin, one.images) for one in found.results] == [
        ("en", "human", 243),
        ("sw", "machine", 243),
    ]
    english, swahili = (one.mean_recall.value for one in found.results)
    chance = found.results[0].chance().mean()
    assert english > 5 * chance
    assert swahili > chance
