"""The datasets that polyalign reads: what each is, its licence, and what the user has to place where."""

from __future__ import annotations

from rich.table import Table

from polyalign import plugins
from polyalign.errors import UserError, did_you_mean
from polyalign.sources._info import Info


def infos() -> dict[str, Info]:
    """Collect the facts of every source that is a published dataset, by its name."""
    modules = {name: plugins.load("sources", name) for name in plugins.names("sources")}
    return {name: module.INFO for name, module in modules.items() if hasattr(module, "INFO")}


def info(name: str) -> Info:
    """Give the facts of one dataset.

    Raises:
        UserError: there is no dataset of this name.
    """
    known = infos()
    if name not in known:
        raise UserError(f'there is no dataset "{name}": {did_you_mean(name, known)}')
    return known[name]


def render(known: dict[str, Info]) -> Table:
    """Show all datasets, one a row."""
    table = Table(title="Datasets, by the name that --data takes", title_justify="left", show_lines=True)
    for column in ("name", "languages", "size", "captions by", "licence", "where from"):
        table.add_column(column, overflow="fold", no_wrap=column == "name")
    for name, one in known.items():
        table.add_row(name, one.languages, one.size, one.origin, one.licence, one.home)
    return table


def describe(name: str) -> str:
    """Say in full what a dataset is, where to get it and what to place where.

    Raises:
        UserError: there is no dataset of this name.
    """
    one = info(name)
    folders = [f for f in ("root", "images") if f in plugins.load("sources", name).Config.model_fields]
    use = " ".join(f"--set source.{folder}=FOLDER" for folder in folders)
    lines = [
        f"{one.title}: {one.size}",
        f"languages: {one.languages}",
        f"captions by: {one.origin}",
        f"licence: {one.licence}",
        f"get it from: {one.home}",
        *([f"download it: polyalign data get {name}"] if one.downloads else []),
        f"place: {one.place}",
        *([f"note: {one.note}"] if one.note else []),
        f"checked: {one.checked}",
        *(f"address: {found.url} ({found.seen})" for found in (*one.downloads, *one.photos)),
        *(
            [f"address of single photos: {' '.join(one.single.urls.values())} ({one.single.seen})"]
            if one.single
            else []
        ),
        f"use it: --data {name} {use}",
    ]
    return "\n".join(lines)
