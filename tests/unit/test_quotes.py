from __future__ import annotations

from pathlib import Path

import pytest

from polyalign.experiments import quotes, report
from polyalign.experiments.significance import comparisons
from polyalign.utils.errors import UserError
from tests.unit.test_report import saved, some_runs

PAGE = """# What I found

| language | weather |
| --- | --- |
| sw | 26.1 |

| language | recipe | budget | strategy | mean recall | of full | other languages | retention | seeds |
| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: |
| sw | starter | 10k-pairs | lilt | 0.0 | 0 % | 0.0 | 0.0 | 9 |
| sw | starter | 10k-pairs | full |  |  |  |  |  |
| sw | starter | 1k-pairs | lilt | | | | | |

That is all."""


def cells(page: str) -> dict[tuple[str, ...], list[str]]:
    rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if "starter" in line)
    return {tuple(row[2:4]): row[4:] for row in rows}


def test_quoted_figures_become_those_of_the_tables_and_the_rest_stays() -> None:
    found = comparisons(some_runs())
    page = quotes.renewed(PAGE, found)
    first = next(comparison for comparison in found if (comparison.lang, comparison.budget) == ("sw", "10k-pairs"))
    lilt, full = (next(e for e in first.methods if e.strategy == name) for name in ("lilt", "full"))
    recall, best = (100 * method.scores[-1].value for method in (lilt, full))
    assert lilt.carried_over is not None
    assert 0 < recall < best
    row = cells(page)["10k-pairs", "lilt"]
    # Sentences kept 0.6 of 0.8, the probe all: on average 87.5 %.
    assert row == [f"{recall:.1f}", f"{100 * recall / best:.0f} %", f"{100 * lilt.carried_over:.1f}", "87.5", "1"]
    assert cells(page)["10k-pairs", "full"][1:] == ["100 %", "", "", "1"]
    assert cells(page)["1k-pairs", "lilt"][1] == "", "nothing was trained whole on so few pairs"
    own = [line for line in PAGE.splitlines() if "starter" not in line]
    assert [line for line in page.splitlines() if "starter" not in line] == own
    assert quotes.renewed(page, found) == page


def test_a_table_that_ends_the_page_is_renewed_to_its_last_row() -> None:
    page = PAGE[: PAGE.index("\n\nThat is all.")]
    assert cells(quotes.renewed(page, comparisons(some_runs())))["1k-pairs", "lilt"][0] != ""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("1k-pairs | lilt", "1k-pairs | lit", "page: there is no result for sw, starter, 1k-pairs, lit"),
        ("of full", "beauty", 'unknown column "beauty" .known: .*mean recall'),
    ],
)
def test_what_was_not_measured_is_not_quoted(old: str, new: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        quotes.renewed(PAGE.replace(old, new), comparisons(some_runs()))


def test_the_standing_of_a_method_can_be_quoted() -> None:
    page = PAGE.replace("of full", "against the best")
    assert [row[1] for row in cells(quotes.renewed(page, comparisons(some_runs()))).values()] == [
        "not tested", "highest", "highest"
    ]  # fmt: skip


def test_the_report_renews_the_pages_of_its_folder(tmp_path: Path) -> None:
    folder = saved(tmp_path, some_runs())
    mine = folder / "mine.md"
    mine.write_text(PAGE, encoding="utf-8")
    assert mine in report.write(folder)
    assert "87.5" in mine.read_text(encoding="utf-8")


def test_a_page_that_cannot_be_renewed_stays_as_it_is_and_costs_no_table(tmp_path: Path) -> None:
    folder = saved(tmp_path, some_runs())
    mine = folder / "mine.md"
    wrong = PAGE.replace("1k-pairs | lilt", "1k-pairs | lora")
    mine.write_text(wrong, encoding="utf-8")
    with pytest.raises(UserError, match=r"mine\.md: there is no result"):
        report.write(folder)
    assert mine.read_text(encoding="utf-8") == wrong
    assert (folder / "sw.md").is_file()
    mine.write_bytes("señal".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        report.write(folder)
