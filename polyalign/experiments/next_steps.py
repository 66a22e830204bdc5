"""Commands to try after a run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyalign.config.resolve import resolve
from polyalign.config.schema import Recipe
from polyalign.config.source_spec import SourceSpec
from polyalign.experiments.significance import flatten
from polyalign.utils.errors import UserError


def next_commands(folder: Path, recipe: Recipe, recipe_file: str | None) -> list[str]:
    """Return commands that work on a finished run, quoted for a shell.

    ``recipe_file`` is the name or path that its recipe was resolved from; None if it was not, as for distilled runs.
    """
    photos = recipe.source.get("root") if recipe.source["name"] == "folder" else None
    is_starter = recipe.source["name"] == "starter"
    known = ["en", "sw"] if is_starter else SourceSpec.flat(recipe.source).languages() or []
    others = [lang for lang in ("en", "sw") if lang in known and lang not in recipe.langs][:1]
    commands: list[tuple[str, ...]] = [("show", str(folder), "--open")]
    if others:
        commands.append(("eval", str(folder), "--lang", ",".join((*recipe.langs, *others))))
    if photos is not None:
        commands.append(("search", str(folder), "what the photo shows", "--images", str(photos), "--open"))
    if recipe_file is not None:
        other = "projection" if recipe.strategy["name"] == "lit" else "lit"
        commands.append(("train", *train_options(recipe, recipe_file, other)))
    return [shlex.join(("polyalign", *words)) for words in commands]


def train_options(recipe: Recipe, recipe_file: str, strategy: str) -> list[str]:
    """Return the options of ``polyalign train`` for the data and settings of a recipe, with another strategy.

    Settings of the recipe file for that strategy apply; other settings that differ from the file are kept.
    """
    lang, source, name = ",".join(recipe.langs), recipe.source, recipe.strategy["name"]
    budgets = {
        "data": {"budget": recipe.data.budget, "budgets": recipe.data.budgets},
        "train": {"max_seconds": recipe.train.max_seconds, "max_memory_bytes": recipe.train.max_memory_bytes},
    }
    plain = resolve(recipe_file, lang, name, {"source": source, **budgets})
    try:
        of_file = resolve(recipe_file, lang, name)
        own_data, own_budget = of_file.source != source, of_file.budget != recipe.budget
    except UserError:  # the source of the recipe file has no root there
        own_data, own_budget = True, recipe.budget != "all"
    words = ["--lang", lang, "--strategy", strategy]
    words += [] if recipe_file == "starter" else ["--recipe", recipe_file]
    if own_data:
        is_folder = source["name"] == "folder"
        words += ["--data", str(source["root"]) if is_folder else source["name"]]
        usual = _defaults(recipe) | ({"root": source["root"]} if is_folder else {})
        words += _set({f"source.{key}": value for key, value in source.items() if value != usual.get(key)})
        own_budget = recipe.budget != "all"
    words += ["--budget", recipe.budget] if own_budget else []
    before = dict(flatten(plain.table()))
    return words + _set({key: value for key, value in flatten(recipe.table()) if value != before.get(key)})


def _defaults(recipe: Recipe) -> dict[str, Any]:
    _, config = recipe.plugin("source")
    return {"name": recipe.source["name"], **{key: field.default for key, field in type(config).model_fields.items()}}


def _set(changes: Mapping[str, Any]) -> list[str]:
    """Return ``--set`` for each change, apart from those of the strategy."""
    kept = {key: value for key, value in changes.items() if not key.startswith("strategy.")}
    return [word for key, value in kept.items() for word in ("--set", f"{key}={json.dumps(value, ensure_ascii=False)}")]
