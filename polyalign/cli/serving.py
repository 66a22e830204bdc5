"""``polyalign index`` and ``search``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from polyalign.cli.options import (
    USE,
    App,
    Json,
    Model,
    Offline,
    app,
    finished_or_external,
    go_offline,
    interruptible,
    print_json,
    say,
)
from polyalign.utils.errors import UserError
from polyalign.utils.text import binary_size, clean

if TYPE_CHECKING:
    from polyalign.serving.index_build import Changes
    from polyalign.serving.search import Answer

index_app = App(no_args_is_help=True, help="Keep the vectors of your photos on disk, to search them quickly.")
app.add_typer(index_app, name="index", rich_help_panel=USE)

IndexFolder = Annotated[Path, typer.Argument(help="Folder of an index, made by `polyalign index build`.")]
Captions = Annotated[
    Path | None,
    typer.Option(
        help="Table (CSV, TSV, JSON Lines, Parquet) with a column of image names, relative to the photos or to the "
        "table; its other columns are kept, to show and to filter by."
    ),
]
_SHOWN = 10  # unreadable files named after a build


@index_app.command(epilog="Example: polyalign index build runs/my-run --images ./photos --out my.index")
def build(
    run: Model,
    images: Annotated[Path, typer.Option(help="Folder of photos, with all its subfolders and linked folders.")],
    out: Annotated[Path, typer.Option(help="Folder of the index.")],
    captions: Captions = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Embed all photos of a folder, and keep their vectors in an index.

    If interrupted, run the same command again to continue. Files that cannot be read are listed and left out.
    """
    go_offline(offline)
    from polyalign.serving import index_build
    from polyalign.utils.progress import progress_bars

    with interruptible("run the same command again to continue"), progress_bars():
        changes = index_build.build(run, images, out, captions)
    _tell(out, changes, as_json)


