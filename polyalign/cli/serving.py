"""``polyalign search``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polyalign.cli.options import USE, Json, Offline, app, go_offline, print_json
from polyalign.utils.text import clean


@app.command(
    rich_help_panel=USE, epilog='Example: polyalign search runs/my-run "mbwa mweusi kwenye nyasi" --images ./photos'
)
def search(
    run: Annotated[str, typer.Argument(help="Folder of a finished run, or an external model.")],
    query: Annotated[str, typer.Argument(help="What the photo should show, in the language of the run.")],
    images: Annotated[Path, typer.Option(help="Folder of photos.")],
    top: Annotated[int, typer.Option(min=1, help="Number of photos to show.")] = 10,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Find the photos of a folder that best match a sentence."""
    from dataclasses import asdict

    go_offline(offline)
    from polyalign.serving.search import search as find
    from polyalign.utils.progress import progress_bars

    with progress_bars():
        found = find(run, images, query, top)
    if as_json:
        print_json([asdict(photo) for photo in found])
        return
    for photo in found:
        print(f"{photo.score:.3f}  {clean(photo.path)}")
