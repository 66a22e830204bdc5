"""Recipes to look at: every key of the schema with its value, its default, and what its section is for."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from polyalign.config.resolve import beside, recipe_languages, resolve
from polyalign.config.schema import Parallel, Recipe
from polyalign.config.shipped import find_shipped, read_toml, shipped_names
from polyalign.utils.errors import UserError
from polyalign.utils.text import clean, safe_stem

_OPTIONAL: dict[str, type[BaseModel]] = {"parallel": Parallel}  # sections that a recipe may lack
_COMMENT = """# A copy of {name}. `polyalign recipe show {copy}` lists every key with its default and its meaning.
"""


class Key(BaseModel):
    """A key of a recipe; values are as in TOML, and None where there is none."""

    model_config = ConfigDict(frozen=True)

    key: str
    value: Any
    default: Any
    choices: tuple[Any, ...] = ()


class Section(BaseModel):
    """A section of a recipe: what it is for, and its keys."""

    model_config = ConfigDict(frozen=True)

    name: str
    meaning: str
    keys: tuple[Key, ...]


def list_recipes() -> dict[str, str]:
    """Return the descriptions of all recipes by name, those in ``./recipes`` included."""
    return {
        name: str(read_toml(find_shipped("recipes", name)).get("description", "")) for name in shipped_names("recipes")
    }


def resolve_to_show(recipe: str, lang: str | None, strategy: str | None, overrides: dict[str, Any]) -> Recipe:
    """Resolve a recipe in a language, by default that of a run's recipe, or the first of the recipe's list.

    Raises:
        UserError: as ``resolve``, or the recipe names no language.
    """
    own = read_toml(_file(recipe)).get("lang")
    return resolve(recipe, lang or (own if isinstance(own, str) else recipe_languages(recipe)[0]), strategy, overrides)


def sections(recipe: Recipe) -> Iterator[Section]:
    """Yield the sections of a recipe in the order of the schema; strategy and source have the keys of their plugin."""
    for name in Recipe.model_fields:
        value = getattr(recipe, name)
        if name in ("strategy", "source"):
            module, config = recipe.plugin(name)  # type: ignore[arg-type]
            named = Key(key=f"{name}.name", value=value["name"], default=None)
            about = f"{inspect.getdoc(module) or ''}\n\n{inspect.getdoc(type(config)) or ''}"
            yield _section(name, type(config), config, about, (named,))
        elif isinstance(value, BaseModel) and name not in ("parent", "teacher"):
            yield _section(name, type(value), value, inspect.getdoc(type(value)) or "")
        elif name in _OPTIONAL:
            yield _section(name, _OPTIONAL[name], None, inspect.getdoc(_OPTIONAL[name]) or "")


def copy(recipe: str, name: str) -> Path:
    """Copy the file of a recipe into ``./recipes``, with its comments, and return the path.

    Raises:
        UserError: there is no such recipe, the new name is taken or is not the name of a file, or the recipe names
            files beside it.
    """
    from polyalign.utils import storage

    source = _file(recipe)
    raw = read_toml(source)
    if name != safe_stem(name) or name.endswith(".toml"):
        raise UserError(f'"{clean(name, 100)}" is not a name for a recipe: use letters, digits, hyphens and dots')
    if name in shipped_names("recipes"):
        raise UserError(f"there is a recipe {name} already: choose another name")
    path = Path("recipes") / f"{name}.toml"
    before, after = (beside(beside(raw, one.absolute().parent), Path.cwd()) for one in (source, path))
    if before != after:
        raise UserError(f"{clean(source)} names files beside it, which its copy would not find: write absolute paths")
    text = source.read_text(encoding="utf-8-sig")
    storage.write_text(path, _COMMENT.format(name=clean(recipe), copy=name) + text)
    return path


def _file(recipe: str) -> Path:
    return Path(recipe) if recipe.endswith(".toml") else find_shipped("recipes", recipe)


def _section(
    name: str, model: type[BaseModel], value: BaseModel | None, about: str, before: tuple[Key, ...] = ()
) -> Section:
    """Describe a section by its model; without a ``value`` the recipe does not have it."""
    properties = model.model_json_schema()["properties"]
    values = {} if value is None else value.model_dump(mode="json")
    plain = {key: field.get_default(call_default_factory=True) for key, field in model.model_fields.items()}
    keys = (
        Key(
            key=f"{name}.{key}",
            value=values.get(key),
            default=None if model.model_fields[key].is_required() else _plain(plain[key]),
            choices=next((one["enum"] for one in (schema, *schema.get("anyOf", ())) if "enum" in one), ()),
        )
        for key, schema in properties.items()
    )
    meaning = re.sub(r"(?<!\n)\n(?!\n)", " ", about.strip()).replace("``", "`")
    return Section(name=name, meaning=meaning, keys=(*before, *keys))


def _plain(default: Any) -> Any:
    """Return a default as JSON has it."""
    return list(default) if isinstance(default, tuple) else str(default) if isinstance(default, Path) else default
