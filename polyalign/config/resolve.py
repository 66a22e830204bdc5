"""Resolve a recipe, a language, a strategy and ``--set`` into one validated ``Recipe``."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from polyalign.config import source_spec
from polyalign.config.budget import PairBudget, TimeBudget, parse_budgets, split_by_language
from polyalign.config.language import describe_error, load_language, unknown_key_hint
from polyalign.config.plugins import load_plugin, plugin_names, shipped_plugins
from polyalign.config.run_files import RECIPE
from polyalign.config.schema import Parent, Recipe, merge, nest
from polyalign.config.shipped import find_shipped, read_toml
from polyalign.config.values import check_values
from polyalign.utils.errors import UserError, did_you_mean
from polyalign.utils.text import clean

_PATHS = (
    *(("vision", "model"), ("vision", "weights"), ("text", "model")),
    *(("source", "root"), ("source", "images"), ("parallel", "text")),
)


def read_recipe(path: Path) -> Recipe:
    """Read a resolved recipe, such as the ``recipe.toml`` of a run.

    The towers ``./vision`` and ``./text`` lie beside it if there are such folders, as ``polyalign merge`` writes them.
    """
    raw = read_toml(path)
    for side in ("vision", "text"):
        tower, folder = raw.get(side), path.absolute().parent / side
        if isinstance(tower, dict) and tower.get("model") == f"./{side}" and folder.is_dir():
            tower["model"] = str(folder)
    return validate(raw, str(path))


def resolve(name: str, lang: str, strategy: str | None = None, overrides: dict[str, Any] | None = None) -> Recipe:
    """Resolve a recipe for a language and a strategy.

    ``name`` is a shipped recipe, one in ``./recipes``, or a path. ``lang`` may be several languages to train on
    together, separated by commas. Later layers override earlier ones: the recipe that it ``extends``, the recipe, its
    ``[strategies.<name>]``, the ``[recipe]`` of each language, ``overrides``.

    Raises:
        UserError: unknown recipe, language, strategy or key, or a value out of range.
    """
    raw = _read(name)
    where, overrides = f"recipe {clean(name, 300)}", overrides or {}
    presets = _section(raw, "strategies", where)
    strategies = plugin_names("strategies")
    for one in presets.keys() - set(strategies):
        raise UserError(f'{where}, strategies: unknown strategy "{clean(one, 100)}": {did_you_mean(one, strategies)}')
    own, asked = _section(raw, "strategy", where), _section(overrides, "strategy", "--set")
    _refuse_lang(overrides)
    if strategy is not None and asked.get("name", strategy) != strategy:
        raise UserError(f"--set strategy.name: the strategy is given by --strategy, which is {clean(strategy, 100)}")
    chosen = asked.get("name") or strategy or own.get("name")
    if chosen is None:
        raise UserError(f"{where} names no strategy: choose one with --strategy (known: {', '.join(strategies)})")
    raw = {key: value for key, value in raw.items() if key not in ("strategies", "languages", "transfer")}
    if "budget" in overrides.get("data", {}):
        raw["data"] = {key: value for key, value in _section(raw, "data", where).items() if key != "budgets"}
    if chosen != own.get("name"):
        raw["strategy"] = {}
    first, *also = split_languages(lang)
    layers = (
        {"strategy": {"name": chosen}},
        _section(presets, str(chosen), f"{where}, strategies"),
        *(load_language(code).recipe for code in (first, *also)),
        {"data": {"also_langs": also}} if also else {},
        overrides,
        {"lang": first},
    )
    for layer in layers:
        raw = merge(raw, layer)
    return validate(raw, where)


def resolve_continuation(parent: Parent, lang: str | None, overrides: dict[str, Any]) -> Recipe:
    """Resolve a run that goes on from the weights of a finished run, with its recipe as the default.

    Raises:
        UserError: ``overrides`` change the towers or the strategy, or an unknown language or value.
    """
    _refuse_lang(overrides)
    before = read_recipe(Path(parent.run) / RECIPE)
    raw = before.table()
    raw.pop("parallel", None)
    if before.distils:
        raw["optim"]["loss"] = "infonce"
    if lang is not None:
        first, *also = split_languages(lang)
        asked = merge(overrides, {"data": {"also_langs": also}, "lang": first})
        for code in (first, *also):
            load_language(code)
        for key in ("budgets", "targets"):
            raw["data"].pop(key)
    else:
        asked = overrides
    if "budget" in overrides.get("data", {}):
        raw["data"].pop("budgets", None)
    recipe = validate(merge(raw, {**asked, "parent": parent.model_dump()}), f"the recipe of {parent.run}")
    for section in ("vision", "text", "projection", "strategy"):
        if getattr(recipe, section) != getattr(before, section):
            raise UserError(f"--from goes on with the towers and the strategy of {parent.run}: leave out {section}")
    return recipe


def resolve_distillation(run: Parent, lang: str, strategy: str, overrides: dict[str, Any]) -> Recipe:
    """Resolve a run whose text tower learns from the vectors of a finished run, with the recipe of that as the default.

    Raises:
        UserError: an unknown strategy, language or value, or ``overrides`` change the vision side.
    """
    _refuse_lang(overrides)
    if _section(overrides, "strategy", "--set").get("name", strategy) != strategy:
        raise UserError(f"--set strategy.name: the strategy is given by --strategy, which is {clean(strategy, 100)}")
    teacher = read_recipe(Path(run.run) / RECIPE)
    raw = teacher.table()
    for key in ("parent", "parallel", "strategy"):
        raw.pop(key, None)
    first, *also = split_languages(lang)
    vision = teacher.strategy if teacher.teacher is None else teacher.teacher.strategy
    known = [teacher.lang, *teacher.data.also_langs, *teacher.test.languages]
    fixed: dict[str, Any] = {"lang": first, "strategy": {"name": strategy, "towers": "text"}}
    usual: dict[str, Any] = {
        "teacher": {**run.model_dump(), "strategy": vision},
        "data": {"also_langs": also, "budget": None, "targets": [], "views": None},
        "optim": {"loss": "mse"},
        **({"parallel": {"pivot": teacher.lang}} if overrides.get("parallel", {}).get("text") else {}),
        "train": {"max_seconds": None, "max_memory_bytes": None},
        "test": {"languages": [code for code in dict.fromkeys(known) if code not in (first, *also)]},
    }
    raw["data"].pop("budgets")
    for layer in (usual, *(load_language(code).recipe for code in (first, *also)), overrides, fixed):
        raw = merge(raw, layer)
    recipe = validate(raw, f"distillation from {run.run}")
    if (recipe.vision, recipe.projection) != (teacher.vision, teacher.projection):
        raise UserError(f"the vision side is that of {run.run}: leave out vision and projection")
    return recipe


def resolve_student(model: Parent, dim: int, name: str, lang: str, strategy: str, overrides: dict[str, Any]) -> Recipe:
    """Resolve a run whose text tower learns from the vectors ``(N, dim)`` of an external model.

    All but the vision side is as in the recipe ``name``. The sentences that the model reads are English unless
    ``parallel.pivot`` says otherwise.

    Raises:
        UserError: an unknown recipe, strategy, language or value, or ``overrides`` change the vision side.
    """
    vision, projection = {"model": model.run}, {"dim": dim}
    changed = {key: overrides.get(key, {}) for key in ("vision", "projection")}
    if any(value not in ({}, own) for value, own in zip(changed.values(), (vision, projection), strict=True)):
        raise UserError(f"the vision side is that of {model.run}: leave out vision and projection")
    usual: dict[str, Any] = {
        "vision": vision,
        "projection": projection,
        "data": {"budget": None, "views": None},
        "optim": {"loss": "mse"},
        **({"parallel": {"pivot": "en"}} if overrides.get("parallel", {}).get("text") else {}),
    }
    trained = {"name": "projection", "towers": "vision"}
    fixed = {"strategy": {"towers": "text"}, "teacher": {**model.model_dump(), "strategy": trained}}
    return resolve(name, lang, strategy, merge(merge(usual, overrides), fixed))


def split_languages(text: str) -> list[str]:
    """Split languages that are trained on together, separated by commas or plus signs.

    Raises:
        UserError: there is none.
    """
    codes = [code.strip() for code in text.replace("+", ",").split(",") if code.strip()]
    if not codes:
        raise UserError("--lang is empty: give a language code, such as sw")
    return codes


def _refuse_lang(overrides: dict[str, Any]) -> None:
    for key, option in (("lang", "--lang"), ("name", "the name of the recipe file")):
        if key in overrides:
            raise UserError(f"--set {key}: this is not a setting but is given by {option}")


def _section(raw: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    section = raw.get(key, {})
    if not isinstance(section, dict):
        raise UserError(f'{where}: "{key}" must be a section with keys, not {section!r}')
    return section


def check_names(recipes: Iterable[str], langs: Iterable[str]) -> None:
    """Check that recipes and languages exist, before heavy libraries are imported.

    Raises:
        UserError: one does not.
    """
    for name in recipes:
        _read(name)
    for lang in langs:
        for code in split_languages(lang):
            load_language(code)


def recipe_languages(name: str) -> list[str]:
    """List the ``languages`` of a recipe, the default of commands that take several."""
    found = _codes(name, "languages")
    if not found:
        raise UserError(f"recipe {name} has no list of languages: give them with --lang")
    return found


def usual_strategies(name: str) -> tuple[str, ...]:
    """List the shipped strategies and those that a recipe names: the code of others in ``./strategies`` is not run."""
    raw, where = _read(name), f"recipe {clean(name, 300)}"
    own = _section(raw, "strategy", where).get("name")
    named = {*_section(raw, "strategies", where), *([own] if isinstance(own, str) else [])}
    return tuple(sorted({*shipped_plugins("strategies"), *named}))


def transfer_languages(name: str, lang: str) -> list[str]:
    """List the languages of a recipe's ``transfer`` not in ``lang``, in which zero-shot transfer is tested."""
    return [code for code in _codes(name, "transfer") if code not in split_languages(lang)]


