"""The committed tables are exactly those that the committed JSON files give."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from polyalign.evaluation import tables
from polyalign.experiments import figures, quotes, report

EVAL = Path(__file__).parents[2] / "eval"
FOLDERS = sorted(path.parent for path in EVAL.rglob(report.RUNS))


@pytest.fixture(scope="module")
def folder() -> Path:
    assert list((EVAL / report.RUNS).glob("*.json")), "the results that the tables come from are not there"
    return EVAL


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_tables_are_what_the_runs_give(folder: Path) -> None:
    found = report.load(folder)
    made = report.texts(found)
    assert len(made) >= 2
    for name, text in made.items():
        assert (folder / name).read_text(encoding="utf-8") == text, f"{folder / name} is stale: polyalign report"
    own = {path.name for path in folder.iterdir() if path.suffix in {".md", ".csv"}} - {"claims.md", "notes.md"}
    assert own == set(made)
    for page in {folder / "claims.md", folder / "notes.md"} & set(folder.iterdir()):
        text = page.read_text(encoding="utf-8")
        assert quotes.renewed(text, found) == text, f"{page} is stale: polyalign report"
    assert {path.name for path in (folder / "figures").iterdir()} == {
        name for comparison in found for name in figures.names(comparison).values()
    }


def test_every_figure_of_the_claims_is_in_the_tables(folder: Path) -> None:
    page = (folder / "claims.md").read_text(encoding="utf-8")
    assert page.count("| language | recipe | budget | strategy |") >= 6, "each claim has its figures"


def test_the_readme_shows_what_the_tables_say(folder: Path) -> None:
    page = (folder.parent / "README.md").read_text(encoding="utf-8")
    budgets = ("1k-pairs", "10k-pairs")
    known = {
        (method.strategy, comparison.budget): method
        for comparison in report.load(folder)
        if (comparison.lang, comparison.recipe) == ("sw", "starter") and comparison.budget in budgets
        for method in comparison.methods
    }
    shown = re.findall(r"^\| `([a-z-]+)` \| ([0-9.]+ %) ((?:\| [0-9.]+ ){4})\|$", page, re.MULTILINE)
    assert len(shown) >= 6
    for name, trained, cells in shown:
        methods = [known[name, budget] for budget in budgets]
        assert trained == f"{100 * methods[0].runs[0].trainable / methods[0].runs[0].total:.2f} %"
        said = [tables.percent(value) for e in methods for value in (e.scores[-1].value, e.carried_over or 0.0)]
        assert cells.strip("| ").split(" | ") == said, f"README.md, {name}: {said}"
