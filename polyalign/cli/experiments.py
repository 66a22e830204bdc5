"""``polyalign compare`` and ``report``."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal

import typer

from polyalign.cli import options
from polyalign.cli.options import EVALUATE, app, comma_separated
from polyalign.utils.errors import UserError
from polyalign.utils.text import clean


@app.command(
    rich_help_panel=EVALUATE, epilog="Example: polyalign compare --lang sw --budget 1k-pairs,10k-pairs --seeds 3"
)
def compare(
    lang: Annotated[
        str | None,
        typer.Option(
            callback=options.by_name,
            help="Languages, separated by commas; those joined by a plus are trained on together: qu,qu+es. Default: "
            "those of the recipe.",
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Budgets, separated by commas: pairs (1k-pairs), time (20min, including the computation of frozen "
            "features) or peak memory (4GiB, by smaller micro-batches); combine them with a plus: 10k-pairs+20min. "
            "Default: that of the recipe. With a budget of time or memory, recipes are compared too."
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
        str, typer.Option(help="Recipes, separated by commas: shipped, in ./recipes, or paths of TOML files.")
    ] = "starter",
    towers: options.Towers = None,
    layers: options.Layers = None,
    data: options.DataOption = None,
    parallel: options.ParallelText = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            callback=options.finished_or_external,
            help="Distil the text tower from this run, or open_clip:NAME/PRETRAINED or hf:NAME, with parallel text, "
            "instead of training on pairs.",
        ),
    ] = None,
    tune: Annotated[bool, typer.Option("--tune", help="First tune the learning rate of each strategy on dev.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Number of parallel runs; with ray, per machine.")] = 1,
    on: Annotated[
        Literal["local", "ray"],
        typer.Option(help="Where to run: local, or ray (an extra), on the cluster at $RAY_ADDRESS or a local one."),
    ] = "local",
    set_: options.Set = None,
    out: Annotated[Path, typer.Option(help="Folder of the tables, figures and JSON results.")] = Path("eval"),
    offline: options.Offline = False,
) -> None:
    """Train several strategies on the same pairs, and compare them in tables and figures.

    Finished runs are not repeated: an interrupted comparison continues with the same command. Retention of the towers'
    knowledge and recall in other languages are also measured; turn this off with --set test.knowledge=false --set
    "test.languages=[]".
    """
    options.go_offline(offline)
    from polyalign.config.resolve import check_names

    if teacher is not None and (budget is not None or towers is not None or lang is None):
        raise UserError(
            "distillation uses no pairs and trains the text tower: give --lang, and leave out --budget and --towers"
        )
    if any("=" in part and "+" not in part for part in (budget or "").split(",")):
        raise UserError(f"join the budgets of one run with a plus, as in qu=1k-pairs+es=10k-pairs, not {budget}")
    changes = options.overrides(set_, towers=towers, layers=layers, data=data, parallel=parallel)
    axes = (comma_separated(recipe), comma_separated(lang), comma_separated(budget), comma_separated(strategies))
    check_names(axes[0], axes[1])
    from polyalign.experiments.compare import Grid, run_grid
    from polyalign.experiments.workers import Pool
    from polyalign.utils.progress import progress_bars

    grid = Grid(*axes, seeds, changes, out, Path("runs") / "compare", teacher)
    with options.interruptible("continue with the same command"), progress_bars():
        written = run_grid(grid, Pool(workers, on), tune=tune)
    print(*map(clean, written), sep="\n")


@app.command(rich_help_panel=EVALUATE, epilog="Example: polyalign report --out eval --html")
def report(
    out: Annotated[Path, typer.Option(help="Folder of the results, with runs/*.json.")] = Path("eval"),
    as_html: Annotated[
        bool, typer.Option("--html", help="Also write everything into one self-contained file, report.html.")
    ] = False,
) -> None:
    """Write tables and figures again from the JSON files of the runs, without training.

    Other Markdown files in the folder may quote results in tables whose first columns are language, recipe, budget and
    strategy; these tables are updated.
    """
    from polyalign.experiments.report import RUNS, write
    from polyalign.utils.lock import locked

    with locked(out) if (out / RUNS).is_dir() else nullcontext():
        written = write(out, as_html=as_html)
    print(*map(clean, written), sep="\n")
