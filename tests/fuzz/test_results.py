"""Results from a stranger: the JSON files that ``report`` draws tables and figures from, damaged."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.harness import Sandbox, cases, sandbox
from tests.fuzz.mutate import edited, json_file, mutated, strings

RESULT = Path("eval", "runs", "lilt.json")


def report(box: Sandbox, *, idle: bool = True) -> None:
    """Write the report; ``idle`` leaves out the figures, which take a second."""
    box.run("report", may_write=("eval",), idle=idle)


@cases(60)
@given(data=st.data())
def test_an_edited_result(world: Path, data: st.DataObject) -> None:
    base = json.loads((world / RESULT).read_text(encoding="utf-8"))
    content = data.draw(json_file(base))
    with sandbox(world) as box:
        (box.work / RESULT).write_bytes(content)
        report(box)


@cases(40)
@given(data=st.data())
def test_damaged_bytes(world: Path, data: st.DataObject) -> None:
    content = data.draw(mutated((world / RESULT).read_bytes()))
    with sandbox(world) as box:
        (box.work / RESULT).write_bytes(content)
        report(box)


FIELDS = ("lang", "strategy", "budget", "device", "recipe", "versions", "gallery")


@cases(50)
@given(field=st.sampled_from(FIELDS), text=strings, whole=st.booleans())
def test_any_text_in_a_result(world: Path, field: str, text: str, whole: bool) -> None:
    """Names in a result become file names, table cells and figure titles."""
    record = json.loads((world / RESULT).read_text(encoding="utf-8"))
    if field == "gallery":
        record["test"][0]["gallery"] = text
    elif field in ("recipe", "versions"):
        record[field] = {**record[field], "name": text, text: text}
    else:
        record[field] = text
    with sandbox(world) as box:
        (box.work / RESULT).write_text(json.dumps(record), encoding="utf-8")
        if whole:  # alone in the report
            (box.work / RESULT.parent / "full.json").unlink()
        report(box)


@cases(10)
@given(data=st.data())
def test_figures_of_an_edited_result(world: Path, data: st.DataObject) -> None:
    record = data.draw(edited(json.loads((world / RESULT).read_text(encoding="utf-8")), most=1))
    with sandbox(world) as box:
        (box.work / RESULT).write_text(json.dumps(record), encoding="utf-8")
        report(box, idle=False)


@cases(40)
@given(data=st.data())
def test_a_page_that_quotes(world: Path, data: st.DataObject) -> None:
    page = "# Page\n\n| language | recipe | budget | strategy | R@1 |\n|---|---|---|---|---:|\n"
    page += "| en | starter | 10k-pairs | lilt | 1.0 |\n"
    content = data.draw(mutated(page.encode()))
    with sandbox(world) as box:
        (box.work / "eval" / "own.md").write_bytes(content)
        report(box)
