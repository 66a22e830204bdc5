"""``polyalign show``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polyalign.cli.options import EVALUATE, FinishedRun, Offline, app, go_offline
from polyalign.utils.text import clean, safe_stem


@app.command(rich_help_panel=EVALUATE, epilog="Example: polyalign show runs/my-run --out my-run.html --open")
def show(
    run: FinishedRun,
    out: Annotated[
        Path | None, typer.Option(help="File to write. Default: named after the run, in the working folder.")
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    offline: Offline = False,
) -> None:
    """Write one self-contained page about a run: scores, examples with photos, failures and warnings.

    Photos, failures and captions need the test data and the towers of the run; the page says what is not there.
    """
    go_offline(offline)
    import webbrowser

    from polyalign.evaluation import html
    from polyalign.serving.show import page
    from polyalign.utils import storage
    from polyalign.utils.progress import progress_bars

    path = out or Path(f"{safe_stem(run.resolve().name)}.html")
    html.refuse_foreign(path)
    storage.check_writable(path.parent)
    with progress_bars():
        html.save(path, page(run))
    print(clean(path))
    if open_:
        webbrowser.open(path.resolve().as_uri())
