"""Catalogue of supported datasets: facts, licences and required files."""

from __future__ import annotations

import re
from typing import Any

from rich import box
from rich.table import Column

from polyalign.config.plugins import load_plugin, plugin_names, shipped_plugins
from polyalign.data.readers.info import LABELLED, Info, LabelledSet
from polyalign.utils.errors import UserError, did_you_mean
from polyalign.utils.plain_table import PlainTable

_LEFT: dict[str, Any] = {"title_justify": "left", "caption_justify": "left", "box": box.SIMPLE_HEAD}
_MANY = 8  # languages that are not listed one by one
_SHORT = 40  # characters of a column


def infos() -> dict[str, Info]:
    """Return the facts of the published datasets of captions by source name, without running code of the user's."""
    modules = {name: load_plugin("sources", name) for name in shipped_plugins("sources")}
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
    if name not in known and name in plugin_names("sources"):
        own = getattr(load_plugin("sources", name), "INFO", None)
        if isinstance(own, Info):
            return own
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
    """Format the datasets of captions as a table, one line each."""
    table = PlainTable(
        *(Column(name, no_wrap=True) for name in ("name", "languages", "captions by")),
        title="Datasets, by the name that --data takes",
        caption="polyalign datasets NAME: size, licence, files and addresses",
        **_LEFT,
    )
    for name, one in known.items():
        codes = re.match(r"([a-z]{2,3}( |$))+", one.languages)
        count = len(codes[0].split()) if codes else 0
        languages = f"{count} languages" if count > _MANY else _first(one.languages)
        table.add_row(name, languages, one.origin if len(one.origin) <= _SHORT else f"{_first(one.origin)}, ...")
    return table


def render_labelled() -> PlainTable:
    """Format the labelled datasets as a table, one line each."""
    table = PlainTable(
        Column("name", no_wrap=True),
        Column("classes", justify="right", no_wrap=True),
        Column("where", overflow="fold"),
        title="Labelled datasets, by the name that zeroshot takes",
        caption="class names in many languages: Babel-ImageNet (github.com/gregor-ge/Babel-ImageNet), with --names",
        **_LEFT,
    )
    for name, one in LABELLED.items():
        table.add_row(name, f"{one.classes:,}", f"{one.hub} ({one.split})" if one.hub else f"folders: {one.place}")
    return table


def _first(text: str) -> str:
    """Return the text up to its first parenthesis, comma or semicolon."""
    return re.split(r" \(|[,;]", text)[0]


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