def _codes(name: str, key: str) -> list[str]:
    found = _read(name).get(key, [])
    if not isinstance(found, list) or not all(isinstance(code, str) for code in found):
        raise UserError(f'recipe {clean(name, 300)}: "{key}" must be a list of language codes, such as ["sw", "de"]')
    return found


def parse_set(items: list[str]) -> dict[str, Any]:
    """Turn ``["optim.lr=3e-4", ...]`` into a nested table; a value that is not TOML is a string.

    Raises:
        UserError: an item is not ``key=value``, or its value is one that no setting may have.
    """
    table: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        path = [part.strip() for part in key.split(".")]
        if not equals or not all(path):
            raise UserError(f'--set takes key=value, as in --set optim.lr=3e-4; got "{clean(item, 100)}"')
        value = _value(text)
        check_values(value, "--set", key.strip(), len(path))
        table = merge(table, nest(path, value))
    return table


def _value(text: str) -> Any:
    try:
        read = tomllib.loads(f"value = {text}")
    except RecursionError as error:
        raise UserError(f"--set: {clean(text, 40)} is nested too deeply") from error
    except ValueError:
        return text.strip()
    return read["value"] if len(read) == 1 else text.strip()  # several lines may be several keys


def _read(name: str) -> dict[str, Any]:
    path = Path(name) if name.endswith(".toml") else find_shipped("recipes", name)
    raw = beside(read_toml(path), path.parent)
    base, unset = raw.pop("extends", None), raw.pop("unset", [])
    if base is not None:
        if not isinstance(base, str):
            raise UserError(f"recipe {clean(name, 300)}: extends must be the name of a recipe")
        under = read_toml(find_shipped("recipes", base))
        if "extends" in under:
            raise UserError(f"recipe {name} extends {base}, which extends another: only one step is allowed")
        for key in unset if isinstance(unset, list) else [unset]:
            _unset(under, key, f"recipe {clean(name, 300)}, unset")
        raw = merge(under, raw)
    elif unset:
        raise UserError(f"recipe {clean(name, 300)}: unset removes inherited keys, and it extends no recipe")
    return {**raw, "name": path.stem}


