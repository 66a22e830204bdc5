"""Count the trainable parameters of each strategy without weights or network, and mostly without memory."""

from __future__ import annotations

import copy
from typing import Any

import torch
from pydantic import BaseModel
from rich import box

from polyalign.config.plugins import load_plugin
from polyalign.config.resolve import resolve, usual_strategies
from polyalign.config.schema import Recipe
from polyalign.models.aligner import Aligner
from polyalign.models.build import align, build_aligner, build_towers
from polyalign.models.towers.base import ValuesNeededError
from polyalign.models.towers.text import TextTower
from polyalign.models.towers.vision import VisionTower
from polyalign.utils.errors import UserError
from polyalign.utils.plain_table import PlainTable

Towers = tuple[VisionTower, TextTower]


class Row(BaseModel):
    """Trainable and all parameters of one strategy, and the first trainable stage of each tower; or its problem."""

    strategy: str
    about: str
    trainable: int = 0
    total: int = 0
    vision_cut: str = ""
    text_cut: str = ""
    problem: str | None = None


def count(recipe: str, lang: str, overrides: dict[str, Any]) -> list[Row]:
    """Count ``usual_strategies`` with the recipe's towers; if they do not support a strategy, its row says why."""
    rows = []
    kept: dict[str, Towers] = {}
    for name in usual_strategies(recipe):
        module = load_plugin("strategies", name)
        row = Row(strategy=name, about=(module.__doc__ or "").strip().splitlines()[0].rstrip("."))
        resolved = resolve(recipe, lang, name, overrides)
        try:
            aligner = untrained(resolved, kept)
        except UserError as error:
            row.problem = str(error)
        else:
            row.trainable, row.total = aligner.count()
            vision_cut, text_cut = aligner.cuts()
            row.vision_cut = f"{vision_cut} of {aligner.vision.whole}"
            row.text_cut = f"{text_cut} of {aligner.text.whole}"
        rows.append(row)
    return sorted(rows, key=lambda row: row.trainable)


def untrained(recipe: Recipe, kept: dict[str, Towers] | None = None) -> Aligner:
    """Build the aligner of a recipe without weights, and without memory unless its towers need values.

    ``kept`` is filled with the towers, of which later calls get copies: building them takes ten times as long.

    Raises:
        UserError: a tower does not support the strategy.
    """
    kept = {} if kept is None else kept
    name = f"{recipe.vision.model_dump_json()} {recipe.text.model_dump_json()} {recipe.lang}"
    try:
        with torch.device("meta"):
            if name not in kept:
                kept[name] = build_towers(recipe, pretrained=False)
            return align(recipe, *copy.deepcopy(kept[name]))
    except ValuesNeededError:
        return build_aligner(recipe, pretrained=False)


def render(rows: list[Row], recipe: str) -> PlainTable:
    """Draw the rows for the terminal."""
    table = PlainTable(
        title=f"What trains with recipe {recipe}",
        caption="frozen stages: the number of stages of each tower that are computed once and cached",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("strategy", no_wrap=True)
    for name in ("trainable", "share %"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("frozen stages\nvision", no_wrap=True)
    table.add_column("\ntext", no_wrap=True)
    table.add_column("what it is", overflow="fold", min_width=24)
    for row in rows:
        if row.problem:
            table.add_row(row.strategy, "-", "-", "", "", row.problem)
            continue
        share = f"{100 * row.trainable / row.total:.2f}"
        table.add_row(row.strategy, f"{row.trainable:,}", share, row.vision_cut, row.text_cut, row.about)
    return table
