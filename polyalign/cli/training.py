"""``polyalign train``, ``repeat`` and ``strategies``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from polyalign.cli.options import (
    TRAIN,
    AllowMissing,
    Budget,
    DataOption,
    Images,
    Json,
    Lang,
    Offline,
    Recipe,
    Set,
    Strategy,
    app,
    console,
    go_offline,
    overrides,
    print_json,
    resolve,
    say,
)


@app.command(rich_help_panel=TRAIN, epilog="Example: polyalign train --lang sw --strategy lilt --budget 1k-pairs")
def train(
    lang: Lang,
    strategy: Strategy = None,
    recipe: Recipe = "starter",
    budget: Budget = None,
    towers: Annotated[str | None, typer.Option(help="Which towers to adapt: both, vision or text.")] = None,
    layers: Annotated[str | None, typer.Option(help="Which layers: all, or last:k.")] = None,
    data: DataOption = None,
    images: Images = None,
    allow_missing: AllowMissing = False,
    seed: Annotated[int | None, typer.Option(help="Seed of initialisation and batches.")] = None,
    set_: Set = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run. Default: a folder in ./runs named after the settings.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete the existing run and start over.")] = False,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Align two frozen towers on image-caption pairs, and test the result."""
    go_offline(offline)
    from polyalign.experiments.run_folders import default_folder

    options = {"budget": budget, "towers": towers, "layers": layers, "data": data, "seed": seed}
    resolved = resolve(recipe, lang, strategy, set_, **options, images=images, allow_missing=allow_missing)
    _train(out or default_folder(resolved, recipe), resolved, resume=resume, overwrite=overwrite, as_json=as_json)


@app.command(
    rich_help_panel=TRAIN,
    epilog="Example: polyalign repeat runs/starter-sw-lilt-10k-pairs-s0/recipe.toml --out runs/again",
)
def repeat(
    recipe: Annotated[Path, typer.Argument(help="A resolved recipe: the recipe.toml in the folder of a run.")],
    out: Annotated[Path, typer.Option(help="Folder of the new run.")],
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete the existing run and start over.")] = False,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Repeat a run from its resolved recipe."""
    go_offline(offline)
    from polyalign.config.resolve import read_recipe

    _train(out, read_recipe(recipe), resume=resume, overwrite=overwrite, as_json=as_json)


@app.command(rich_help_panel=TRAIN, epilog="Example: polyalign strategies --recipe lilt-bert")
def strategies(recipe: Recipe = "starter", lang: Lang = "en", set_: Set = None, as_json: Json = False) -> None:
    """Count the parameters that each strategy trains; needs no weights and no network."""
    from polyalign.models.parameter_count import count, render

    rows = count(recipe, lang, overrides(set_))
    if as_json:
        print_json([row.model_dump() for row in rows])
    else:
        console().print(render(rows, recipe))


def _train(folder: Path, recipe: Any, *, resume: bool, overwrite: bool, as_json: bool) -> None:
    from polyalign.evaluation import tables
    from polyalign.experiments.run_folders import next_commands, train_into

    try:
        run = train_into(folder, recipe, resume=resume, overwrite=overwrite)
    except KeyboardInterrupt:
        say(f"interrupted; continue with the same command and --resume (the state is in {folder})")
        raise typer.Exit(130) from None
    if run is None:  # not the main process of several
        return
    if as_json:
        print(run.model_dump_json(indent=2))
        return
    terminal = console()
    terminal.print(tables.retrieval_table(run.test[0], run.untrained, label=run.strategy))
    terminal.print(tables.run_facts(run))
    terminal.print(f"\ncheckpoint: [bold]{folder}[/]\nnext:")
    for line in next_commands(folder, run):
        terminal.print(f"  {line}", highlight=False)
