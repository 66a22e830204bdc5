"""``polyalign compare`` and ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from polyalign.cli.options import EVALUATE, DataOption, Offline, Set, app, comma_separated, go_offline, overrides, say


@app.command(
    rich_help_panel=EVALUATE, epilog="Example: polyalign compare --lang sw --budget 1k-pairs,10k-pairs --seeds 3"
)
def compare(
    lang: Annotated[
        str | None, typer.Option(help="Languages, separated by commas. Default: those of the recipe.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Budgets, separated by commas: number of pairs (1k-pairs), time (20min, including the computation of "
            "frozen features) or peak memory (4GiB, by smaller micro-batches); combine them with a plus: "
            "10k-pairs+20min. Default: that of the recipe. Under a budget of time or memory, recipes are compared too."
        ),
    ] = None,
    strategies: Annotated[
        str | None,
        typer.Option(
            help="Strategies, separated by commas. Default: projection, layernorm, lilt, lilt-deep, lit, full."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds. Significance tests need two or more.")] = 1,
    recipe: Annotated[
        str, typer.Option(help="Recipes, separated by commas: shipped, in ./recipes, or paths to TOML files.")
    ] = "starter",
    towers: Annotated[str | None, typer.Option(help="Which towers to adapt: both, vision or text.")] = None,
    layers: Annotated[str | None, typer.Option(help="Which layers: all, or last:k.")] = None,
    data: DataOption = None,
    tune: Annotated[bool, typer.Option("--tune", help="First tune the learning rate of each strategy on dev.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Number of parallel runs; with ray, on each machine.")] = 1,
    on: Annotated[
        Literal["local", "ray"],
        typer.Option(help="Where to run: local, or ray (an extra), the cluster at $RAY_ADDRESS or else a local one."),
    ] = "local",
    set_: Set = None,
    out: Annotated[Path, typer.Option(help="Folder of the tables, figures and JSON results.")] = Path("eval"),
    offline: Offline = False,
) -> None:
    """Train several strategies on the same pairs, and compare them in tables and figures.

    Finished runs are not repeated: an interrupted comparison continues with the same command. Retention of the towers'
    knowledge and recall in other languages are measured as well; to turn that off, use --set test.knowledge=false
    --set "test.languages=[]".
    """
    go_offline(offline)
    from polyalign.experiments.compare import Grid, run_grid
    from polyalign.experiments.workers import Pool

    changes = overrides(set_, towers=towers, layers=layers, data=data)
    grid = Grid(
        comma_separated(recipe),
        comma_separated(lang),
        comma_separated(budget),
        comma_separated(strategies),
        seeds,
        changes,
        out,
        Path("runs") / "compare",
    )
    from polyalign.utils.progress import progress_bars

    try:
        with progress_bars():
            workshop = Pool(workers, on)
            written = run_grid(grid, workshop, tune=tune)
    except KeyboardInterrupt:
        say("interrupted; continue with the same command")
        raise typer.Exit(130) from None
    for path in written:
        print(path)


@app.command(rich_help_panel=EVALUATE, epilog="Example: polyalign report --out eval")
def report(out: Annotated[Path, typer.Option(help="Folder of the results, with runs/*.json.")] = Path("eval")) -> None:
    """Write tables and figures again from the JSON files of the runs, without training.

    Other Markdown pages of the folder can quote results, in tables whose first columns are language, recipe, budget and
    strategy; these are updated.
    """
    from polyalign.experiments.report import write

    for path in write(out):
        print(path)
