"""Every committed table is what its committed JSON gives, and no table is there that no JSON gives."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyalign import figures, report, tables


@pytest.fixture(scope="module")
def folder() -> Path:
    folder = Path(__file__).parents[2] / "eval"
    assert list((folder / report.RUNS).glob("*.json")), "the results that the tables come from are not there"
    return folder


def test_tables_are_what_the_runs_give(folder: Path) -> None:
    found = report.load(folder)
    made = report.texts(found)
    assert len(made) >= 3
    for name, text in made.items():
        assert (folder / name).read_text(encoding="utf-8") == text, f"eval/{name} is stale: polyalign report"
    own = {path.name for path in folder.iterdir() if path.suffix in {".md", ".csv"}} - {"claims.md"}
    assert own == set(made)
    assert {path.name for path in (folder / "figures").iterdir()} == {
        name for contest in found for name in figures.names(contest).values()
    }


SHOWN = {
    "mean recall": lambda entry: tables.percent(entry.scores[-1].value),
    "interval": lambda entry: " to ".join(map(tables.percent, (entry.scores[-1].low, entry.scores[-1].high))),
    "t→i R@1": lambda entry: tables.percent(entry.scores[0].value),
    "trained": lambda entry: f"{100 * entry.runs[0].trainable / entry.runs[0].total:.2f} %",
    "CPU s": lambda entry: f"{entry.mean(lambda run: run.cpu_seconds):,.0f}",
    "other languages": lambda entry: tables.percent(entry.carried_over),
    "kept": lambda entry: tables.percent(entry.knowledge_kept),
}
"""How ``claims.md`` shows what the tables show."""


def rows_of(page: str) -> Iterator[dict[str, str]]:
    """The rows of the page's tables that begin with language, recipe, budget and strategy."""
    for table in re.findall(r"(?:^\|.*\|\n)+", page, re.MULTILINE):
        header, _, *lines = ([cell.strip() for cell in line.strip("| \n").split(" | ")] for line in table.splitlines())
        if header[:4] == ["language", "recipe", "budget", "strategy"]:
            yield from (dict(zip(header, line, strict=True)) for line in lines)


def test_every_figure_of_the_claims_is_in_the_tables(folder: Path) -> None:
    known = {
        (contest.lang, contest.recipe, contest.budget, entry.name): entry
        for contest in report.load(folder)
        for entry in contest.entries
    }
    shown = list(rows_of((folder / "claims.md").read_text(encoding="utf-8")))
    assert len(shown) > 10
    for row in shown:
        measured = known[row.pop("language"), row.pop("recipe"), row.pop("budget"), row.pop("strategy")]
        assert row == {column: SHOWN[column](measured) for column in row}
