"""Result files of unknown origin: a report of them writes only into its folder, and nothing in them is executed."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from polyalign.evaluation.results import LeftOut, Run
from polyalign.experiments import figures, report
from polyalign.utils.errors import UserError
from tests.unit.test_report import some_runs

HOSTILE = "../../evil|<script>`x`[a](javascript:b)**[red]$\\frac$\x1b[2J\u202e\n# =cmd|' /C calc'!A0"
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**62, 10**400, float("nan"), float("inf"), 1e308),
    *("", "/", "..", "../evil", "\x00", HOSTILE, [], {}, [[]], {"": None}, {"name": 5}),
)


def paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of each value in JSON; of a list only the first item."""
    if at:
        yield at
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths(inner, (*at, key))


def changed(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    """Return a copy of JSON with another value in one place."""
    key, *rest = at
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[key] = changed(value[key], tuple(rest), new) if rest else new
    return copy


def a_result() -> dict[str, Any]:
    tuned = {"optim.lr": (1e-3, 3e-3), "dev_mean_recall": ([0.1, 0.2], [None]), "part": (0.1, 0.3)}
    run = some_runs()[0].model_copy(update={"tuned": tuned, "retries": 1})
    raw: dict[str, Any] = json.loads(run.model_dump_json())
    return raw


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_any_value_in_any_place_gives_a_report_or_one_line_that_names_the_file(tmp_path, monkeypatch):
    raw = a_result()
    out = tmp_path / "a" / "b" / "out"
    other = some_runs()[2].model_copy(update={"seed": 7})
    other.save_json(out / report.RUNS / "other.json")
    path = out / report.RUNS / "one.json"

    def undrawn(found: Any, folder: Path) -> list[Path]:
        return [folder / name for comparison in found for name in figures.names(comparison).values()]

    monkeypatch.setattr(figures, "draw", undrawn)
    for number, at in enumerate(paths(raw)):
        for new in VALUES[number % 5 :: 5]:
            path.write_text(json.dumps(changed(raw, at, new)))
            drawn, told = [], "one.json"
            try:
                drawn = report.write(out)
            except UserError as error:
                told = str(error)
            assert "\n" not in told, (at, new)
            assert "one.json" in told or "remove one" in told, (at, new)
            assert all(out in one.parents and ".." not in one.parts for one in drawn), (at, new)
    assert {one.relative_to(tmp_path).parts[:3] for one in everything(tmp_path)} == {("a", "b", "out")}


def hostile() -> Run:
    """Return a run with a hostile text in each place that can have one."""
    raw = a_result()
    for at in paths(raw):
        place = raw
        for key in at[:-1]:
            place = place[key]
        if isinstance(place[at[-1]], str):
            try:
                new = changed(raw, at, HOSTILE)
                Run.model_validate(new)
                raw = new
            except ValueError:  # one of a few words, such as the towers
                continue
    raw["test"][1] |= {"lang": HOSTILE, "gallery": HOSTILE}
    raw["recipe"] |= {HOSTILE: HOSTILE, "train": {"max_memory_bytes": 5}}
    raw["versions"] = {HOSTILE: HOSTILE}
    raw["tuned"] = {HOSTILE: [HOSTILE]}
    return Run.model_validate(raw)


def test_hostile_texts_are_shown_and_do_nothing(tmp_path):
    run = hostile()
    assert {run.strategy, run.budget, run.device, run.test[0].gallery, run.test[1].lang} == {HOSTILE}
    out = tmp_path / "a" / "b" / "out"
    for seed, options in itertools.product((0, 1), ({}, {"x": HOSTILE})):
        recipe = {**run.recipe, **options}
        again = run.model_copy(update={"seed": seed, "recipe": recipe})
        again.save_json(out / report.RUNS / f"{seed}{len(options)}.json")
    fields = {key: getattr(run, key) for key in ("recipe", "lang", "strategy", "towers", "budget", "seed")}
    LeftOut(**fields, why=HOSTILE).save_json(out / report.LEFT_OUT / "0.json")
    written = report.write(out)
    assert {one.relative_to(tmp_path).parts[:3] for one in everything(tmp_path)} == {("a", "b", "out")}
    for path in written:
        assert path.is_file()
        if path.suffix == ".md":
            page = path.read_text(encoding="utf-8")
            assert "evil" in page
            assert not {char for char in page if ord(char) < 32} - {"\n"}
            for unsafe in ("<script", "](javascript", "\u202e", "\n# =cmd", " `x`"):
                assert unsafe not in page, path
            rows = [line.replace("\\|", "") for line in page.splitlines() if line.startswith("|")]
            assert len({line.count("|") for line in rows[:3]}) == 1
    (table,) = out.glob("*.csv")
    for row in csv.reader(table.read_text(encoding="utf-8").splitlines()):
        for cell in row:
            assert not cell.startswith(("=", "+", "@", "\t", "\r")), cell
            assert not cell.startswith("-") or float(cell) < 0


@pytest.mark.parametrize(
    "text",
    ["", "5", "[]", "null", "{}", "{", "\xff", "[" * 100_000, '{"a":' * 100 + "1" + "}" * 100, '{"recipe": NaN}'],
)
def test_a_file_that_is_no_result_is_one_line(text, tmp_path):
    path = tmp_path / report.RUNS / "one.json"
    path.parent.mkdir()
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"one\.json is not a run result: ") as caught:
        report.write(tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 3000


def test_a_page_that_is_not_of_a_report_is_not_replaced(tmp_path):
    for name in ("README.md", "sw.md"):
        some_runs()[0].save_json(tmp_path / name / report.RUNS / "one.json")
        (tmp_path / name / name).write_text("mine")
        before = everything(tmp_path / name)
        with pytest.raises(UserError, match="was not written by polyalign report: move it away"):
            report.write(tmp_path / name)
        assert everything(tmp_path / name) == before
