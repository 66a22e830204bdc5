"""``polyalign recipe``."""

from __future__ import annotations

import json
import textwrap
from typing import Annotated, Any

import typer

from polyalign.cli import options
from polyalign.cli.options import TRAIN, App, Json, app, console, print_json
from polyalign.utils.text import clean

recipe_app = App(no_args_is_help=True, help="List the recipes, show all keys of one, or copy one to edit it.")
app.add_typer(recipe_app, name="recipe", rich_help_panel=TRAIN)

RecipeName = Annotated[str, typer.Argument(help="A shipped recipe, one in ./recipes, or the path of a TOML file.")]

_WIDTH = 80


@recipe_app.command("list", epilog="Example: polyalign recipe list")
def list_(as_json: Json = False) -> None:
    """List the recipes, including those in ./recipes."""
    from rich import box

    from polyalign.config.describe import list_recipes
    from polyalign.utils.plain_table import PlainTable

    found = list_recipes()
    if as_json:
        print_json([{"name": name, "description": text} for name, text in found.items()])
        return
    table = PlainTable("recipe", "description", box=box.SIMPLE_HEAD)
    for name, text in found.items():
        table.add_row(name, text)
    console().print(table)


@recipe_app.command(epilog="Example: polyalign recipe show xlmr-dinov2 --strategy lora --lang sw")
def show(
    recipe: RecipeName,
    strategy: options.Strategy = None,
    lang: Annotated[
        str | None, typer.Option(callback=options.by_name, help="Language. Default: the first of the recipe.")
    ] = None,
    data: options.DataOption = None,
    set_: options.Set = None,
    as_json: Json = False,
) -> None:
    """Show every key of a recipe with its value, its default and its meaning.

    Change any of them with --set KEY=VALUE, or in a copy (`polyalign recipe copy`).
    """
    from polyalign.config.describe import resolve_to_show, sections

    resolved = resolve_to_show(recipe, lang, strategy, options.overrides(set_, data=data))
    found = list(sections(resolved))
    if as_json:
        print_json([section.model_dump(mode="json") for section in found])
        return
    print(_wrapped(f"{resolved.name}: {resolved.description}"))
    print(f"Language {resolved.lang}. Values that are not the default are marked with *.")
    for section in found:
        print(f"\n[{section.name}]", *map(_wrapped, section.meaning.split("\n\n")), sep="\n")
        width = max(len(key.key) for key in section.keys)
        for key in section.keys:
            print(_line(key, width))


@recipe_app.command(epilog="Example: polyalign recipe copy xlmr-dinov2 mine")
def copy(recipe: RecipeName, name: Annotated[str, typer.Argument(help="Name of the copy.")]) -> None:
    """Copy a recipe into ./recipes, with its comments, to edit it."""
    from polyalign.config.describe import copy as copy_recipe

    print(f"{copy_recipe(recipe, name)}\nuse it with --recipe {name}")


def _line(key: Any, width: int) -> str:
    """Show a key with its value, default and choices."""
    changed = key.value != key.default and key.value is not None
    notes = [f"default {_toml(key.default)}"] if key.default not in (key.value, None) else []
    notes += [f"one of {', '.join(map(str, key.choices))}"] if key.choices else []
    shown = f"{_toml(key.value)}  ({'; '.join(notes)})" if notes else _toml(key.value)
    start = f"{'*' if changed else ' '} {key.key:<{width}}  "
    return textwrap.fill(shown, _WIDTH, initial_indent=start, subsequent_indent=" " * len(start))


def _toml(value: Any) -> str:
    """Show a value as in TOML; a key without a value is left out there."""
    return "-" if value is None else clean(json.dumps(value, ensure_ascii=False))


def _wrapped(text: str) -> str:
    return textwrap.fill(clean(text), _WIDTH)
