from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from PIL import Image

from polyalign.evaluation.results import Change, Retention, Run
from polyalign.experiments import figures, report
from polyalign.experiments.significance import comparisons
from polyalign.utils.errors import UserError
from tests.unit.test_results import a_retrieval
from tests.unit.test_significance import trained


def some_runs() -> list[Run]:
    other = a_retrieval(3.0).model_copy(update={"lang": "yo"})
    kept = Retention(sentences={"en-sw": Change(before=0.8, after=0.6)}, probe={"knn": Change(before=0.5, after=0.5)})
    return [
        trained("lilt", 0, 2.0, test=(a_retrieval(2.0), other), retention=kept),
        trained("full", 0, 1.0, tuned={"optim.lr": [1e-3, 3e-3]}, retries=1),
        trained("projection", 0, 9.0),
        trained("lilt", 0, 3.0, budget="1k-pairs", pairs=1000),
        trained("lilt", 0, 2.0, lang="xx"),
    ]


def saved(folder: Path, runs: list[Run]) -> Path:
    for number, run in enumerate(runs):
        run.save_json(folder / report.RUNS / f"{number}.json")
    return folder


def test_everything_comes_from_the_json_alone_and_is_the_same_again(tmp_path: Path) -> None:
    one, two = saved(tmp_path / "one", some_runs()), saved(tmp_path / "two", some_runs()[::-1])
    written = report.write(one)
    report.write(two)
    names = [path.relative_to(one) for path in written]
    assert {str(name) for name in names} >= {"README.md", "sw.md", "sw.csv", "xx.md", "xx.csv"}
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes()
    for png in one.glob("figures/*.png"):
        with Image.open(png) as image:
            assert image.width > 500
    assert len(list(one.glob("figures/*.png"))) == 6


def test_page_says_what_was_measured() -> None:
    page = report.texts(comparisons(some_runs()))["sw.md"]
    row = next(line for line in page.splitlines() if line.startswith("| **full**"))
    assert "211,204 (6.93 %)" in row
    assert "3 min 01 s" in row  # of processor time: the run was on a processor
    assert "Time (processor time over all threads)" in page
    chance = next(line for line in page.splitlines() if line.startswith("| chance"))
    assert chance.split(" | ")[3] == "2.5"
    assert page.index("### 1k-pairs") < page.index("### 10k-pairs")
    assert "Tuned on dev, never on test: `optim.lr` from 0.001, 0.003; chosen: 0.001." in page
    assert "Begun again because a worker died: full 1." in page
    assert "Nothing was tuned for this table; the recipe's learning rates: 0.001." in page
    assert "| lilt | 88.2 |" not in page


def test_knowledge_kept_and_transfer_are_shown() -> None:
    page = report.texts(comparisons(some_runs()))["sw.md"]
    row = next(
        line for line in page.splitlines() if line.startswith("| lilt") and "(6.93 %)" in line and "87.5" in line
    )
    other = 100 * a_retrieval(3.0).mean_recall.value
    assert row.endswith(f"| 87.5 | {other:.1f} |")  # 87.5 is the mean of 0.6 / 0.8 and 0.5 / 0.5
    assert "Knowledge kept: of what the towers could do before" in page
    assert "| strategy | yo |" in page


def test_csv_has_fractions() -> None:
    rows = list(csv.DictReader(io.StringIO(report.texts(comparisons(some_runs()))["sw.csv"])))
    assert [row["strategy"] for row in rows] == ["lilt", "full", "lilt", "projection"]
    best = rows[1]
    assert (best["budget"], best["best"], best["p_value"]) == ("10k-pairs", "1", "")
    assert 0 < float(best["mean_recall_low"]) <= float(best["mean_recall"]) <= float(best["mean_recall_high"]) <= 1
    assert rows[3]["best"] == "0"
    assert float(rows[3]["p_value"]) < 0.05


def test_index_links_every_language() -> None:
    index = report.texts(comparisons(some_runs()))["README.md"]
    assert "[Swahili (sw)](sw.md)" in index
    assert "[xx](xx.md)" in index
    assert "| full |" in index


def test_every_line_of_a_table_has_as_many_cells() -> None:
    for name, text in report.texts(comparisons(some_runs())).items():
        if name.endswith(".md"):
            tables = [block for block in text.split("\n\n") if block.startswith("|")]
            assert tables
            for table in tables:
                assert len({line.count(" | ") for line in table.strip().splitlines()}) == 1


def test_figures_a_page_shows_are_drawn(tmp_path: Path) -> None:
    found = comparisons(some_runs())
    report.write(saved(tmp_path, some_runs()))
    for comparison in found:
        for name in figures.names(comparison).values():
            assert (tmp_path / "figures" / name).is_file()
            assert f"figures/{name}" in report.texts(found)[f"{comparison.lang}.md"]


def test_no_runs_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are no results in"):
        report.write(tmp_path)


def test_seeds_trained_before_and_after_an_option_was_added_are_one_entry(tmp_path: Path) -> None:
    before, after = trained("lilt", 0, 2.0), trained("lilt", 1, 2.0)
    after.recipe["optim"]["grad_clip"] = 1.0
    (comparison,) = report.load(saved(tmp_path, [before, after]))
    assert [len(method.runs) for method in comparison.methods] == [2]
