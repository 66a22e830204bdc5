"""``polyalign eval`` and ``search``: what a trained run can do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polyalign.cli.shared import (
    AllowMissing,
    DataOption,
    Images,
    Json,
    Offline,
    Set,
    app,
    comma_separated,
    console,
    go_offline,
    overrides,
    print_json,
    say,
)


@app.command("eval", epilog="Example: polyalign eval runs/starter-sw-lilt-s0 --lang sw,de,hi")
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    lang: Annotated[
        str | None, typer.Option(help="Languages, separated by commas; the run's own when not given.")
    ] = None,
    data: DataOption = None,
    images: Images = None,
    allow_missing: AllowMissing = False,
    split: Annotated[str, typer.Option(help="Which split: test, dev or train.")] = "test",
    set_: Set = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Measure retrieval of a trained run, in one language or several, on its own data or other."""
    go_offline(offline)
    from polyalign import runs, tables

    changes = overrides(set_, data=data, images=images, allow_missing=allow_missing)
    results = runs.evaluate(run, list(comma_separated(lang)), split, changes, say)
    if as_json:
        print_json([result.model_dump(mode="json") for result in results])
    else:
        console().print(tables.retrieval_overview(results))


@app.command(epilog='Example: polyalign search runs/my-run "mbwa mweusi kwenye nyasi" --images ./photos')
def search(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    query: Annotated[str, typer.Argument(help="What the photo should show, in the run's language.")],
    images: Annotated[Path, typer.Option(help="Folder of photos.")],
    top: Annotated[int, typer.Option(min=1, help="How many to show.")] = 10,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Find the photos of a folder that best fit a sentence."""
    from dataclasses import asdict

    go_offline(offline)
    from polyalign import progress
    from polyalign import search as searching

    with progress.display() as report:
        found = searching.search(run, images, query, top, report)
    if as_json:
        print_json([asdict(photo) for photo in found])
        return
    for photo in found:
        print(f"{photo.score:.3f}  {photo.path}")