@index_app.command(epilog="Example: polyalign index update my.index")
def update(
    index: IndexFolder,
    images: Annotated[Path | None, typer.Option(help="Where the folder of photos is now, if it was moved.")] = None,
    run: Annotated[str | None, typer.Option(help="Where the run is now, if it was moved.")] = None,
    captions: Captions = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Bring an index up to date with its folder: photos added, changed, renamed and deleted.

    Files are compared by size and modification time, then by content. Only new contents are embedded.
    """
    go_offline(offline)
    from polyalign.serving import index_build
    from polyalign.utils.progress import progress_bars

    with interruptible("run the same command again to continue"), progress_bars():
        changes = index_build.update(index, images, run, captions)
    _tell(index, changes, as_json)


@index_app.command(epilog="Example: polyalign index info my.index")
def info(index: IndexFolder, as_json: Json = False) -> None:
    """Show what is in an index, and all files that could not be read; its checksums are verified."""
    from polyalign.serving.index import Index

    facts = Index.open(index).describe()
    if as_json:
        print_json(facts)
        return
    unreadable = facts.pop("unreadable")
    facts["size"] = binary_size(facts.pop("bytes"))
    for name, value in facts.items():
        print(f"{name:<12}{clean(', '.join(value) if isinstance(value, list) else value)}")
    for one in unreadable:
        print(f"unreadable  {clean(one['path'])}: {clean(one['reason'])}")


@index_app.command(epilog="Example: polyalign index export my.index --to parquet --out photos.parquet")
def export(
    index: IndexFolder,
    to: Annotated[
        Literal["parquet", "clip-retrieval"],
        typer.Option(help="A Parquet file (id, path, vector, metadata), or a folder as clip-retrieval writes it."),
    ],
    out: Annotated[Path, typer.Option(help="The file or folder to write.")],
) -> None:
    """Export an index for vector databases and other search tools."""
    from polyalign.serving.index import Index
    from polyalign.serving.index_export import export as write
    from polyalign.utils.progress import progress_bars

    with progress_bars():
        count = write(Index.open(index), to, out)
    print(f"{count:,} photos written to {out}")


@app.command(
    rich_help_panel=USE, epilog='Example: polyalign search runs/my-run "mbwa mweusi kwenye nyasi" --images ./photos'
)
def search(
    model: Annotated[str, typer.Argument(help="Folder of a finished run, an external model, or an index.")],
    query: Annotated[str | None, typer.Argument(help="What the photo should show, in the language of the run.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of photos; an index has its own.")] = None,
    image: Annotated[Path | None, typer.Option(help="A photo: find similar ones.")] = None,
    queries: Annotated[Path | None, typer.Option(help="A text file of queries, one a line.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of photos to show.")] = 10,
    where: Annotated[
        list[str] | None,
        typer.Option(help="Only photos with this value in a column of the captions table: --where split=test."),
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Show the photos in the web browser.")] = False,
    sheet: Annotated[Path | None, typer.Option(help="Write the photos found as an HTML file.")] = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Find the photos of a folder that best match a sentence, or are most similar to a photo.

    The vectors of the photos are kept, in an index or in the cache folder, so that only new photos are embedded.
    """
    if not Path(model).exists():
        finished_or_external(model)
    asked = _queries(query, image, queries)
    conditions = dict(map(_condition, where or []))
    go_offline(offline)
    if sheet is not None:
        _check_sheet(sheet)
    from polyalign.serving.search import search as find
    from polyalign.utils.progress import progress_bars

    with interruptible("run the same command again to continue"), progress_bars():
        answers = find(model, asked, images, top=top, where=conditions)
    if as_json:
        found = [{"query": one.query, "found": one.as_rows()} for one in answers]
        print_json(found if queries is not None else found[0]["found"])
    else:
        _print(answers)
    if sheet is not None or show:
        _show(answers, sheet, show)


def _queries(query: str | None, image: Path | None, file: Path | None) -> list[str | Path]:
    """Return what to search for: a sentence, a photo, or the lines of a file."""
    given = [one for one in (query, image, file) if one is not None]
    if len(given) != 1:
        raise UserError("give one of a query, --image and --queries")
    if file is None:
        return [given[0]]
    from polyalign.data.readers.files import lines

    found: list[str | Path] = [line.strip() for line in lines(file) if line.strip()]
    if not found:
        raise UserError(f"{file} has no queries")
    return found


def _check_sheet(path: Path) -> None:
    """Check that a file can be written, before photos are embedded."""
    from polyalign.utils import storage

    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder; name a file")
    storage.check_writable(path.parent)


def _condition(text: str) -> tuple[str, str]:
    column, equals, value = text.partition("=")
    if not equals or not column:
        raise UserError(f"--where {text} is not of the form COLUMN=VALUE")
    return column, value


def _print(answers: list[Answer]) -> None:
    for number, answer in enumerate(answers):
        if len(answers) > 1:
            print(f"{'' if number == 0 else chr(10)}{clean(answer.query)}")
        for photo in answer.found:
            print(f"{photo.score:.3f}  {clean(photo.path)}")
        if not answer.found:
            say("no photo found")


def _show(answers: list[Answer], sheet: Path | None, in_browser: bool) -> None:
    """Write a contact sheet, and show it."""
    import tempfile
    import webbrowser

    from polyalign.serving.contact_sheet import write

    path = sheet or Path(tempfile.mkdtemp(prefix="polyalign-")) / "found.html"
    write(path, answers)
    if not in_browser or not webbrowser.open(path.absolute().as_uri()):
        say(f"the photos are in {path}")


def _tell(folder: Path, changes: Changes, as_json: bool) -> None:
    from polyalign.serving.index import Index

    facts = Index.open(folder).describe()
    if as_json:
        print_json({**vars(changes), **facts})
        return
    counts = [f"{count:,} {name}" for name, count in vars(changes).items() if isinstance(count, int) and count]
    print(f"{folder}: {facts['photos']:,} photos ({', '.join(counts) or 'nothing changed'})")
    unreadable = facts["unreadable"]
    if unreadable:
        say(f"files that cannot be read: {len(unreadable):,}; `polyalign index info {folder}` lists all")
    for one in unreadable[:_SHOWN]:
        say(f"  {one['path']}: {one['reason']}")
    if changes.absent:
        some = ", ".join(changes.absent[:3])
        say(f"names in the captions table without a photo: {len(changes.absent):,}, such as {some}")
