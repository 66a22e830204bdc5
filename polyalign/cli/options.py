"""What the commands share: the app, common options, and output."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Align a vision tower with a multilingual text tower on few image-caption pairs, and measure which way of "
    "training is worth it.",
)

# Panels of `polyalign --help`.
TRAIN, EVALUATE, DATA, USE, MAINTAIN = "Train", "Evaluate", "Data", "Use", "Maintain"

Lang = Annotated[str, typer.Option(help="Language code, such as sw: a file of langs/.")]
Recipe = Annotated[str, typer.Option(help="A shipped recipe, one of your ./recipes, or a path to a TOML file.")]
Strategy = Annotated[str | None, typer.Option(help="What to train: see `polyalign strategies`.")]
Budget = Annotated[
    str | None,
    typer.Option(
        help="Pairs to train on, or time: 1k-pairs, 20min, 10k-pairs+20min. Default: the recipe's; all of --data."
    ),
]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="A folder with captions and images, or the name of a source.",
    ),
]
Images = Annotated[
    Path | None,
    typer.Option("--images", help="Folder with the photos of a benchmark, under their published file names."),
]
AllowMissing = Annotated[bool, typer.Option("--allow-missing", help="Leave out missing photos, with their captions.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Change any key of the recipe: --set optim.lr=3e-4.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Offline = Annotated[bool, typer.Option(help="Use no network: only local folders and files downloaded before.")]


def resolve(recipe: str, lang: str, strategy: str | None, sets: list[str] | None, **options: Any) -> Any:
    """Resolve a recipe with the options of a command."""
    from polyalign.config.resolve import resolve as resolve_recipe

    return resolve_recipe(recipe, lang, strategy, overrides(sets, **options))


def overrides(sets: list[str] | None, **options: Any) -> dict[str, Any]:
    """Gather ``--set`` and the other options that change a recipe into one table."""
    from polyalign.config.resolve import gather_overrides

    return gather_overrides(sets or [], **options)


def source_table(text: str, sets: list[str] | None, lang: str, split: str) -> Any:
    """Load the table of a source given as NAME or NAME:SPLIT, or of a folder, with options of its own."""
    from polyalign.config import source_spec
    from polyalign.config.resolve import parse_set
    from polyalign.data.load import load_source

    spec, named = source_spec.parse(text, parse_set(sets or []))
    return load_source(spec, lang, named or split)


def comma_separated(text: str | None) -> tuple[str, ...]:
    """Split at commas; no text gives no parts."""
    return tuple(part.strip() for part in text.split(",") if part.strip()) if text else ()


def go_offline(offline: bool) -> None:
    """Switch the hub libraries to offline mode; they read this when they are imported."""
    if offline:
        import os

        os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"


def say(line: str) -> None:
    """Print a message on standard error, apart from the result."""
    print(line, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """Print a result for another program."""
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False))


def console() -> Any:
    """Return a console for results; 120 columns wide in a log, so that tables are not cut."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=120)
