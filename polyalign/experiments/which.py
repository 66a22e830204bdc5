"""The page that says which strategy to use, for each language, number of pairs and time at hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from polyalign.evaluation import tables
from polyalign.experiments import figures, pages
from polyalign.experiments.significance import Comparison, Method
from polyalign.utils.text import for_markdown

NAME = "which.md"
_SECONDS = {"30 s": 30, "1 min": 60, "3 min": 180}


def page(found: Sequence[Comparison]) -> str:
    """Return the page, or "" if no comparison has two methods to choose from.

    Comparisons at a budget of time or memory are left out, since their methods are cut off by it.
    """
    chosen = [one for one in found if len(one.methods) > 1 and not one.of_compute]
    if not chosen:
        return ""
    clocks = ", ".join(dict.fromkeys(map(figures.clock, chosen)))
    limits = [f"at most {name}" for name in _SECONDS]
    header = ["language", "recipe", "pairs", *limits, "any time", "other languages kept best"]
    return (
        "# Which strategy to use\n\n"
        f"{pages.NOTICE}\n"
        "Look for the row whose language, towers (recipe) and number of pairs are most like yours, and for the column "
        "of the time that you have.\n\n"
        f"{tables.markdown(header, list(map(_row, chosen)))}\n"
        f"{_summary(chosen)}\n\n"
        "A cell has the method with the highest mean recall, in percent, of those that took at most this time, and its "
        f"recall. Time ({clocks}) is that of training, and of computing frozen features once. The last column has the "
        "method with the highest mean recall in languages that it was not trained on, with its recall in the own "
        "language and there. A method that is first here need not be significantly better than the second: the pages "
        "of the languages say what was tested.\n"
    )


def _row(comparison: Comparison) -> list[str]:
    within = [_best(comparison, seconds) for seconds in _SECONDS.values()]
    best = _best(comparison, float("inf"))
    assert best is not None
    known = [(recall, method) for method in comparison.methods if (recall := method.carried_over) is not None]
    kept = ""
    if known:
        recall, method = max(known, key=lambda pair: pair[0])
        kept = f"{_cell(method)}, others {tables.percent(recall)}"
    whole = f"{_cell(best)}, {tables.duration(_cost(best))}"
    cells = [comparison.recipe, comparison.budget, *("" if one is None else _cell(one) for one in within), whole, kept]
    return [pages.language_link(comparison.lang), *map(for_markdown, cells)]


def _summary(found: Sequence[Comparison]) -> str:
    """Count in how many rows each method is first."""
    sentences = []
    for what, seconds in (("within 1 min", _SECONDS["1 min"]), ("in any time", float("inf"))):
        first = Counter(best.name for one in found if (best := _best(one, seconds)) is not None)
        if first:
            counts = ", ".join(f"{name} ({count})" for name, count in first.most_common())
            sentences.append(f"{what}, in {tables.counted(first.total(), 'row')}, {counts}")
    return f"Highest mean recall: {for_markdown('; '.join(sentences))}."


def _best(comparison: Comparison, seconds: float) -> Method | None:
    """Return the method with the highest mean recall that took at most so many seconds; None if all took longer."""
    quick = [method for method in comparison.methods if _cost(method) <= seconds]
    return max(quick, key=_recall, default=None)


def _cost(method: Method) -> float:
    return method.mean(lambda run: run.cost_seconds)


def _recall(method: Method) -> float:
    return method.scores[-1].value


def _cell(method: Method) -> str:
    return f"{method.name} {tables.percent(_recall(method))}"
