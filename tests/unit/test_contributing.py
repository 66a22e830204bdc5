"""Run the examples of CONTRIBUTING.md and README.md."""

from __future__ import annotations

import re
import sys
import tomllib
from types import SimpleNamespace

import numpy as np
import pytest
import tomli_w
from PIL import Image

from polyalign.config import language as lang
from polyalign.config import plugins
from polyalign.config import resolve as recipe
from polyalign.config.tower import TextSpec, VisionSpec
from polyalign.data.pairs import PairTable
from polyalign.models.aligner import Aligner
from polyalign.models.towers.text_loading import build_text
from polyalign.models.towers.vision_loading import build_vision
from polyalign.utils.errors import UserError
from tests.unit.test_compare import Here

FENCE = re.compile(r"^```(python|toml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TEXT = {"model_type": "bert", "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 2}


@pytest.fixture(scope="session")
def examples(repo):
    """The examples that begin with their file path, by that path."""
    blocks = [block for _, block in FENCE.findall((repo / "CONTRIBUTING.md").read_text(encoding="utf-8"))]
    found = {block.partition("\n")[0].removeprefix("# "): block for block in blocks}
    assert len(found) == 5
    return found


@pytest.fixture
def module(examples, tmp_path, monkeypatch):
    """Write an example to its path in the working folder, and load it by name."""
    monkeypatch.chdir(tmp_path)

    def load(path):
        file = tmp_path / path
        file.parent.mkdir()
        file.write_text(examples[path], encoding="utf-8")
        sys.modules.pop(f"polyalign_own.{file.parent.name}.{file.stem}", None)
        return plugins.load_plugin(file.parent.name, file.stem)

    return load


def test_the_language_loads_from_the_folder_worked_in(examples, tmp_path, monkeypatch):
    (tmp_path / "langs").mkdir()
    (tmp_path / "langs" / "ts.toml").write_text(examples["langs/ts.toml"], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert lang.load_language("ts").recipe == {"text": {"max_tokens": 80}}


def test_the_language_in_the_readme_loads(repo, tmp_path, monkeypatch):
    (block,) = [
        block for kind, block in FENCE.findall((repo / "README.md").read_text(encoding="utf-8")) if kind == "toml"
    ]
    (tmp_path / "langs").mkdir()
    (tmp_path / "langs" / "ts.toml").write_text(block, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert lang.load_language("ts").english_name == "Tsonga"


def test_the_strategy_trains_attention_and_nothing_else_of_the_towers(module):
    strategy = module("strategies/attention.py")
    vision = build_vision(VisionSpec(model="vit_tiny_patch16_224", args=VISION), pretrained=False)
    text = build_text(TextSpec(model="bert", architecture=TEXT), pretrained=False)
    aligner = Aligner(vision, text, dim=8)
    strategy.apply(aligner, strategy.Config(towers="both"))
    towers = {name for name in aligner.trainable() if name.startswith(("vision.", "text."))}
    assert {name for name, _ in aligner.named_parameters() if ".attn." in name or ".attention." in name} == towers
    assert any(name.startswith("vision.") for name in towers)
    assert any(name.startswith("text.") for name in towers)


def test_the_source_reads_captions_off_file_names(module, tmp_path):
    source = module("sources/named.py")
    (tmp_path / "train").mkdir()
    for name in ("red-fish", "two-birds"):
        Image.new("RGB", (4, 4)).save(tmp_path / "train" / f"{name}.jpg")
    table = source.load(source.Config(root=tmp_path), lang.load_language("en"), "train")
    assert table.captions == ("red fish", "two birds")
    assert table.images[1].open().size == (4, 4)
    with pytest.raises(UserError, match=r"no \*\.jpg in .*test"):
        source.load(source.Config(root=tmp_path), lang.load_language("en"), "test")


def test_the_task_is_the_mean_over_all_pairs(module):
    task = module("tasks/spread.py")
    rng = np.random.default_rng(0)
    images, captions = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in rng.normal(size=(2, 5, 3)))
    encoder = SimpleNamespace(encode_image=lambda _: images, encode_text=lambda *_: captions)
    table = PairTable("five", "en", "human", tuple("abcde"), (None,) * 5, tuple("abcde"), np.arange(5))
    result = task.score(encoder, table, task.Config())
    off_diagonal = ~np.eye(5, dtype=bool)
    assert result.images == pytest.approx((images @ images.T)[off_diagonal].mean())
    assert result.captions == pytest.approx((captions @ captions.T)[off_diagonal].mean())


@pytest.mark.slow
def test_the_python_lines_of_the_readme_run(repo, tmp_path, monkeypatch):
    """Unchanged except for fewer pairs; in a smaller world, for fewer steps, and with all runs in this process."""
    page = (repo / "README.md").read_text(encoding="utf-8")
    (block,) = [block for kind, block in FENCE.findall(page) if kind == "python"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POLYALIGN_CACHE", str(tmp_path / "cache"))
    raw = tomllib.loads((repo / "recipes" / "starter.toml").read_text(encoding="utf-8"))
    raw["source"] |= {"train_images": 100, "dev_images": 50, "test_images": 50}
    raw["optim"] |= {"epochs": 1, "min_steps": 4, "warmup_steps": 1}
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "starter.toml").write_text(tomli_w.dumps(raw | {"transfer": ["en"]}), encoding="utf-8")
    monkeypatch.setattr("polyalign.api.Pool", lambda *_: Here())
    brief = block.replace('"1k-pairs"', '"100-pairs"')
    assert brief != block
    found = {}
    exec(compile(brief, "README.md", "exec"), found)
    assert found["vectors"].shape == (2, 128)
    assert found["result"].lang == "sw"
    assert sorted(found["table"]["strategy"]) == ["lilt", "projection"]


def test_the_recipe_resolves(examples, tmp_path):
    file = tmp_path / "bert-dinov2.toml"
    file.write_text(examples["recipes/bert-dinov2.toml"], encoding="utf-8")
    resolved = recipe.resolve(str(file), "en")
    assert (resolved.name, resolved.text.architecture["vocab_size"]) == ("bert-dinov2", 30522)
    vision = build_vision(resolved.vision, pretrained=False)
    assert (vision.width, vision.preprocessing.image_px) == (768, 224)