def beside(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Resolve the paths of a recipe that begin with a dot and exist beside its file; others are as given."""
    for section, key in _PATHS:
        table = raw.get(section)
        value = table.get(key) if isinstance(table, dict) else None
        if isinstance(value, str) and value.startswith(("./", "../")) and (folder / value).exists():
            raw = {**raw, section: {**raw[section], key: os.path.normpath(folder / value)}}
    return raw


def _unset(table: Any, key: Any, where: str) -> None:
    """Remove an inherited key, named with dots."""
    *sections, last = str(key).split(".")
    for section in sections:
        table = table.get(section) if isinstance(table, dict) else None
    if not isinstance(table, dict) or last not in table:
        raise UserError(f"{where}: {clean(key, 100)} is not in the recipe that it extends")
    del table[last]


def validate(raw: dict[str, Any], where: str) -> Recipe:
    """Check a resolved table against the schema.

    Raises:
        UserError: an unknown key or a value out of range; the message begins with ``where``.
    """
    check_values(raw, where)
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{where}: {describe_error(error)}{_hint(error, raw)}") from error


def _hint(error: ValidationError, raw: dict[str, Any]) -> str:
    """Suggest a key for an unknown one, or say which files a source without its root needs."""
    first = error.errors()[0]
    if first["type"] == "missing" and first["loc"] == ("source", "root"):
        return source_spec.place(str(raw["source"]["name"]), "--set source.")
    model: Any = Recipe
    for part in map(str, first["loc"][:-1]):
        if model is Recipe and part in ("strategy", "source"):
            model = load_plugin("strategies" if part == "strategy" else "sources", raw[part]["name"]).Config
            continue
        field = model.model_fields.get(part)
        model = field.annotation if field is not None else None
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return ""
    return unknown_key_hint(error, model)


def gather_overrides(
    sets: list[str],
    *,
    budget: str | None = None,
    towers: str | None = None,
    layers: str | None = None,
    data: str | None = None,
    seed: int | None = None,
    images: Path | None = None,
    allow_missing: bool = False,
    parallel: str | None = None,
) -> dict[str, Any]:
    """Gather the options of a command into one table of overrides; ``--set`` takes precedence.

    ``data`` is the name of a source, or a folder, which the source ``folder`` reads. The budget of a recipe applies to
    the recipe's own data only: other data is used whole unless ``budget`` is given. ``images`` is the folder with the
    photos of a benchmark; ``allow_missing`` leaves out missing ones. ``parallel`` is parallel text.

    Raises:
        UserError: ``data`` is neither a source nor a folder, ``images`` is given for a source that has its photos in
            its root, ``budget`` is not a budget, or an item of ``sets`` is not ``key=value``.
    """
    table: dict[str, Any] = {"train": {"seed": seed}, "strategy": {"towers": towers, "layers": layers}}
    table["parallel"] = {"text": parallel}
    if data is not None:
        known = plugin_names("sources")
        if data and Path(data).exists():
            table["source"] = {"name": "folder", "root": str(data)}
        elif data in known:
            table["source"] = {"name": data}
        else:
            raise UserError(f'--data "{data}" is neither a folder nor a source: {did_you_mean(data, known)}')
    source = table.get("source", {})
    table["source"] = source | source_spec.photos(source.get("name"), images, allow_missing=allow_missing)
    given = {
        section: kept
        for section, options in table.items()
        if (kept := {key: value for key, value in options.items() if value is not None})
    }
    if data is not None:
        given = merge(given, {"data": {"budget": None}})
    if budget is not None:
        given = merge(given, budget_overrides(budget))
    return merge(given, parse_set(sets))


def budget_overrides(budget: str) -> dict[str, Any]:
    """Turn a budget into keys of a recipe; without a number of pairs, all pairs are used.

    Raises:
        UserError: the text is not a budget.
    """
    pairs: str | None = None
    train: dict[str, float] = {}
    by_lang, rest = split_by_language(budget)
    for one in parse_budgets(rest) if rest or not by_lang else ():
        if isinstance(one, PairBudget):
            pairs = str(one)
        elif isinstance(one, TimeBudget):
            train["max_seconds"] = one.seconds
        else:
            train["max_memory_bytes"] = one.bytes
    data: dict[str, Any] = {"budget": pairs} | ({"budgets": by_lang} if by_lang else {})
    return {"data": data} | ({"train": train} if train else {})
