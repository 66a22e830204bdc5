from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from polyalign.config import resolve as recipe
from polyalign.config.tower import TextSpec, VisionSpec
from polyalign.utils.errors import UserError
from tests import tiny

TOWERS = {"vision": {"model": "vit_tiny_patch16_224"}, "text": {"model": "bert"}, "source": {"name": "starter"}}


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Change to a folder with an empty ``./recipes``, and return a function that writes a recipe there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()

    def write(name: str, **raw: object) -> None:
        path = tmp_path / "recipes" / f"{name}.toml"
        path.write_text(tomli_w.dumps(raw), encoding="utf-8")

    return write


def complaint(*args: object, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        recipe.resolve(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Layers


def test_later_layers_win_one_by_one(own, monkeypatch):
    own("base", **TOWERS, optim={"lr": 1.0, "epochs": 1, "batch_size": 11, "grad_clip": 5.0, "warmup_steps": 6})
    own("mine", extends="base", optim={"epochs": 2}, strategies={"lilt": {"optim": {"batch_size": 22}}})
    lang = recipe.load_language("sw").model_copy(update={"recipe": {"optim": {"grad_clip": 2.0, "warmup_steps": 7}}})
    monkeypatch.setattr(recipe, "load_language", lambda code: lang)
    optim = recipe.resolve("mine", "sw", "lilt", {"optim": {"warmup_steps": 8}}).optim
    assert (optim.lr, optim.epochs, optim.batch_size, optim.grad_clip, optim.warmup_steps) == (1.0, 2, 22, 2.0, 8)
    assert recipe.resolve("mine", "sw", "bitfit").optim.batch_size == 11


def test_the_users_own_recipe_wins_over_the_shipped_one(own):
    shipped = recipe.resolve("starter", "sw", "lilt")
    own("starter", **TOWERS, description="mine")
    assert recipe.resolve("starter", "sw", "lilt").description == "mine" != shipped.description


def test_a_recipe_is_found_by_path_too(tmp_path):
    path = tmp_path / "odd.toml"
    path.write_text(tomli_w.dumps({**TOWERS, "strategy": {"name": "lora"}}), encoding="utf-8")
    found = recipe.resolve(str(path), "de")
    assert (found.name, found.lang, found.strategy["name"]) == ("odd", "de", "lora")


def test_a_language_file_of_the_users_own_overrides_the_recipe(own):
    Path("langs").mkdir()
    facts = {"code": "sw", "name": "x", "english_name": "x", "script": "Latn", "low_resource": True}
    Path("langs/sw.toml").write_text(tomli_w.dumps({**facts, "recipe": {"text": {"max_tokens": 99}}}), encoding="utf-8")
    own("mine", **TOWERS)
    assert recipe.resolve("mine", "sw", "lilt").text.max_tokens == 99
    assert recipe.resolve("mine", "sw", "lilt", {"text": {"max_tokens": 9}}).text.max_tokens == 9
    assert recipe.resolve("mine", "de", "lilt").text.max_tokens == 64


def test_extending_is_one_step(own):
    own("a", **TOWERS)
    own("b", extends="a", optim={"epochs": 3})
    own("c", extends="b")
    assert recipe.resolve("b", "sw", "lilt").optim.epochs == 3
    assert "recipe c extends b, which extends another: only one step is allowed" in complaint("c", "sw", "lilt")


def test_another_strategy_than_the_recipes_takes_none_of_its_options(own):
    own("mine", **TOWERS, strategy={"name": "lilt", "reduction": 16})
    assert recipe.resolve("mine", "sw").strategy["reduction"] == 16
    assert recipe.resolve("mine", "sw", "lilt").strategy["reduction"] == 16
    lora = recipe.resolve("mine", "sw", "lora").strategy
    assert "reduction" not in lora
    assert lora["rank"] == 8


def test_another_source_than_the_recipes_takes_none_of_its_options(own, tmp_path):
    own("mine", **TOWERS | {"source": {"name": "starter", "seed": 5}})
    folder = recipe.resolve("mine", "sw", "lilt", recipe.gather_overrides([], data=str(tmp_path))).source
    assert folder["name"] == "folder"
    assert "seed" not in folder


def test_a_resolved_recipe_comes_back_from_its_file(tmp_path):
    resolved = tiny.resolved(
        "lilt", strategy={"reduction": 2}, data={"budget": "50-pairs"}, optim={"betas": [0.8, 0.9]}
    )
    path = tmp_path / "recipe.toml"
    path.write_text(resolved.to_toml(), encoding="utf-8")
    assert recipe.read_recipe(path) == resolved
    assert recipe.read_recipe(path).to_toml() == resolved.to_toml()


def test_the_languages_of_a_recipe_are_for_commands_that_are_given_none(own):
    own("mine", languages=["sw", "de"], **TOWERS)
    own("none", **TOWERS)
    own("text", **TOWERS, languages="sw", transfer="sw")
    assert recipe.recipe_languages("mine") == ["sw", "de"]
    with pytest.raises(UserError, match="recipe none has no list of languages: give them with --lang"):
        recipe.recipe_languages("none")
    with pytest.raises(UserError, match='recipe text: "languages" must be a list of language codes'):
        recipe.recipe_languages("text")
    with pytest.raises(UserError, match='recipe text: "transfer" must be a list of language codes'):
        recipe.transfer_languages("text", "de")


# Invalid settings


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"optim": {"lrr": 1}}, 'recipe starter: optim.lrr: Extra inputs are not permitted; did you mean "lr"?'),
        ({"optm": {"lr": 1}}, 'did you mean "optim"?'),
        ({"vision": {"modle": "x"}}, 'did you mean "model"?'),
        ({"strategy": {"reducton": 2}}, 'strategy.reducton: Extra inputs are not permitted; did you mean "reduction"?'),
        ({"source": {"sed": 2}}, 'source.sed: Extra inputs are not permitted; did you mean "seed"?'),
        ({"optim": {"lr": -1}}, "optim.lr: Input should be greater than 0"),
        ({"optim": {"batch_size": 1}}, "optim.batch_size: Input should be greater than 1"),
        ({"optim": {"lr": "fast"}}, "optim.lr: Input should be a valid number"),
        ({"strategy": {"reduction": 0}}, "strategy.reduction: Input should be greater than 0"),
        ({"strategy": {"layers": "first:2"}}, "strategy.layers: String should match pattern"),
        ({"strategy": {"towers": "none"}}, "strategy.towers: Input should be 'both', 'vision' or 'text'"),
        ({"text": {"pooling": "avg"}}, "text.pooling: Input should be 'cls', 'mean', 'max', 'last' or 'pooler'"),
        ({"optim": 3}, "optim: Input should be a valid dictionary"),
        ({"source": {"name": "startr"}}, 'unknown source "startr": did you mean "starter"?'),
        ({"strategy": {"name": "lillt"}}, 'unknown strategy "lillt": did you mean "lilt"?'),
        ({"strategy": "bitfit"}, """--set: "strategy" must be a section with keys, not 'bitfit'"""),
        ({"source": "folder"}, "source: Input should be a valid dictionary"),
        ({"source": {"name": 3}}, 'unknown source "3"'),
        ({"strategy": {"name": 3}}, 'unknown strategy "3"'),
    ],
)
def test_what_is_wrong_is_said_in_one_line_that_says_where(overrides, said):
    assert said in complaint("starter", "sw", None, overrides)


