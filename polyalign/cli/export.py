"""``polyalign export``, ``merge``, ``card`` and ``push``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from polyalign.cli import options
from polyalign.cli.options import USE, app
from polyalign.utils.errors import UserError
from polyalign.utils.text import clean

NewFolder = Annotated[Path, typer.Option("--out", help="New folder to write into.")]
Compared = Annotated[
    int, typer.Option("--compare", min=1, help="Number of test images, with their captions, to compare on.")
]


@app.command(rich_help_panel=USE, epilog="Example: polyalign export runs/my-run --to onnx --int8 --out my-model-onnx")
def export(
    run: options.FinishedRun,
    to: Annotated[str, typer.Option(help="onnx, sentence-transformers, open-clip or transformers.")],
    out: NewFolder,
    int8: Annotated[
        bool, typer.Option("--int8", help="onnx: also write graphs with 8-bit weights, and measure their recall.")
    ] = False,
    repo: Annotated[
        str | None, typer.Option(help="open-clip: name USER/NAME on the hub, under which the folder will be loaded.")
    ] = None,
    data: options.DataOption = None,
    compare: Compared = 1000,
    set_: options.Set = None,
    offline: options.Offline = False,
    as_json: options.Json = False,
) -> None:
    """Write a run in the format of another library.

    The result is opened with that library and compared with the run on its test pairs, or on --data. A result that
    differs by more than 1e-4 is not kept. onnx holds every model and also opens in transformers.js; the others hold
    what fits into their own modules.
    """
    _export(run, to, out, int8=int8, repo=repo, data=data, compare=compare, set_=set_, offline=offline, as_json=as_json)


@app.command(rich_help_panel=USE, epilog="Example: polyalign merge runs/my-run --out my-model")
def merge(
    run: options.FinishedRun,
    out: NewFolder,
    data: options.DataOption = None,
    compare: Compared = 1000,
    set_: options.Set = None,
    offline: options.Offline = False,
    as_json: options.Json = False,
) -> None:
    """Copy a run together with its towers, so that it opens on a machine without network and other folders.

    Weights that were trained inside the towers, and LoRA, become part of the towers.
    """
    _export(run, "polyalign", out, data=data, compare=compare, set_=set_, offline=offline, as_json=as_json)


Licence = Annotated[
    str | None,
    typer.Option(
        "--license", help="Licence of the model. Default: the strictest of towers and data, if all are known."
    ),
]
BaseModels = Annotated[
    list[str] | None,
    typer.Option("--base-model", help="Name of a tower on the hub, if the run has it from a local folder."),
]


@app.command(rich_help_panel=USE, epilog="Example: polyalign card runs/my-run --license cc-by-4.0 --out README.md")
def card(
    run: options.FinishedRun,
    repo: Annotated[str | None, typer.Option(help="Name USER/NAME on the hub.")] = None,
    licence: Licence = None,
    base_model: BaseModels = None,
    out: Annotated[Path | None, typer.Option(help="File to write. Default: print it.")] = None,
    offline: options.Offline = False,
) -> None:
    """Write the model card of a run: languages, licence, towers, results with intervals and chance, how to open it."""
    options.go_offline(offline)
    from polyalign.evaluation.html import refuse_foreign
    from polyalign.serving.card import MARK
    from polyalign.serving.card import card as make
    from polyalign.utils import storage

    if out is not None:
        refuse_foreign(out, MARK)
    text = str(make(run, licence=licence, repo=repo, base_models=base_model or ()))
    if out is None:
        print(text)
    else:
        storage.write_text(out, text)


@app.command(rich_help_panel=USE, epilog="Example: polyalign push runs/my-run --repo ana/quechua-photos --dry-run")
def push(
    run: options.FinishedRun,
    repo: Annotated[str, typer.Option(help="Name USER/NAME on the hub; the repository is created if there is none.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the folder, and upload nothing.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write with --dry-run. Default: the NAME of the repository.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Create a private repository.")] = False,
    licence: Licence = None,
    base_model: BaseModels = None,
    as_json: options.Json = False,
) -> None:
    """Publish a run on the Hugging Face hub: the model with its towers, what training changed, and a model card.

    Photos, captions, the list of training images, and names of folders and files on this machine are not published: a
    local tower is "from a local folder", and a gallery has the name of its source. The name and description of the
    recipe, the names of columns, and names on the hub are. The token is that of `hf auth login`.
    """
    import tempfile

    from polyalign.serving import push as hub
    from polyalign.utils.progress import progress_bars

    if out is not None and not dry_run:
        raise UserError("--out is for --dry-run: leave it out")
    hub.check_name(repo)
    if not dry_run:
        hub.check_login()
    with tempfile.TemporaryDirectory() as holder, progress_bars():
        folder = (out or Path(repo.rpartition("/")[2])) if dry_run else Path(holder) / "model"
        done = hub.prepare(run, folder, repo, licence=licence, base_models=base_model or ())
        for one in done.left_out:
            options.say(f"not published: {one}")
        if not dry_run:
            done = hub.push(repo, folder, done, private=private)
    if as_json:
        options.print_json({"url": done.url, "files": done.files, "left_out": done.left_out})
        return
    for name in done.files:
        print(clean(name))
    print(f"published: {done.url}" if done.url else f"written: {clean(folder)}")


def _export(
    run: Path,
    to: str,
    out: Path,
    *,
    data: str | None,
    compare: int,
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
        done = write(run, to, out, Options(overrides=changes, images=compare, **settings))
    if as_json:
        options.print_json(done.model_dump(mode="json"))
        return
    print(f"compared on {clean(done.compared_on)}")
    print(f"largest difference of a unit vector: images {done.image:.1e}, texts {done.text:.1e}")
    for precision, recall in done.recall.items():
        print(f"mean recall {precision}: {100 * recall:.1f}")
    print(f"written: {clean(out)}")
