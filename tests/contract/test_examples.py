"""The walks in ``examples/`` run from the first line to the last."""

from __future__ import annotations

import os
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from polyalign import cli

EXAMPLES = Path(__file__).parents[2] / "examples"
WALKS = sorted(EXAMPLES.glob("*.sh"))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POLYALIGN_CACHE", str(tmp_path / "cache"))
    return tmp_path


def lines(walk: Path) -> list[list[str]]:
    """Return the commands of a walk as words."""
    text = walk.read_text(encoding="utf-8").replace('"$(dirname "$0")/', f'"{EXAMPLES}/')
    words = (shlex.split(line, comments=True) for line in text.splitlines())
    return [one for one in words if one and one[0] != "set"]


def test_there_are_walks():
    assert WALKS


@pytest.mark.parametrize("walk", WALKS, ids=lambda walk: walk.stem)
def test_every_command_of_a_walk_succeeds(walk, monkeypatch):
    out = ""
    for program, *words in lines(walk):
        if program == "python":
            monkeypatch.setattr(sys, "argv", words)
            runpy.run_path(words[0], run_name="__main__")
            continue
        assert program == "polyalign"
        done = CliRunner().invoke(cli.app, words)
        assert done.exit_code == 0, (words, done.output, done.exception)
        out = done.stdout
    found = [line.split()[-1] for line in out.splitlines()]
    assert len(found) == 5
    assert all(Path(photo).is_file() for photo in found)


@pytest.mark.repeated
@pytest.mark.parametrize("walk", WALKS, ids=lambda walk: walk.stem)
def test_a_walk_runs_in_a_shell(walk, folder):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    assert shutil.which("polyalign", path=path)
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(EXAMPLES.parent)}
    done = subprocess.run(["sh", walk], env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("photos/images/") == 5