def test_the_name_of_a_file_in_the_working_folder_says_how_to_name_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text('extends = "starter"\n')
    assert 'unknown recipe "mine": for the file in this folder, write mine.toml' in complaint("mine", "sw", "lilt")
    assert recipe.resolve("mine.toml", "sw", "lilt").name == "mine"


def test_unknown_names_say_did_you_mean():
    assert 'unknown recipe "startr": did you mean "starter"?' in complaint("startr", "sw", "lilt")
    assert 'unknown language "swx": did you mean "sw"?' in complaint("starter", "swx", "lilt")
    assert 'unknown strategy "lit-deep": did you mean "lilt-deep"?' in complaint("starter", "sw", "lit-deep")


def test_no_strategy_at_all_says_how_to_give_one(own):
    own("mine", **TOWERS)
    assert "--strategy" in complaint("mine", "sw")


@pytest.mark.parametrize(
    "raw", [{"strategy": "lilt"}, {"strategies": "lilt"}, {"strategies": {"lilt": 3}}, {"vision": 3}]
)
def test_a_section_that_is_no_table_is_an_error(raw, own):
    own("mine", **TOWERS | raw)
    assert next(iter(raw)) in complaint("mine", "sw", "lilt")


def test_a_recipe_that_is_not_there_or_not_toml(tmp_path):
    assert "cannot read" in complaint(str(tmp_path / "gone.toml"), "sw", "lilt")
    (tmp_path / "bad.toml").write_text("optim = [", encoding="utf-8")
    assert "cannot read" in complaint(str(tmp_path / "bad.toml"), "sw", "lilt")


