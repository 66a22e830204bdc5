"""``polyalign export`` and ``merge``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from polyalign.cli import options
from polyalign.cli.options import USE, app
from polyalign.utils.text import clean

Run = Annotated[Path, typer.Argument(help="Folder of a finished run.")]
NewFolder = Annotated[Path, typer.Option("--out", help="New folder to write into.")]
Compared = Annotated[
    int, typer.Option("--images", min=1, help="Number of test images, with their captions, to compare on.")
]


@app.command(rich_help_panel=USE, epilog="Example: polyalign export runs/my-run --to onnx --int8 --out my-model-onnx")
def export(
    run: Run,
    to: Annotated[str, typer.Option(help="onnx, sentence-transformers, open-clip or transformers.")],
    out: NewFolder,
    int8: Annotated[
        bool, typer.Option("--int8", help="onnx: also write graphs with 8-bit weights, and measure their recall.")
    ] = False,
    repo: Annotated[
        str | None, typer.Option(help="open-clip: name USER/NAME on the hub, under which the folder will be loaded.")
    ] = None,
    data: options.DataOption = None,
    images: Compared = 1000,
    set_: options.Set = None,
    offline: options.Offline = False,
    as_json: options.Json = False,
) -> None:
    """Write a run in the format of another library.

    The result is opened with that library and compared with the run on its test pairs, or on --data. A result that
    differs by more than 1e-4 is not kept. onnx holds every model and also opens in transformers.js; the others hold
    what fits into their own modules.
    """
    _export(run, to, out, int8=int8, repo=repo, data=data, images=images, set_=set_, offline=offline, as_json=as_json)


@app.command(rich_help_panel=USE, epilog="Example: polyalign merge runs/my-run --out my-model")
def merge(
    run: Run,
    out: NewFolder,
    data: options.DataOption = None,
    images: Compared = 1000,
    set_: options.Set = None,
    offline: options.Offline = False,
    as_json: options.Json = False,
) -> None:
    """Copy a run together with its towers, so that it opens on a machine without network and other folders.

    Weights that were trained inside the towers, and LoRA, become part of the towers.
    """
    _export(run, "polyalign", out, data=data, images=images, set_=set_, offline=offline, as_json=as_json)


def _export(
    run: Path,
    to: str,
    out: Path,
    *,
    data: str | None,
    images: int,
    set_: list[str] | None,
    offline: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    options.go_offline(offline)
    from polyalign.serving.export.run import Options
    from polyalign.serving.export.run import export as write
    from polyalign.utils.progress import progress_bars

    changes = options.overrides(set_, data=data)
    with progress_bars():
        done = write(run, to, out, Options(overrides=changes, images=images, **settings))
    if as_json:
        options.print_json(done.model_dump(mode="json"))
        return
    print(f"compared on {clean(done.compared_on)}")
    print(f"largest difference of a unit vector: images {done.image:.1e}, texts {done.text:.1e}")
    for precision, recall in done.recall.items():
        print(f"mean recall {precision}: {100 * recall:.1f}")
    print(f"written: {clean(out)}")
