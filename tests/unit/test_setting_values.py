"""Every value of every setting: accepted within its bounds and read back unchanged, or refused in one line."""

from __future__ import annotations

import copy
import math
import os
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from polyalign.config import resolve as recipe
from polyalign.config.language import load_language
from polyalign.config.plugins import load_plugin, shipped_plugins
from polyalign.config.schema import Recipe
from polyalign.config.shipped import read_toml, shipped_names
from polyalign.config.source_spec import SourceSpec
from polyalign.config.tower import Preprocessing
from polyalign.utils.errors import UserError
from polyalign.utils.text import clean

BASE: dict[str, Any] = {
    "name": "mine",
    "lang": "sw",
    "vision": {"model": "starter"},
    "text": {"model": "starter"},
    "strategy": {"name": "lilt"},
    "source": {"name": "starter"},
}
NAN, INF = float("nan"), float("inf")
NASTY = [-1, 0, 10**16, 2**63, 10**400, NAN, INF, -INF, 1e300, -1e300, True, "1", "9" * 400, None, [], {}, [1]]

Key = tuple[str, ...]


def numbers(model: type[BaseModel], above: Key = ()) -> Iterator[Key]:
    """Walk the fields of a model and its sections whose type has a number in it."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from numbers(kind, (*above, name))
        elif {int, float} & set(parts(kind)):
            yield (*above, name)


def parts(kind: Any) -> Iterator[Any]:
    yield kind
    for inner in typing.get_args(kind):
        yield from parts(inner)


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from leaves(inner)
    else:
        yield value


def put(raw: dict[str, Any], key: Key, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(raw)
    section = changed
    for part in key[:-1]:
        section = section.setdefault(part, {})
    section[key[-1]] = value
    return changed


def one_line(error: UserError) -> None:
    assert str(error) == clean(error)
    assert len(str(error)) < 2_000


def accepted(raw: dict[str, Any]) -> Recipe | None:
    """The recipe, which must come back from its file, or None if it is refused in one line."""
    try:
        found = recipe.validate(raw, "the recipe")
    except UserError as error:
        one_line(error)
        return None
    assert recipe.validate(tomllib.loads(found.to_toml()), "read again") == found
    return found


def of_strategies() -> Iterator[tuple[str, Key]]:
    for name in shipped_plugins("strategies"):
        for key in numbers(load_plugin("strategies", name).Config):
            yield name, ("strategy", *key)


def of_sources() -> Iterator[tuple[str, Key]]:
    for name in shipped_plugins("sources"):
        for key in numbers(load_plugin("sources", name).Config):
            yield name, key


FIELDS = list(numbers(Recipe))


def test_the_walk_finds_the_numbers() -> None:
    assert {("optim", "betas"), ("train", "seed"), ("vision", "image_px"), ("cache", "max_gib")} <= set(FIELDS)
    assert {("lora", ("strategy", "alpha")), ("lilt", ("strategy", "reduction"))} <= set(of_strategies())
    assert {("starter", ("seed",)), ("folder", ("dev_share",))} <= set(of_sources())


@pytest.mark.parametrize("key", FIELDS, ids=".".join)
@pytest.mark.parametrize("value", NASTY, ids=lambda value: repr(value)[:12])
def test_no_number_of_a_recipe_takes_nonsense(key: Key, value: Any) -> None:
    found = accepted(put(BASE, key, value))
    if found is not None:
        assert value in (0, None) or (value == [1] and key[0] == "vision")


@pytest.mark.parametrize("value", NASTY, ids=lambda value: repr(value)[:12])
def test_no_number_of_a_plugin_takes_nonsense(value: Any) -> None:
    for name, key in of_strategies():
        found = accepted(put({**BASE, "strategy": {"name": name}}, key, value))
        assert found is None or value is None, (name, key)
    for name, key in of_sources():
        root = {"root": "/data"} if "root" in load_plugin("sources", name).Config.model_fields else {}
        found = accepted(put({**BASE, "source": {"name": name, **root}}, ("source", *key), value))
        assert found is None or value in (0, None), (name, key)
        try:
            SourceSpec(name=name, options={**root, key[0]: value}).configure()
        except UserError as error:
            one_line(error)
        else:
            assert value in (0, None), (name, key)


numeric = st.one_of(
    st.integers(), st.floats(), st.booleans(), st.sampled_from(NASTY), st.lists(st.floats(0, 1), max_size=3)
)
text = st.text(max_size=20)
tables = st.recursive(
    st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), text),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(text, inner, max_size=3)),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(FIELDS), numeric, max_size=3), st.dictionaries(text, tables, max_size=3))
def test_what_is_accepted_is_finite_and_comes_back_from_its_file(changes: dict[Key, Any], args: dict[str, Any]) -> None:
    raw = put(put(BASE, ("vision", "args"), args), ("text", "architecture"), args)
    for key, value in changes.items():
        raw = put(raw, key, value)
    if (found := accepted(raw)) is not None:
        assert all(math.isfinite(value) for value in leaves(found.table()) if isinstance(value, int | float))


@pytest.mark.parametrize("name", shipped_names("recipes"))
def test_every_shipped_recipe_comes_back_from_its_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    for lang in ("sw", "zh"):
        resolved = recipe.resolve(name, lang, "lora", {"source": {"name": "starter"}})
        path.write_text(resolved.to_toml(), encoding="utf-8")
        assert recipe.read_recipe(path) == resolved


@pytest.mark.parametrize("value", ["a\0b", "half \ud800", "x" * 300, "../up", "/etc", ""])
@pytest.mark.parametrize("key", [("name",), ("lang",), ("test", "languages"), ("strategy", "name"), ("source", "name")])
def test_no_name_takes_nonsense(key: Key, value: str) -> None:
    assert accepted(put(BASE, key, [value] if key[-1] == "languages" else value)) is None


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ("9" * 400 + "-pairs", "is too large"),
        ("9" * 400 + "h", "is too large"),
        ("1" + "0" * 30 + "GiB", "is too large"),
        ("x" * 10_000, "is not a budget"),
        ("20min", "pass 20min as --budget"),
    ],
)
def test_a_budget_that_cannot_be_is_refused_with_its_key(budget: str, said: str) -> None:
    with pytest.raises(UserError, match=rf"the recipe: data\.budget: .*{said}") as caught:
        recipe.validate(put(BASE, ("data", "budget"), budget), "the recipe")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "changes",
    [{"interpolation": "fast"}, {"crop_pct": 0.0}, {"mean": (NAN,)}, {"std": (1e-30,)}, {"std": (True,)}],
)
def test_preprocessing_takes_no_nonsense(changes: dict[str, Any]) -> None:
    good = {"image_px": 32, "mean": (0.5,), "std": (0.5,), "crop_pct": 1.15, "interpolation": "bicubic"}
    assert Preprocessing.model_validate(good)
    with pytest.raises(ValueError, match=next(iter(changes))):
        Preprocessing.model_validate({**good, **changes})


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"lang": "de"}, "--set lang: this is not a setting but is given by --lang"),
        ({"name": "x"}, "--set name: this is not a setting but is given by the name of the recipe file"),
        (
            {"strategy": {"name": "lora"}},
            "--set strategy.name: the strategy is given by --strategy, which is lilt",
        ),
    ],
)
def test_what_an_option_decides_is_not_ignored(overrides: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        recipe.resolve("starter", "sw", "lilt", overrides)
    assert str(caught.value) == said
    assert recipe.resolve("starter", "sw", None, {"strategy": {"name": "lora"}}).strategy["name"] == "lora"


# Files

DEEP = "a = " + "[" * 5_000 + "]" * 5_000
DOTTED = ".".join("a" * 3_000) + " = 1"
BAD_FILES = {
    "deep": (DEEP, "nested too deeply"),
    "dotted": (DOTTED, "nested more than 20 deep"),
    "large": ("#" * 2**20 + "\n", "larger than 1 MiB"),
    "digits": ("a = " + "9" * 5_000, "digits"),
    "long": ("a = " + "9" * 30, "a: the number is too large"),
    "null": ('a.b = "\\u0000"', "a.b: the text has a null character"),
    "inf": ("a = [1, inf]", "a: inf is not allowed"),
    "date": ("a = 2026-01-01", "a: 2026-01-01 is a date"),
    "control": ("a = \x1b[31m", "cannot read"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused_in_a_line_that_names_it(name: str, tmp_path: Path) -> None:
    content, said = BAD_FILES[name]
    path = tmp_path / f"{name}.toml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_toml(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1_000


def test_a_pipe_and_a_folder_and_impossible_paths_are_refused_at_once(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for kind in ("recipes", "langs"):
        Path(kind).mkdir()
        os.mkfifo(f"{kind}/xx.toml")
        Path(kind, "yy.toml").mkdir()
    for path in (Path("recipes/xx.toml"), Path("recipes/yy.toml"), Path("x" * 300 + ".toml"), Path("a\0.toml")):
        with pytest.raises(UserError, match="cannot read"):
            recipe.resolve(str(path), "sw", "lilt")
    for name in ("xx", "yy", "x" * 300, "../recipes/starter", str(tmp_path), "a\0"):
        with pytest.raises(UserError, match="unknown recipe"):
            recipe.resolve(name, "sw", "lilt")
        with pytest.raises(UserError, match="unknown language"):
            load_language(name)


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(tomli_w.dumps({"a": 1}), encoding="utf-8-sig")
    assert read_toml(path) == {"a": 1}


@pytest.mark.parametrize(
    "item", [f"a={'[' * 5_000}", f"{'.'.join('a' * 3_000)}=1", "a=nan", "a=2026-01-01", "a=\ud800"]
)
def test_set_refuses_what_no_setting_may_hold(item: str) -> None:
    with pytest.raises(UserError, match=r"^--set") as caught:
        recipe.parse_set([item])
    assert len(str(caught.value)) < 300


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200))
def test_any_bytes_give_a_table_or_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "any.toml"
    path.write_bytes(content)
    try:
        read_toml(path)
    except UserError as error:
        one_line(error)