# --set


def test_values_are_toml_and_else_text():
    items = [
        "optim.lr=3e-4", "train.seed = 7", "cache.prefix=false", "text.model=google-bert/bert-base-uncased",
        'vision.pooling="cls"', "vision.args={img_size = 64}", "test.languages=['de', 'hi']", "data.budget=1k-pairs",
        "name=", "source.root=/a b/c=d", "text.model=no",
    ]  # fmt: skip
    assert recipe.parse_set(items) == {
        "optim": {"lr": 3e-4},
        "train": {"seed": 7},
        "cache": {"prefix": False},
        "text": {"model": "no"},
        "vision": {"pooling": "cls", "args": {"img_size": 64}},
        "test": {"languages": ["de", "hi"]},
        "data": {"budget": "1k-pairs"},
        "name": "",
        "source": {"root": "/a b/c=d"},
    }


keys = st.lists(st.from_regex(r"[a-z_]{1,6}", fullmatch=True), min_size=1, max_size=3).map(".".join)
finite = st.floats(allow_nan=False, allow_infinity=False)
values = st.one_of(
    st.booleans(), st.integers(-(2**63), 2**63 - 1), finite, st.text(st.characters(exclude_characters="\0"))
)


@given(key=keys, value=values)
def test_a_value_written_as_toml_comes_back(key, value):
    *path, leaf = key.split(".")
    literal = tomli_w.dumps({"value": value}).removeprefix("value = ").removesuffix("\n")
    found = recipe.parse_set([f"{key}={literal}"])
    for part in path:
        found = found[part]
    assert found == {leaf: value}


@given(key=keys, value=st.text())
def test_any_text_gives_one_value_or_a_user_error(key, value):
    try:
        found = recipe.parse_set([f"{key}={value}"])
    except UserError:
        return
    for part in key.split("."):
        assert len(found) == 1
        found = found[part]
    try:
        expected = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        expected = {"value": value.strip()}
    assert found == expected["value"] or len(expected) > 1


def test_a_value_cannot_smuggle_in_another_key():
    assert recipe.parse_set(["optim.lr=1\ndata = 2"]) == {"optim": {"lr": "1\ndata = 2"}}


@pytest.mark.parametrize("item", ["optim.lr", "=3", "", " =", "optim..lr=1", ".lr=1", "optim.=1"])
def test_what_is_no_setting_is_an_error_with_an_example(item):
    with pytest.raises(UserError, match=r"--set takes key=value, as in --set optim\.lr=3e-4"):
        recipe.parse_set([item])


def test_the_later_of_two_settings_wins_also_where_it_is_a_table():
    assert recipe.parse_set(["a.b=1", "a.c=2", "a.b=3"]) == {"a": {"b": 3, "c": 2}}
    assert recipe.parse_set(["a=1", "a.c=2"]) == {"a": {"c": 2}}
    assert recipe.parse_set(["a.c=2", "a=1"]) == {"a": 1}


tables = st.recursive(st.integers(), lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=3))
nested = st.dictionaries(st.sampled_from("abcd"), tables, max_size=3)


