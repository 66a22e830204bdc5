"""``polyalign strategies`` and ``data``: what one should know before training."""

from __future__ import annotations

import typer

from polyalign.cli.shared import (
    DataOption,
    Json,
    Lang,
    Offline,
    Recipe,
    Set,
    app,
    console,
    go_offline,
    overrides,
    print_json,
    resolve,
)

data_app = typer.Typer(no_args_is_help=True, help="Look at your data before you train on it.")
app.add_typer(data_app, name="data")


@app.command(epilog="Example: polyalign strategies --recipe lilt-bert")
def strategies(recipe: Recipe = "starter", lang: Lang = "en", set_: Set = None, as_json: Json = False) -> None:
    """Count what each strategy trains with a recipe's towers; needs no weights and no network."""
    from polyalign import strategy_table

    rows = strategy_table.count(recipe, lang, overrides(set_))
    if as_json:
        print_json([row.model_dump() for row in rows])
    else:
        console().print(strategy_table.render(rows, recipe))


@data_app.command(epilog="Example: polyalign data check --data ./my-photos --lang sw")
def check(
    lang: Lang,
    data: DataOption = None,
    recipe: Recipe = "starter",
    set_: Set = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Read every image and caption as training would, and say what is wrong with them."""
    go_offline(offline)
    from polyalign import data_check

    resolved = resolve(recipe, lang, "projection", set_, data=data)
    reports = data_check.check_recipe(resolved)
    if as_json:
        print_json([report.model_dump(mode="json") for report in reports])
    else:
        console().print(*map(data_check.render, reports))
