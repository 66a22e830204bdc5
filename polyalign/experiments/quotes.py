"""Results quoted in pages that are written by hand.

A table quotes results if its first columns are language, recipe, budget and strategy, which identify a method. Its
other columns are results of the method (see ``COLUMNS``), updated with each report. The rest of the page is kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from polyalign.evaluation import tables
from polyalign.experiments.significance import Comparison, Method
from polyalign.utils import storage
from polyalign.utils.errors import UserError
from polyalign.utils.text import for_markdown

_KEYS = ("language", "recipe", "budget", "strategy")
_TABLE = re.compile(r"(?:^\|.*\|[ \t]*(?:\n|\Z))+", re.MULTILINE)


def renew(path: Path, found: Sequence[Comparison]) -> None:
    """Update the quoted results of a page.

    Raises:
        UserError: the page is not UTF-8 text, or quotes a result that does not exist; it is then left unchanged.
    """
    try:
        page = path.read_bytes().decode()  # its line ends are kept
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: convert it, or move it to another folder") from error
    text = renewed(page, found, str(path))
    if text != page:
        storage.write_text(path.resolve(), text)  # a link is kept


def renewed(page: str, found: Sequence[Comparison], name: str = "the page") -> str:
    """Return the text of a page with its quoted results updated.

    Raises:
        UserError: there is no result for a row, or a column is unknown; the message has ``name``.
    """
    return _TABLE.sub(lambda match: _table(match[0], found, name), page)


def _table(text: str, found: Sequence[Comparison], name: str) -> str:
    header, *rest = ([cell.strip() for cell in line.strip(" \t|").split("|")] for line in text.splitlines())
    if tuple(header[: len(_KEYS)]) != _KEYS or not rest:
        return text
    rule, *rows = rest
    columns = header[len(_KEYS) :]
    if unknown := [column for column in columns if _column(column) is None]:
        raise UserError(f'{name}: unknown column "{unknown[0]}" (known: {", ".join(COLUMNS)}, in LANG)')
    methods = {
        tuple(map(for_markdown, (c.lang, c.recipe, c.budget, method.name))): (c, method)
        for c in found
        for method in c.methods
    }
    lines = [header, rule]
    for key in (tuple(row[: len(_KEYS)]) for row in rows):
        if key not in methods:
            raise UserError(f"{name}: there is no result for {', '.join(key)}: train it, or remove the row")
        values = (show(*methods[key]) for column in columns if (show := _column(column)) is not None)
        lines.append([*key, *values])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _column(name: str) -> Callable[[Comparison, Method], str] | None:
    """Return what shows a column: one of ``COLUMNS``, or ``in LANG``, the mean recall in another language."""
    if name in COLUMNS or not name.startswith("in "):
        return COLUMNS.get(name)
    return lambda _, method: tables.percent(method.recall_in(name.removeprefix("in ")))


def _of_full(comparison: Comparison, method: Method) -> str:
    """Return mean recall as a percentage of that of full training of both towers."""
    full = next((other for other in comparison.methods if other.name == "full"), None)
    of = 0 if full is None else full.scores[-1].value
    return f"{100 * method.scores[-1].value / of:.0f} %" if of else ""


_STANDINGS = {"best": "highest", "level": "not significantly different", "worse": "worse", "untested": "not tested"}
COLUMNS: dict[str, Callable[[Comparison, Method], str]] = {
    "seeds": lambda _, method: str(len(method.runs)),
    "trained": lambda _, method: f"{100 * method.runs[0].trainable / method.runs[0].total:.2f} %",
    "mean recall": lambda _, method: tables.percent(method.scores[-1].value),
    "interval": lambda _, method: " to ".join(map(tables.percent, (method.scores[-1].low, method.scores[-1].high))),
    "t→i R@1": lambda _, method: tables.percent(method.scores[0].value),
    "of full": _of_full,
    "other languages": lambda _, method: tables.percent(method.carried_over),
    "retention": lambda _, method: tables.percent(method.retention),
    "against the best": lambda _, method: _STANDINGS[method.standing],
    "parallel sentences": lambda _, method: f"{method.runs[0].parallel_rows:,}",
    "seconds": lambda _, method: f"{method.mean(lambda run: run.cost_seconds):,.0f}",
}
"""The columns that a table can quote, averaged over seeds; shares in percent."""
