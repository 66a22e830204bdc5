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
        str | None, typer.Option(help="Languages, separated by commas; the recipe's when not given.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Budgets, separated by commas: pairs (1k-pairs), time (20min, with what it cost to compute the frozen "
            "part once) or peak memory (4GiB, kept to by smaller parts of the same batch); a plus joins them: "
            "10k-pairs+20min. Without pairs, all are used. Within time or memory, recipes are compared with each other."
        ),
    ] = None,
    strategies: Annotated[
        str | None, typer.Option(help="Strategies, separated by commas; those that answer the question when not given.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds of each.")] = 1,
    recipe: Annotated[
        str, typer.Option(help="Recipes, separated by commas: shipped, of your ./recipes, or paths to TOML files.")
    ] = "starter",
    towers: Annotated[str | None, typer.Option(help="Which towers to adapt: both, vision or text.")] = None,
    layers: Annotated[str | None, typer.Option(help="Which layers: all, or last:k.")] = None,
    data: DataOption = None,
    tune: Annotated[bool, typer.Option("--tune", help="First choose each learning rate on dev.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Runs side by side; with ray, on each machine.")] = 1,
    on: Annotated[
        Literal["local", "ray"],
        typer.Option(
            help="Where the runs go: local, or ray (an extra): the cluster at $RAY_ADDRESS, else one made here."
        ),
    ] = "local",
    set_: Set = None,
    out: Annotated[Path, typer.Option(help="Folder of the tables and of every run's JSON.")] = Path("eval"),
    offline: Offline = False,
) -> None:
    """Train every strategy on the same scarce pairs, and write which is worth it.

    What is trained already is not trained again: the same command goes on where it stopped. Every run is also asked
    what it kept of its towers' knowledge and what carries over to other languages (--set test.knowledge=false,
    --set "test.languages=[]" not to ask).
    """
    go_offline(offline)
    from polyalign.experiments import compare as comparing
    from polyalign.experiments import workers as pool

    changes = overrides(set_, towers=towers, layers=layers, data=data)
    grid = comparing.Grid(
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
            workshop = pool.Pool(workers, on)
            written = comparing.compare(grid, workshop, tune=tune)
    except KeyboardInterrupt:
        say("interrupted; the same command goes on where it stopped")
        raise typer.Exit(130) from None
    for path in written:
        print(path)


@app.command(rich_help_panel=EVALUATE, epilog="Example: polyalign report --out eval")
def report(out: Annotated[Path, typer.Option(help="Folder with runs/*.json.")] = Path("eval")) -> None:
    """Make the tables and figures again from the JSON of the runs, without training.

    Other pages of the folder may quote results, in tables whose columns begin with language, recipe, budget and
    strategy: their figures are renewed.
    """
    from polyalign.experiments import report as reporting

    for path in reporting.write(out):
        print(path)
