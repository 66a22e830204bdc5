"""Every shipped recipe resolves and builds without network, and trains the published share of parameters."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES

from polyalign.config import plugins, shipped
from polyalign.config import resolve as recipe
from polyalign.config.language import load_language
from polyalign.config.tower import STARTER
from polyalign.models import parameter_count as strategy_table
from polyalign.models.build import build_aligner

RECIPES = shipped.shipped_names("recipes")
STRATEGIES = plugins.plugin_names("strategies")
PAPER = ("lilt-bert", "lilt-mbert", "xlmr-deit")
# Trainable parameters in percent: DeiT-B/16 at 256 px with BERT-base, multilingual BERT and XLM-R-base.
PUBLISHED = {
    "full": ("100.00", "100.00", "100.00"),
    "lit": ("56.01", "67.42", "76.40"),
    "projection": ("0.20", "0.15", "0.11"),
    "layernorm": ("0.24", "0.18", "0.13"),
    "bitfit": ("0.31", "0.23", "0.16"),
    "lilt": ("7.01", "5.28", "3.88"),
    "lilt-deep": ("7.00", "5.27", "3.88"),
}


@cache
def counted(name: str) -> list[strategy_table.Row]:
    return strategy_table.count(name, "en", {})


def test_the_shipped_recipes_are_found():
    assert {"starter", *PAPER, "xlmr-dinov2", "labse-dinov2"} <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_names_its_languages_and_says_what_it_is(name):
    codes = recipe.recipe_languages(name)
    resolved = recipe.resolve(name, codes[0], "projection")
    assert resolved.description.endswith(".")
    assert set(codes) <= set(shipped.shipped_names("langs"))


@pytest.mark.parametrize("name", ["nllb-siglip", "nllb-dinov2"])
def test_nllb_has_a_token_for_every_language_of_its_recipes_and_the_licence_is_stated(name):
    codes = recipe.recipe_languages(name)
    assert {"sw", "qu", "gn", "mi"} <= set(codes)
    assert {load_language(code).flores for code in codes} <= set(FAIRSEQ_LANGUAGE_CODES)
    assert "non-commercial" in recipe.resolve(name, "sw", "lilt").description


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_shipped_recipe_resolves_for_every_language_of_its_own_and_comes_back_from_its_file(name, strategy, tmp_path):
    for code in recipe.recipe_languages(name):
        resolved = recipe.resolve(name, code, strategy)
        assert (resolved.name, resolved.lang, resolved.strategy["name"]) == (name, code, strategy)
        path = tmp_path / "recipe.toml"
        path.write_text(resolved.to_toml(), encoding="utf-8")
        assert recipe.read_recipe(path) == resolved


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_carries_every_strategy(name):
    if name == "starter" and not (STARTER / "text" / "config.json").is_file():
        pytest.skip("the starter towers are not there")
    rows = counted(name)
    assert sorted(row.strategy for row in rows) == STRATEGIES
    assert [row.problem for row in rows] == [None] * len(rows)
    assert all(0 < row.trainable <= row.total for row in rows)


@pytest.mark.parametrize(("name", "column"), [(name, column) for column, name in enumerate(PAPER)])
def test_trainable_shares_are_the_published_ones(name, column):
    rows = {row.strategy: row for row in counted(name)}
    shares = {key: f"{100 * rows[key].trainable / rows[key].total:.2f}" for key in PUBLISHED}
    assert shares == {key: columns[column] for key, columns in PUBLISHED.items()}


def test_parameters_of_the_papers_towers_add_up_by_hand():
    with torch.device("meta"):
        aligner = build_aligner(recipe.resolve("lilt-bert", "en", "projection"), pretrained=False)
    width, layers = 768, 12
    linear = width * width + width
    norm = 2 * width
    block = 4 * linear + 2 * norm + (width * 4 * width + 4 * width) + (4 * width * width + width)
    patches = (256 // 16) ** 2
    vision = (3 * 16 * 16 * width + width) + width + (patches + 1) * width + layers * block + norm
    text = (30522 + 512 + 2) * width + norm + layers * block
    projections = 2 * (width * 256 + 256)
    assert sum(p.numel() for p in aligner.vision.parameters()) == vision
    assert sum(p.numel() for p in aligner.text.parameters()) == text
    assert aligner.count() == (projections + 1, vision + text + projections + 1)
    assert aligner.cuts() == (layers + 2, layers + 2)


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_settings(name):
    resolved = recipe.resolve(name, "en", "lilt")
    optim = resolved.optim
    assert (optim.lr, optim.lr * optim.min_lr_ratio, optim.weight_decay) == (1e-4, pytest.approx(1e-5), 0.02)
    assert (optim.epochs, optim.warmup_steps, optim.batch_size) == (15, 1000, 4 * 128)
    assert resolved.projection.dim == 256
    assert resolved.vision.args == {"img_size": 256}
    assert resolved.strategy["reduction"] == 4
