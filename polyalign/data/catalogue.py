"""Catalogue of supported datasets: facts, licences and required files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Column

from polyalign.config.plugins import load_plugin, plugin_names
from polyalign.data.readers.info import LABELLED, Info, LabelledSet
from polyalign.utils.errors import UserError, did_you_mean
from polyalign.utils.plain_table import PlainTable


def infos() -> dict[str, Info]:
    """Return the facts of all published datasets of captions by source name."""
    modules = {name: load_plugin("sources", name) for name in plugin_names("sources")}
    return {name: module.INFO for name, module in modules.items() if hasattr(module, "INFO")}


def everything() -> dict[str, Info | LabelledSet]:
    """Return the facts of all datasets, with captions and labelled, by name."""
    return {**infos(), **LABELLED}


def facts(name: str) -> Info | LabelledSet:
    """Return the facts of one dataset of either kind.

    Raises:
        UserError: there is no dataset of this name.
    """
    known = everything()
    if name not in known:
        raise UserError(f'there is no dataset "{name}": {did_you_mean(name, known)}')
    return known[name]


def info(name: str) -> Info:
    """Return the facts of one dataset of captions.

    Raises:
        UserError: there is no dataset of this name, or it is a labelled dataset.
    """
    found = facts(name)
    if isinstance(found, LabelledSet):
        raise UserError(f"{name} is a labelled dataset, which polyalign zeroshot loads: see polyalign datasets {name}")
    return found


def render(known: dict[str, Info]) -> PlainTable:
    """Format the datasets of captions as a table."""
    rows = ((name, one.languages, one.size, one.origin, one.licence, one.home) for name, one in known.items())
    columns = ("name", "languages", "size", "captions by", "licence", "home")
    return _table("Datasets, by the name that --data takes", columns, rows)


def render_labelled() -> PlainTable:
    """Format the labelled datasets as a table."""
    rows = (
        (name, f"{one.classes:,}", one.images, f"{one.hub} ({one.split})" if one.hub else "", one.place)
        for name, one in LABELLED.items()
    )
    columns = ("name", "classes", "images", "on the hub", "or as folders")
    return _table("Labelled datasets, by the name that zeroshot takes", columns, rows)


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> PlainTable:
    headers = (Column(name, overflow="fold", no_wrap=name == "name") for name in columns)
    table = PlainTable(*headers, title=title, title_justify="left", show_lines=True)
    for row in rows:
        table.add_row(*row)
    return table


def describe(name: str) -> str:
    """Describe a dataset in full: what it is, where to get it and which files to place.

    Raises:
        UserError: there is no dataset of this name.
    """
    one = facts(name)
    note = [f"note: {one.note}"] if one.note else []
    if isinstance(one, LabelledSet):
        on_hub = f"on the Hugging Face hub: {one.hub}, split {one.split}, labels in {one.label_column}"
        lines = [
            f"{one.title}: {one.classes:,} classes, {one.images} images",
            *([on_hub] if one.hub else []),
            f"or as folders: {one.place}",
            *note,
            f"checked: {one.checked}",
            f"use it: polyalign zeroshot RUN {name if one.hub else 'FOLDER'}",
        ]
        return "\n".join(lines)
    folders = [f for f in ("root", "images") if f in load_plugin("sources", name).Config.model_fields]
    single = one.single and f"address of single photos: {' '.join(one.single.urls.values())} ({one.single.seen})"
    lines = [
        f"{one.title}: {one.size}",
        f"languages: {one.languages}",
        f"captions by: {one.origin}",
        f"licence: {one.licence}",
        f"get it from: {one.home}",
        *([f"download it: polyalign data get {name}"] if one.downloads else []),
        f"place: {one.place}",
        *note,
        f"checked: {one.checked}",
        *(f"address: {found.url} ({found.seen})" for found in (*one.downloads, *one.photos)),
        *([single] if single else []),
        f"use it: --data {name} {' '.join(f'--set source.{folder}=FOLDER' for folder in folders)}",
    ]
    return "\n".join(lines)