@given(under=nested, over=nested)
def test_merging_keeps_what_is_not_overridden_and_changes_neither_table(under, over):
    kept = str(under), str(over)
    merged = recipe.merge(under, over)
    assert merged.keys() == under.keys() | over.keys()
    for key in merged:
        if key not in over:
            assert merged[key] == under[key]
        elif not (isinstance(over[key], dict) and isinstance(under.get(key), dict)):
            assert merged[key] == over[key]
    assert (str(under), str(over)) == kept


# Options of the command line


def test_options_become_keys_and_set_wins_over_them(tmp_path):
    found = recipe.gather_overrides(
        ["train.seed=9", "source.images=pictures"], budget="1k-pairs", towers="text", data=str(tmp_path), seed=3
    )
    assert found == {
        "data": {"budget": "1k-pairs"},
        "train": {"seed": 9},
        "strategy": {"towers": "text"},
        "source": {"name": "folder", "root": str(tmp_path), "images": "pictures"},
    }
    assert recipe.gather_overrides([]) == {}
    assert recipe.gather_overrides([], seed=0) == {"train": {"seed": 0}}


def test_data_of_ones_own_is_used_whole_unless_a_budget_is_given(tmp_path):
    def budget(**options):
        return recipe.resolve("starter", "sw", "lilt", recipe.gather_overrides([], **options)).budget

    assert budget() == "10k-pairs"
    assert budget(data=str(tmp_path)) == "all"
    assert budget(data=str(tmp_path), budget="500-pairs") == "500-pairs"


def test_data_is_a_folder_or_a_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recipe.gather_overrides([], data="starter")["source"] == {"name": "starter"}
    Path("starter").mkdir()
    assert recipe.gather_overrides([], data="starter")["source"]["name"] == "folder"
    with pytest.raises(UserError, match='--data "flickr8" is neither a folder nor a source: did you mean "flickr8k"'):
        recipe.gather_overrides([], data="flickr8")


def test_another_tower_takes_nothing_of_the_recipes_own_tower_but_what_is_stated():
    text = {"model": "intfloat/multilingual-e5-small", "max_tokens": 50}
    resolved = recipe.resolve("xlmr-dinov2", "sw", "lilt", {"text": text, "vision": {"model": "resnet50"}})
    assert resolved.text == TextSpec(**text)
    assert resolved.vision == VisionSpec(model="resnet50")
    longer = recipe.resolve("xlmr-dinov2", "sw", "lilt", {"text": {"max_tokens": 50}})
    assert (longer.text.model, longer.text.pooling) == ("FacebookAI/xlm-roberta-base", "mean")


@pytest.mark.parametrize("order", [("model", "pooling"), ("pooling", "model")])
def test_the_order_of_overrides_does_not_matter(order):
    values = {"model": "some/encoder", "pooling": "cls"}
    overrides = recipe.parse_set([f"text.{key}={values[key]}" for key in order])
    assert overrides == {"text": values}


def test_a_relative_path_in_a_recipe_is_looked_for_beside_it(tmp_path, monkeypatch):
    shared = tmp_path / "shared"
    (shared / "recipes").mkdir(parents=True)
    (shared / "tower").mkdir()
    lines = ['extends = "starter"', "[text]", 'model = "../tower"', "[source]", 'name = "folder"', 'root = "./absent"']
    (shared / "recipes" / "mine.toml").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    made = recipe.resolve("shared/recipes/mine.toml", "sw", "lit")
    assert made.text.model == "shared/tower"
    assert made.source["root"] == "absent", "what is not beside the recipe is relative to the working folder"


def test_an_inherited_key_is_unset(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('extends = "lilt-bert"\nunset = ["vision.args.img_size", "optim.warmup_steps"]\n', encoding="utf-8")
    made = recipe.resolve(str(path), "en", "lilt")
    assert (made.vision.args, made.optim.warmup_steps) == ({}, 50)
    path.write_text('extends = "lilt-bert"\nunset = ["optim.warm"]\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"optim\.warm is not in the recipe that it extends"):
        recipe.resolve(str(path), "en", "lilt")
    path.write_text('unset = ["optim.lr"]\n', encoding="utf-8")
    with pytest.raises(UserError, match="it extends no recipe"):
        recipe.resolve(str(path), "en", "lilt")
