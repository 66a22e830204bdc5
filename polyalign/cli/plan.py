"""``polyalign plan``."""

from __future__ import annotations

from typing import Annotated

import typer

from polyalign.cli import options
from polyalign.cli.options import TRAIN, app
from polyalign.utils.text import clean


@app.command(
    rich_help_panel=TRAIN,
    epilog="Example: polyalign plan --recipe xlmr-dinov2 --lang sw --budget 1k-pairs --strategies projection,lilt",
)
def plan(
    lang: options.Lang,
    recipe: options.Recipe = "starter",
    strategies: Annotated[
        str | None,
        typer.Option(help="Strategies, separated by commas. Default: all shipped ones and those of the recipe."),
    ] = None,
    data: options.DataOption = None,
    budget: options.Budget = None,
    images: options.Images = None,
    allow_missing: options.AllowMissing = False,
    set_: options.Set = None,
    offline: options.Offline = False,
    as_json: options.Json = False,
) -> None:
    """Say what fits this machine before training: download, cache, memory and time of each strategy.

    No weights are downloaded, only tokenizers and the data of `--data hub`, if they are not there yet. Sizes come from
    shapes alone; times come from a few steps with random weights.
    """
    options.go_offline(offline)
    from polyalign.config.resolve import usual_strategies
    from polyalign.experiments.plan import forecast, render
    from polyalign.utils.progress import progress_bars

    names = options.comma_separated(strategies) or usual_strategies(recipe)
    changes = options.overrides(set_, budget=budget, data=data, images=images, allow_missing=allow_missing)
    with progress_bars():
        found = forecast(recipe, lang, names, changes)
    if as_json:
        options.print_json(found.model_dump(mode="json"))
        return
    options.console().print(render(found))
    for row in found.rows:
        if row.problem:
            print(f"{row.strategy}: {clean(row.problem)}")
    if any("memory" in row.lacks for row in found.rows):
        print("less memory: --set optim.micro_batch=8, or --set train.recompute=true")
