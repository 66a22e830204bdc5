"""``polyalign train``, ``repeat`` and ``strategies``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from polyalign.cli import options
from polyalign.cli.options import TRAIN, app
from polyalign.utils.text import clean


@app.command(rich_help_panel=TRAIN, epilog="Example: polyalign train --lang sw --strategy lilt --budget 1k-pairs")
def train(
    lang: options.Lang,
    strategy: options.Strategy = None,
    recipe: options.Recipe = "starter",
    budget: options.Budget = None,
    towers: options.Towers = None,
    layers: options.Layers = None,
    data: options.DataOption = None,
    images: options.Images = None,
    allow_missing: options.AllowMissing = False,
    seed: Annotated[int | None, typer.Option(help="Seed of initialisation and batches.")] = None,
    set_: options.Set = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run. Default: a folder in ./runs named after the settings.")
    ] = None,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    offline: options.Offline = False,
    as_json: options.Json = False,
) -> None:
    """Align two frozen towers on image-caption pairs, and test the result."""
    options.go_offline(offline)
    from polyalign.experiments.run_folders import default_folder

    changes = {"budget": budget, "towers": towers, "layers": layers, "data": data, "seed": seed, "images": images}
    resolved = options.resolve(recipe, lang, strategy, set_, **changes, allow_missing=allow_missing)
    _train(out or default_folder(resolved, recipe), resolved, resume=resume, overwrite=overwrite, as_json=as_json)


@app.command(
    rich_help_panel=TRAIN,
    epilog="Example: polyalign repeat runs/starter-sw-lilt-10k-pairs-s0/recipe.toml --out runs/again",
)
def repeat(
    recipe: options.RecipeFile,
    out: Annotated[Path, typer.Option(help="Folder of the new run.")],
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    offline: options.Offline = False,
    as_json: options.Json = False,
) -> None:
    """Repeat a run from its resolved recipe."""
    options.go_offline(offline)
    from polyalign.config.resolve import read_recipe

    _train(out, read_recipe(recipe), resume=resume, overwrite=overwrite, as_json=as_json)


@app.command(rich_help_panel=TRAIN, epilog="Example: polyalign strategies --recipe lilt-bert")
def strategies(
    recipe: options.Recipe = "starter",
    lang: options.Lang = "en",
    set_: options.Set = None,
    as_json: options.Json = False,
) -> None:
    """Count the parameters that each strategy trains, without weights and network."""
    from polyalign.models.parameter_count import count, render

    rows = count(recipe, lang, options.overrides(set_))
    if as_json:
        options.print_json([row.model_dump() for row in rows])
    else:
        options.console().print(render(rows, recipe))


def _train(folder: Path, recipe: Any, *, resume: bool, overwrite: bool, as_json: bool) -> None:
    from polyalign.evaluation import tables
    from polyalign.experiments.run_folders import next_commands, train_into

    with options.interruptible(f"continue with the same command and --resume (the state is in {folder})"):
        run = train_into(folder, recipe, resume=resume, overwrite=overwrite)
    if run is None:  # not the main process of several
        return
    if as_json:
        options.print_json(run.model_dump(mode="json"))
        return
    terminal = options.console()
    terminal.print(tables.retrieval_table(run.test[0], run.untrained, label=run.strategy))
    terminal.print(tables.run_facts(run))
    print(f"\ncheckpoint: {clean(folder)}\nnext:")
    for line in next_commands(folder, run):
        print(f"  {clean(line)}")
