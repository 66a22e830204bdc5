"""``polyalign interpolate`` and ``soup``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from polyalign.cli import options
from polyalign.cli.options import TRAIN, app
from polyalign.utils.errors import UserError
from polyalign.utils.text import clean

Langs = Annotated[
    str | None,
    typer.Option(
        "--lang", help="Other languages to measure on dev, separated by commas. Default: those the run was tested in."
    ),
]
NewFolder = Annotated[Path | None, typer.Option("--out", help="New folder for the result.")]


@app.command(
    rich_help_panel=TRAIN, epilog="Example: polyalign interpolate runs/my-run --alpha 0.25,0.5,0.75 --out runs/between"
)
def interpolate(
    run: options.FinishedRun,
    alpha: Annotated[
        str,
        typer.Option(
            help="Share of the trained weights, from 0 to 1; of several, separated by commas, the best on dev is saved."
        ),
    ],
    lang: Langs = None,
    out: NewFolder = None,
    offline: options.Offline = False,
    as_json: options.Json = False,
) -> None:
    """Average the towers of a run before and after training, to keep more of what they knew (WiSE-FT)."""
    options.go_offline(offline)
    from polyalign.training import averaging
    from polyalign.utils.progress import progress_bars

    with progress_bars():
        found = averaging.interpolate(run, _numbers(alpha), _langs(lang), out)
    _show(found, out, as_json=as_json)


@app.command(rich_help_panel=TRAIN, epilog="Example: polyalign soup runs/seed-0 runs/seed-1 --out runs/soup")
def soup(
    runs: options.FinishedRuns,
    lang: Langs = None,
    out: NewFolder = None,
    offline: options.Offline = False,
    as_json: options.Json = False,
) -> None:
    """Average several runs of one recipe, after rotating their joint spaces onto each other (model soup)."""
    options.go_offline(offline)
    from polyalign.training import averaging
    from polyalign.utils.progress import progress_bars

    with progress_bars():
        found = averaging.soup(runs, _langs(lang), out)
    _show(found, out, as_json=as_json)


def _langs(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else options.comma_separated(text)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in options.comma_separated(text)]
    except ValueError as error:
        raise UserError(f'--alpha {text}: give numbers from 0 to 1, separated by commas, such as "0.25,0.5"') from error


def _show(found: Sequence[Any], out: Path | None, *, as_json: bool) -> None:
    from polyalign.evaluation import tables

    if as_json:
        rows = [(one, {lang: score.model_dump() for lang, score in one.dev.items()}) for one in found]
        options.print_json([{"name": one.name, "alpha": one.alpha, "dev": dev} for one, dev in rows])
        return
    if found:
        shown = tables.table("Mean recall on dev: percent, ± half of the 95 % interval", "", found[0].dev)
        for one in found:
            shown.add_row(clean(one.name), *map(tables.plus_minus, one.dev.values()))
        options.console().print(shown)
    if out is not None:
        print(f"checkpoint: {clean(out)}")
