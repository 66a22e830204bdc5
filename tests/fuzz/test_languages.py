"""Language files from a stranger: those of the package damaged, used by what reads the most of them."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import REPO
from tests.fuzz.harness import cases, sandbox
from tests.fuzz.mutate import toml

SHIPPED = [path for path in sorted((REPO / "langs").glob("*.toml")) if "[starter]" in path.read_text(encoding="utf-8")]
# A world of a few scenes, in which a damaged grammar speaks.
FEW = [f"{option}={part}_images=3" for option in ("--train-set", "--test-set") for part in ("train", "dev", "test")]


def test_languages_with_a_lexicon_are_found() -> None:
    assert len(SHIPPED) > 5


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
@cases(8)
@given(data=st.data())
def test_a_damaged_language_of_the_starter_world(world: Path, path: Path, data: st.DataObject) -> None:
    content = data.draw(toml(tomllib.loads(path.read_text(encoding="utf-8"))))
    with sandbox(world) as box:
        (box.work / "langs").mkdir()
        (box.work / "langs" / path.name).write_bytes(content)
        arguments = [word for part in FEW for word in part.split("=", 1)]
        box.run("leakage", "starter", "starter", "--train-lang", path.stem, "--test-lang", path.stem, *arguments)


@cases(40)
@given(data=st.data())
def test_a_damaged_language_in_a_recipe(world: Path, data: st.DataObject) -> None:
    table = tomllib.loads((REPO / "langs" / "sw.toml").read_text(encoding="utf-8"))
    table = {key: value for key, value in table.items() if key != "starter"} | {"recipe": {"text": {"max_tokens": 20}}}
    with sandbox(world) as box:
        (box.work / "langs").mkdir()
        (box.work / "langs" / "sw.toml").write_bytes(data.draw(toml(table)))
        command = data.draw(st.sampled_from((("train", "--out", "out"), ("data", "check"))))
        box.run(*command, "--lang", "sw", may_write=("out",), idle=True)
