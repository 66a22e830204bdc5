"""What the cases start from, made once a session: a small run, its data and its results."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import tomli_w

from polyalign.experiments import report, run_folders
from tests import tiny
from tests.fuzz.harness import sandbox
from tests.unit.test_significance import trained

ROWS = {"train": 8, "dev": 4, "test": 4}


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder: data in ``photos``, a finished run in ``run``, results in ``eval``, a recipe ``starter``.

    The recipe ``starter``, which comes before the shipped one, has tiny towers and these photos.
    """
    folder = tmp_path_factory.mktemp("world")
    _photos(folder / "photos")
    raw = tiny.settings(
        optim={"epochs": 1, "batch_size": 8},
        train={"evals": 1},
        source={"name": "folder", "root": "photos"},
        test={"knowledge": False},
    )
    del raw["name"], raw["lang"]
    (folder / "recipes").mkdir()
    (folder / "recipes" / "starter.toml").write_text(tomli_w.dumps({**raw, "languages": ["en"]}), encoding="utf-8")
    (folder / "texts.txt").write_text("red green\nblue white\n" * 20, encoding="utf-8")
    for number, name in enumerate(("lilt", "full")):
        run = trained(name, 0, 1.0 + number, lang="en")
        run.save_json(folder / "eval" / report.RUNS / f"{name}.json")
    with sandbox(folder) as box:
        # Also what libraries keep for themselves, in the home folder of the tests, is made here.
        box.run("train", "--lang", "en", "--out", "run", "--json", may_write=("run",))
        shutil.copytree(box.work / "run", folder / "run")
        box.run("report", may_write=("eval",))
        for command in (
            ("retention", "run"),
            ("data", "check", "--lang", "en"),
            ("search", "run", "red", "--images", "photos"),
        ):
            box.run(*command)
    assert run_folders.train.RESULT in {path.name for path in (folder / "run").iterdir()}
    return folder


def _photos(folder: Path) -> None:
    """Copy the first images of each split of the quarters, and their captions."""
    (folder / "images").mkdir(parents=True)
    with (tiny.data() / "captions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with (folder / "captions.csv").open("w", encoding="utf-8", newline="") as file:
        sheet = csv.writer(file)
        sheet.writerow(rows[0])
        for split, count in ROWS.items():
            for row in [row for row in rows if row["split"] == split][:: tiny.CAPTIONS_PER_IMAGE][:count]:
                shutil.copy(tiny.data() / "images" / row["image"], folder / "images")
                sheet.writerow(row.values())
