"""The page that says which strategy to use."""

from __future__ import annotations

from polyalign.experiments import which
from polyalign.experiments.significance import comparisons
from tests.unit.test_results import a_retrieval
from tests.unit.test_significance import trained


def rows(runs) -> list[list[str]]:
    lines = which.page(comparisons(runs)).splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| [")]


def test_the_best_of_those_that_are_quick_enough_is_named():
    other = a_retrieval(3.0).model_copy(update={"lang": "yo"})
    runs = [
        trained("projection", 0, 9.0, cpu_seconds=30.0, seconds=1.0, test=(a_retrieval(9.0), other)),
        trained("lilt", 0, 3.0, cpu_seconds=59.0, seconds=1.0),
        trained("lit", 0, 1.0, cpu_seconds=200.0, seconds=1.0),
    ]
    recall = {run.strategy: f"{run.strategy} {100 * run.test[0].mean_recall.value:.1f}" for run in runs}
    assert recall["projection"].split()[1] < recall["lilt"].split()[1] < recall["lit"].split()[1]
    [(lang, _, pairs, *cells)] = rows(runs)
    assert (lang, pairs) == ("[Swahili (sw)](sw.md)", runs[0].budget)
    others = f"{recall['projection']}, others {100 * other.mean_recall.value:.1f}"
    assert cells == [recall["projection"], recall["lilt"], recall["lilt"], f"{recall['lit']}, 3 min 20 s", others]
    page = which.page(comparisons(runs))
    assert "within 1 min, in 1 row, lilt (1); in any time, in 1 row, lit (1)." in page


def test_a_table_of_one_method_leaves_nothing_to_choose():
    assert which.page(comparisons([trained("lilt", 0, 2.0), trained("lilt", 1, 3.0)])) == ""


def test_where_all_took_longer_the_cell_is_empty():
    runs = [trained(name, 0, noise, cpu_seconds=1000.0) for name, noise in (("lilt", 1.0), ("full", 2.0))]
    [(*_, thirty, one, three, whole, kept)] = rows(runs)
    assert (thirty, one, three, kept) == ("", "", "", "")
    assert whole.startswith("lilt ")
