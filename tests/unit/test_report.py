from __future__ import annotations

import csv
import io
from pathlib import Path

from PIL import Image

from polyalign.evaluation.results import Change, Retention, Run
from polyalign.experiments import figures, report
from polyalign.experiments.significance import comparisons
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


def seeded_runs(seeds: int = 3) -> list[Run]:
    noises = {"full": (1.4, 1.5, 1.6), "lilt": (1.6, 1.4, 1.7), "projection": (9.0, 9.1, 9.2)}
    return [trained(name, seed, noises[name][seed]) for name in noises for seed in range(seeds)]


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
    assert "3 min 01 s" in row  # CPU time: the run was on a CPU
    assert "Time (processor time over all threads)" in page
    chance = next(line for line in page.splitlines() if line.startswith("| chance"))
    assert chance.split(" | ")[3] == "2.5"
    assert page.index("### 1k-pairs") < page.index("### 10k-pairs")
    assert "Tuned on dev, full: `optim.lr` from 0.001, 0.003; chosen: 0.001." in page
    assert "Restarts after a worker died: full 1." in page
    assert "Nothing was tuned for this table; learning rates of the recipe: 0.001." in page
    assert "| lilt | 88.2 |" not in page


def test_retention_and_transfer_are_shown() -> None:
    page = report.texts(comparisons(some_runs()))["sw.md"]
    row = next(
        line for line in page.splitlines() if line.startswith("| lilt") and "(6.93 %)" in line and "87.5" in line
    )
    other = 100 * a_retrieval(3.0).mean_recall.value
    assert row.endswith(f"| 87.5 | {other:.1f} |")  # 87.5 is the mean of 0.6 / 0.8 and 0.5 / 0.5
    assert "Retention: performance of the towers after training" in page
    assert "| strategy | yo |" in page


def test_csv_has_fractions() -> None:
    rows = list(csv.DictReader(io.StringIO(report.texts(comparisons(some_runs()))["sw.csv"])))
    assert [row["strategy"] for row in rows] == ["lilt", "full", "lilt", "projection"]
    best = rows[1]
    assert (best["budget"], best["best"], best["p_value"]) == ("10k-pairs", "1", "")
    assert 0 < float(best["mean_recall_low"]) <= float(best["mean_recall"]) <= float(best["mean_recall_high"]) <= 1
    assert [rows[3][name] for name in ("best", "standing", "p_value")] == ["0", "untested", ""]


def test_index_links_every_language() -> None:
    index = report.texts(comparisons(some_runs()))["README.md"]
    assert "[Swahili (sw)](sw.md)" in index
    assert "[xx](xx.md)" in index
    assert "| full |" in index


def test_one_seed_is_never_called_significant_and_the_page_says_why() -> None:
    texts = report.texts(comparisons(seeded_runs(seeds=1)))
    page = texts["sw.md"]
    assert "intervals over test images only." in page
    assert "test images and seeds" not in page
    assert "? is not tested against it: a test needs two or more seeds of both methods" in page
    assert "significantly" not in page
    assert sum(line.startswith(("| lilt ? |", "| full ? |", "| projection ? |")) for line in page.splitlines()) == 2
    assert "| none | none | lilt; projection |" in texts["README.md"] or "| none | none | full;" in texts["README.md"]
    rows = list(csv.DictReader(io.StringIO(texts["sw.csv"])))
    assert [row["standing"] for row in rows] == ["best", "untested", "untested"]
    assert {row["intervals_over"] for row in rows} == {"test images only"}


def test_several_seeds_tell_worse_from_level() -> None:
    texts = report.texts(comparisons(seeded_runs()))
    page = texts["sw.md"]
    assert "intervals over test images and seeds." in page
    assert "not tested" not in page
    marks = [line.split(" | ")[0] for line in page.splitlines() if line.startswith(("| lilt", "| full", "| proj"))]
    assert sorted(marks)[-1] == "| projection"
    assert sum(mark.endswith(" =") for mark in marks) == 1
    rows = list(csv.DictReader(io.StringIO(texts["sw.csv"])))
    assert [row["standing"] for row in rows] == ["best", "level", "worse"]
    assert float(rows[2]["p_value"]) < 0.05 <= float(rows[1]["p_value"])
    assert float(rows[2]["difference_to_best_high"]) < 0 < float(rows[1]["difference_to_best_high"])


def test_a_table_of_methods_with_one_and_several_seeds_says_which_is_which() -> None:
    runs = [run for run in seeded_runs() if run.strategy != "projection" or run.seed == 0]
    page = report.texts(comparisons(runs))["sw.md"]
    assert "intervals over test images and seeds (projection: over test images only)." in page
    assert "? is not tested" in page
    assert "\n| projection ? |" in page


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


def test_seeds_trained_before_and_after_an_option_was_added_are_one_entry(tmp_path: Path) -> None:
    before, after = trained("lilt", 0, 2.0), trained("lilt", 1, 2.0)
    after.recipe["optim"]["grad_clip"] = 1.0
    (comparison,) = report.load(saved(tmp_path, [before, after]))
    assert [len(method.runs) for method in comparison.methods] == [2]
