"""Recipes from a stranger: valid ones damaged, tables by the schema, and texts that only look like TOML."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from polyalign.config.plugins import load_plugin, plugin_names
from polyalign.config.schema import Recipe
from tests.conftest import REPO
from tests.fuzz.harness import cases, sandbox
from tests.fuzz.mutate import edited, strings, toml, toml_values

SHIPPED = sorted((REPO / "recipes").glob("*.toml"))
WRITTEN = ("out", "runs")


def test_recipes_are_found() -> None:
    assert len(SHIPPED) > 5


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
@cases(12)
@given(data=st.data())
def test_a_damaged_shipped_recipe(world: Path, path: Path, data: st.DataObject) -> None:
    content = data.draw(toml(tomllib.loads(path.read_text(encoding="utf-8"))))
    with sandbox(world) as box:
        (box.work / "other.toml").write_bytes(content)
        box.run("train", "--lang", "en", "--recipe", "other.toml", "--out", "out", may_write=WRITTEN, idle=True)


@cases(60)
@given(data=st.data())
def test_a_damaged_resolved_recipe(world: Path, data: st.DataObject) -> None:
    table = tomllib.loads((world / "run" / "recipe.toml").read_text(encoding="utf-8"))
    with sandbox(world) as box:
        (box.work / "other.toml").write_bytes(data.draw(toml(table)))
        command = data.draw(st.sampled_from((("repeat", "other.toml", "--out", "out"), ("memory", "other.toml"))))
        box.run(*command, may_write=WRITTEN, idle=True)


@cases(40)
@given(data=st.data())
def test_a_recipe_as_far_as_the_data(world: Path, data: st.DataObject) -> None:
    """What the schema lets through reaches the source and the tokenizer."""
    table = tomllib.loads((world / "run" / "recipe.toml").read_text(encoding="utf-8"))
    part = data.draw(st.sampled_from(("source", "text", "data")))
    with sandbox(world) as box:
        changed = {**table, part: data.draw(edited(table[part], toml_values))}
        (box.work / "other.toml").write_text(_written(changed), encoding="utf-8")
        box.run("data", "check", "--recipe", "other.toml", "--lang", "en")


def _written(table: Any) -> str:
    try:
        return tomli_w.dumps(table)
    except (TypeError, ValueError):  # a value that TOML cannot say
        return ""


def by_schema(model: type[BaseModel]) -> st.SearchStrategy[dict[str, Any]]:
    """Draw tables with the keys of a model, each of any value or left out."""
    return st.fixed_dictionaries(
        {}, optional={name: _any(field.annotation) for name, field in model.model_fields.items()}
    )


def _any(kind: Any) -> st.SearchStrategy[Any]:
    return by_schema(kind) if isinstance(kind, type) and issubclass(kind, BaseModel) else toml_values


@cases(50)
@given(data=st.data())
def test_a_table_by_the_schema(world: Path, data: st.DataObject) -> None:
    table = data.draw(by_schema(Recipe))
    for section, kind in (("strategy", "strategies"), ("source", "sources")):
        name = data.draw(st.sampled_from(plugin_names(kind)))  # type: ignore[arg-type]
        options = data.draw(by_schema(load_plugin(kind, name).Config))  # type: ignore[arg-type]
        table[section] = data.draw(st.just({"name": name, **options}) | toml_values)
    table |= {
        "vision": {"model": "x", **_table(table.get("vision"))},
        "text": {"model": "x", **_table(table.get("text"))},
    }
    with sandbox(world) as box:
        (box.work / "other.toml").write_text(_written(table), encoding="utf-8")
        box.run("train", "--lang", "en", "--recipe", "other.toml", "--out", "out", may_write=WRITTEN, idle=True)


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


@cases(40)
@given(name=strings, kind=st.sampled_from(("recipes", "langs", "suites")), content=st.sampled_from(("", "x = 1")))
def test_names_of_files(world: Path, name: str, kind: str, content: str) -> None:
    """A name that is also a path, or no path at all."""
    given_name = name.replace("\0", "")
    commands = {
        "recipes": ("train", "--lang", "en", f"--recipe={given_name}", "--out", "out"),
        "langs": ("data", "check", f"--lang={given_name}"),
        "suites": ("eval", "run", f"--suite={given_name}"),
    }
    with sandbox(world) as box:
        (box.work / kind).mkdir(exist_ok=True)
        (box.work / kind / "x.toml").write_text(content, encoding="utf-8")
        box.run(*commands[kind], may_write=WRITTEN, idle=True)
