"""Suites on published files: Flickr30k-200 with a model trained without its photos, and all available files."""

from __future__ import annotations

import json
import zlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from polyalign.config import resolve as recipe
from polyalign.config.source_spec import SourceSpec
from polyalign.data import leakage
from polyalign.data.load import load_source
from polyalign.data.trained_images import load_trained_images
from polyalign.evaluation import suites as suite
from polyalign.evaluation.evaluate import evaluate_suite
from polyalign.experiments import run_folders as runs


@pytest.mark.slow
def test_flickr30k_200_in_swahili_is_measured_by_a_model_trained_without_its_photos(repo, real_data, tmp_path, caplog):
    """Without Swahili captions to train on, the model is trained on English, and Swahili is zero-shot.

    The photos are made small, since nearly all of the time is spent in the vision tower.
    """
    towers, photos = real_data / "towers", real_data / "data" / "flickr8k" / "images"
    captions = real_data / "data" / "benchmarks" / "flickr30k-200"
    benchmark = {"name": "flickr30k-200", "root": str(captions), "images": str(photos), "allow_missing": True}
    overrides = {
        "vision": {"weights": str(towers / "mobilenetv2_100" / "model.safetensors"), "image_px": 64},
        "text": {"model": str(towers / "mini-xlmr")},
        "source": {"name": "flickr8k", "root": str(real_data / "data" / "flickr8k"), "images": "all"},
        "data": {"budget": "1k-pairs", "leakage": "exclude", "keep_out": [benchmark]},
        "optim": {"epochs": 20},
        "train": {"evals": 4},
    }
    resolved = recipe.resolve(str(repo / "tests" / "real" / "flickr8k.toml"), "en", "projection", overrides)
    runs.train_into(tmp_path / "run", resolved, resume=False, overwrite=False)
    left_out = [line.partition(" are among ")[0] for line in caplog.messages if line.startswith("left out")]
    assert left_out[0] == "left out of dev: 36 of the 243 images of flickr30k-200-test (243 of 1,000 images)"
    assert left_out[1:]
    assert all(line.startswith("left out of training: ") for line in left_out[1:])
    trained = load_trained_images(tmp_path / "run")
    assert trained is not None
    assert not leakage.find_leaks(trained, load_source(SourceSpec.flat(benchmark), "sw", "test")).leaks
    asked = suite.load("translated-flickr").within(captions.parent, photos, allow_missing=True)
    only = asked.model_copy(update={"benchmarks": asked.benchmarks[:1]})
    found = evaluate_suite(tmp_path / "run", only, ["en", "sw"], allow_absent=False)
    assert found.results[0].gallery == "flickr30k-200-test (243 of 1,000 images)"
    assert [(one.lang, one.origin, one.images) for one in found.results] == [
        ("en", "human", 243),
        ("sw", "machine", 243),
    ]
    english, swahili = (one.mean_recall.value for one in found.results)
    chance = found.results[0].chance().mean()
    assert english > 5 * chance
    assert swahili > chance


class Blind:
    """An untrained model: every photo and caption has a random vector."""

    name = "blind"

    def encode_image(self, images):
        return _random(str(image.path) for image in images)

    def encode_text(self, captions, lang=None):
        return _random(captions)


def _random(names):
    rows = np.stack([np.random.default_rng(zlib.crc32(name.encode())).standard_normal(16) for name in names])
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def photos(real_data, tmp_path_factory):
    """Create placeholders for the photos of the benchmarks, under their names."""
    root, folder = real_data / "data" / "benchmarks", tmp_path_factory.mktemp("photos")
    names = set((root / "xtd10" / "XTD10" / "test_image_names.txt").read_text().split())
    for part in ("2017_mscoco", "2016_flickr"):
        lines = (root / "multi30k" / "image_splits" / f"test_{part}.txt").read_text().split()
        names |= {line.partition("#")[0] for line in lines}
    lines = (root / "xflickrco" / "de" / "test.jsonl").read_text().splitlines()
    names |= {json.loads(line)["img_path"] for line in lines}
    Image.new("RGB", (8, 8)).save(folder / "one.jpg")
    for name in names:
        (folder / name).hardlink_to(folder / "one.jpg")
    return folder


@pytest.mark.parametrize(
    ("name", "galleries"),
    [
        (
            "translated-coco",
            {
                ("xtd-1k-test", 1000): 11,
                ("xtd200-test", 1000): 12,
                ("xflickrco-coco-test", 1000): 5,
                ("xflickrco-coco-test", 999): 1,  # one German caption was published empty
                ("multi30k-task1-test_2017_mscoco", 461): 3,
            },
        ),
        (
            "translated-flickr",
            {
                ("flickr30k-200-test", 1000): 13,
                ("multi30k-task1-test_2016_flickr", 1000): 4,
                ("xflickrco-flickr-test", 1000): 5,
                ("xflickrco-flickr-test", 999): 1,  # and one Indonesian
            },
        ),
    ],
)
def test_a_suite_runs_over_every_published_file_at_hand(real_data, photos, name, galleries):
    asked = suite.load(name).within(real_data / "data" / "benchmarks", photos, allow_missing=False)
    found = suite.run(Blind(), suite.find(asked, suite.ALL))
    assert Counter((one.gallery, one.images) for one in found.results) == galleries
    everything = found.averages[-2]
    assert (everything.gallery, everything.over) == ("all galleries", "languages")
    assert everything.scores[6].low < found.results[0].chance().mean() * 1.2
    assert everything.scores[6].high - everything.scores[6].low < 0.004
    assert found.averages[-1].over == "low-resource languages"
    assert set(found.averages[-1].languages) < set(everything.languages)
