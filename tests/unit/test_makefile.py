from __future__ import annotations

import os
import shutil
import subprocess

import pytest

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def steps(repo, tmp_path, target: str, *options: str, uv: str | None = None) -> str:
    """Return what make would run for a target in a new environment, with a uv of this content on the path or none."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("make", "sh"):
        (tools / name).symlink_to(shutil.which(name))
    if uv is not None:
        (tools / "uv").write_text(f"#!/bin/sh\n{uv}\n", encoding="utf-8")
        (tools / "uv").chmod(0o755)
    command = ["make", "-n", target, f"VENV={tmp_path / 'venv'}", *options]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    done = subprocess.run(
        command, cwd=repo, env={**environment, "PATH": str(tools)}, capture_output=True, text=True, check=True
    )
    return done.stdout.replace(str(tmp_path / "venv"), ".venv")


@pytest.mark.parametrize(("target", "what"), [("demo", "."), ("lint", "'.[dev]'"), ("bench", "'.[peers]'")])
def test_uv_installs_where_it_is_found(target, what, repo, tmp_path):
    told = steps(repo, tmp_path, target, uv="echo uv 1.0")
    assert "uv venv --quiet --seed --allow-existing --python '>=3.11' .venv\n" in told
    assert f"--editable {what}\n" in told
    assert told.count("uv pip install --python .venv/bin/python ") == told.count("--editable")
    assert "-m pip" not in told


@pytest.mark.parametrize("uv", [None, "exit 1"], ids=["absent", "a placeholder that does not start"])
def test_pip_installs_otherwise(uv, repo, tmp_path):
    told = steps(repo, tmp_path, "demo", uv=uv)
    assert '"$python" -m venv .venv' in told
    assert ".venv/bin/python -m pip install --disable-pip-version-check --editable .\n" in told
    assert "uv " not in told


def test_uv_can_be_turned_off_and_takes_the_python_that_is_named(repo, tmp_path):
    assert "uv " not in steps(repo, tmp_path, "demo", "UV=", uv="echo uv 1.0")
    shutil.rmtree(tmp_path / "tools")
    assert "--python /opt/python .venv" in steps(repo, tmp_path, "demo", "PYTHON=/opt/python", uv="echo uv 1.0")
