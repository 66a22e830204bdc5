from __future__ import annotations

import json
import tomllib

import pytest

from polyalign.config import describe
from polyalign.config.resolve import resolve
from polyalign.config.schema import Recipe
from polyalign.config.shipped import find_shipped, shipped_names


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def keys_of(table, path=()):
    """Return the dotted keys of a resolved recipe and their values, with tables that are values as such."""
    found = {}
    for section, values in table.items():
        if isinstance(values, dict):
            found |= {f"{section}.{key}": value for key, value in values.items()}
    return found


@pytest.mark.parametrize("name", shipped_names("recipes"))
def test_every_key_of_a_resolved_recipe_is_shown_with_its_value(name):
    recipe = resolve(name, "sw", "lora")
    shown = {key.key: key.value for section in describe.sections(recipe) for key in section.keys}
    wanted = keys_of(recipe.table())
    assert {key: shown[key] for key in wanted} == wanted
    assert all(section.meaning for section in describe.sections(recipe))


def test_every_section_of_the_schema_is_shown_and_changes_are_told_from_defaults():
    found = {section.name: section for section in describe.sections(resolve("xlmr-dinov2", "sw"))}
    scalars = {"name", "description", "lang", "parent", "teacher"}
    assert set(found) == set(Recipe.model_fields) - scalars
    optim = {key.key: key for key in found["optim"].keys}
    assert (optim["optim.batch_size"].value, optim["optim.batch_size"].default) == (512, 256)
    assert optim["optim.loss"].choices == ("infonce", "sigmoid", "mse")
    assert {key.value for key in found["parallel"].keys} == {None}


def test_show_fits_a_terminal_and_follows_its_options(run):
    code, out, _ = run("recipe", "show", "xlmr-dinov2", "--strategy", "lora", "--lang", "qu", "--set", "optim.lr=0.5")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    words = " ".join(out.split())
    assert "Language qu." in words
    assert "* optim.lr 0.5 (default 0.001)" in words
    assert "* optim.batch_size 512 (default 256)" in words
    assert "optim.epochs 15 * optim.min_steps 300 (default 0)" in words
    assert "strategy.rank 8" in words
    assert "`micro_batch` limits memory" in words


def test_show_takes_a_file_and_the_recipe_of_a_run(run, folder):
    (folder / "own.toml").write_text(resolve("starter", "qu", "mlp").to_toml(), encoding="utf-8")
    sections = json.loads(run("recipe", "show", "own.toml", "--json")[1])
    assert {"key": "strategy.name", "value": "mlp", "default": None, "choices": []} in sections[3]["keys"]
    assert "Language qu." in run("recipe", "show", "own.toml")[1]


def test_the_list_has_own_recipes_too(run):
    assert run("recipe", "copy", "starter", "mine")[0] == 0
    listed = {one["name"]: one["description"] for one in json.loads(run("recipe", "list", "--json")[1])}
    assert set(listed) == set(shipped_names("recipes"))
    assert listed["mine"] == listed["starter"]
    assert "mine" in run("recipe", "list")[1]


@pytest.mark.parametrize("name", ["starter", "xlmr-dinov2"])
def test_a_copy_has_the_settings_and_the_comments(name, run, folder):
    original = find_shipped("recipes", name)
    code, out, _ = run("recipe", "copy", name, "mine")
    assert (code, out) == (0, "recipes/mine.toml\nuse it with --recipe mine\n")
    text = (folder / "recipes" / "mine.toml").read_text(encoding="utf-8")
    assert original.read_text(encoding="utf-8") in text
    assert tomllib.loads(text) == tomllib.loads(original.read_text(encoding="utf-8"))
    copied, known = resolve("mine", "sw"), resolve(name, "sw")
    assert copied.model_copy(update={"name": name}) == known


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["starter", "xlmr-dinov2"], "there is a recipe xlmr-dinov2 already"),
        (["starter", "../mine"], "is not a name for a recipe"),
        (["starter", "mine.toml"], "is not a name for a recipe"),
        (["startr", "mine"], 'did you mean "starter"?'),
        (["absent.toml", "mine"], "cannot read absent.toml"),
    ],
)
def test_a_copy_that_cannot_be_made_is_refused(words, problem, run, folder):
    code, _, err = run("recipe", "copy", *words)
    assert code == 2
    assert problem in err
    assert not list(folder.rglob("*"))


def test_an_existing_copy_is_kept(run, folder):
    run("recipe", "copy", "starter", "mine")
    (folder / "recipes" / "mine.toml").write_text('description = "edited."\n', encoding="utf-8")
    assert run("recipe", "copy", "starter", "mine")[0] == 2
    assert (folder / "recipes" / "mine.toml").read_text(encoding="utf-8") == 'description = "edited."\n'


def test_a_copy_finds_the_same_files_or_is_refused(run, folder):
    (folder / "other" / "photos").mkdir(parents=True)
    (folder / "photos").mkdir()
    for place in ("other/own.toml", "own.toml"):
        (folder / place).write_text(
            'extends = "starter"\nsource = {name = "folder", root = "./photos"}\n', encoding="utf-8"
        )
    code, _, err = run("recipe", "copy", "other/own.toml", "mine")
    assert (code, err.count("\n")) == (2, 1)
    assert "other/own.toml names files beside it, which its copy would not find" in err
    assert not (folder / "recipes").exists()
    assert run("recipe", "copy", "own.toml", "mine")[0] == 0
    (folder / "recipes" / "photos").mkdir()
    assert run("recipe", "copy", "mine", "again")[0] == 0
    assert resolve("again", "sw").source["root"] == resolve("mine", "sw").source["root"]
    assert run("recipe", "copy", "own.toml", "third")[0] == 2


def test_a_language_is_known_by_its_name(run):
    assert "Language qu." in run("recipe", "show", "starter", "--lang", "Quechua")[1]
