"""Catalogue of supported datasets: facts, licences and required files."""

from __future__ import annotations

from rich.table import Table

from polyalign.config.plugins import load_plugin, plugin_names
from polyalign.data import labelled_sets
from polyalign.data.labelled_sets import LabelledSet
from polyalign.data.readers.info import Info
from polyalign.utils.errors import UserError, did_you_mean


def infos() -> dict[str, Info]:
    """Return the facts of all published datasets by source name."""
    modules = {name: load_plugin("sources", name) for name in plugin_names("sources")}
    return {name: module.INFO for name, module in modules.items() if hasattr(module, "INFO")}


def info(name: str) -> Info:
    """Return the facts of one dataset for retrieval.

    Raises:
        UserError: there is no dataset of this name.
    """
    known = infos()
    if name in labelled_sets.KNOWN:
        raise UserError(f"{name} is a labelled dataset, which polyalign zeroshot loads: see polyalign datasets {name}")
    if name not in known:
        raise UserError(f'there is no dataset "{name}": {did_you_mean(name, known)}')
    return known[name]


def everything() -> dict[str, Info | LabelledSet]:
    """Return all datasets by name, for retrieval and labelled."""
    return {**infos(), **labelled_sets.KNOWN}


def facts(name: str) -> Info | LabelledSet:
    """Return the facts of one dataset of either kind.

    Raises:
        UserError: there is no dataset of this name.
    """
    known = everything()
    if name not in known:
        raise UserError(f'there is no dataset "{name}": {did_you_mean(name, known)}')
    return known[name]


def render(known: dict[str, Info]) -> Table:
    """Format all datasets as a table."""
    table = Table(title="Datasets, by the name that --data takes", title_justify="left", show_lines=True)
    for column in ("name", "languages", "size", "captions by", "licence", "home"):
        table.add_column(column, overflow="fold", no_wrap=column == "name")
    for name, one in known.items():
        table.add_row(name, one.languages, one.size, one.origin, one.licence, one.home)
    return table


def render_labelled() -> Table:
    """Format the labelled datasets as a table."""
    table = Table(title="Labelled datasets, by the name that zeroshot takes", title_justify="left", show_lines=True)
    for column in ("name", "classes", "images", "on the hub", "or as folders"):
        table.add_column(column, overflow="fold", no_wrap=column == "name")
    for name, one in labelled_sets.KNOWN.items():
        table.add_row(name, f"{one.classes:,}", one.images, f"{one.hub} ({one.split})" if one.hub else "", one.place)
    return table


def describe(name: str) -> str:
    """Describe a dataset in full: what it is, where to get it and which files to place.

    Raises:
        UserError: there is no dataset of this name.
    """
    one = facts(name)
    return _describe_labelled(name, one) if isinstance(one, LabelledSet) else _describe(name, one)


def _describe_labelled(name: str, one: LabelledSet) -> str:
    lines = [
        f"{one.title}: {one.classes:,} classes, {one.images} images",
        *([f"on the Hugging Face hub: {one.hub}, split {one.split}, labels in {one.label_column}"] if one.hub else []),
        f"or as folders: {one.place}",
        *([f"note: {one.note}"] if one.note else []),
        f"checked: {one.checked}",
        f"use it: polyalign zeroshot RUN {name if one.hub else 'FOLDER'}",
    ]
    return "\n".join(lines)


def _describe(name: str, one: Info) -> str:
    folders = [f for f in ("root", "images") if f in load_plugin("sources", name).Config.model_fields]
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
