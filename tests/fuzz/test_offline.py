"""``--offline`` with names of the hub: one line, no request, and so no retries (``harness.SECONDS`` is the limit)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPO
from tests.fuzz.harness import Sandbox, sandbox
from tests.fuzz.test_options import COMMANDS

OFFLINE = {
    " ".join(path): command for path, command in COMMANDS if any("--offline" in param.opts for param in command.params)
}
TEXT, VISION, DATASET = "someone/some-text-tower", "timm/some_vision_tower.in1k", "someone/some-dataset"
HUB = ("--data", "hub", "--set", f"source.dataset={DATASET}")

# What each command takes that would be fetched from the hub: text towers, vision towers, models and datasets.
LINES: dict[str, list[tuple[str, ...]]] = {
    "train": [
        ("--lang", "en", "--set", f"text.model={TEXT}"),
        ("--lang", "en", "--set", f"vision.model={VISION}"),
        ("--lang", "en", *HUB),
        ("--lang", "en", "--parallel", f"hub:{DATASET}"),
        ("--from", "hub-run"),
    ],
    "distill": [
        ("--teacher", "hub-run", "--lang", "en", "--parallel", "captions"),
        ("--teacher", "run", "--lang", "en", "--parallel", f"hub:{DATASET}"),
    ],
    "repeat": [("text.toml", "--out", "again"), ("vision.toml", "--out", "again")],
    "interpolate": [("hub-run", "--alpha", "0.5")],
    "soup": [("hub-run", "hub-run")],
    "pretrain": [("--text-tower", TEXT, "--texts", "texts.txt", "--out", "tower")],
    "trim": [
        ("--lang", "en", "--text-tower", TEXT, "--out", "tower"),
        ("--lang", "en", "--text-tower", "x", "--out", "tower", *HUB),
    ],
    "compare": [("--lang", "en", "--strategies", "projection", *HUB)],
    "eval": [
        ("run", *HUB),
        ("hf:someone/some-model", "--lang", "en", "--data", "photos"),
        ("mclip:someone/some-model+ViT-B-32/openai", "--lang", "en", "--data", "photos"),
        ("open_clip:hf-hub:someone/some-model", "--lang", "en", "--data", "photos"),
        ("open_clip:ViT-B-32/openai", "--lang", "en", "--data", "photos"),
        ("open_clip:RN50/yfcc15m", "--lang", "en", "--data", "photos"),
    ],
    "zeroshot": [("run", DATASET, "--lang", "en"), ("hf:someone/some-model", "photos", "--lang", "en")],
    "retention": [("run", *HUB)],
    "data check": [("--lang", "en", *HUB), ("--lang", "en", "--set", f"text.model={TEXT}")],
    "data get": [("multi30k",), ("xtd", "--photos", "test"), ("imagenet",)],
    "data audit": [
        ("hub", "hub", "--lang", "en", "--candidate-set", f"dataset={DATASET}", "--reference-set", f"dataset={DATASET}")
    ],
    "leakage": [("hub", "photos", "--train-set", f"dataset={DATASET}")],
    "search": [("hf:someone/some-model", "red", "--images", "photos/images")],
    "export": [("hub-run", "--to", "onnx", "--out", "again")],
    "merge": [("hub-run", "--out", "again")],
    "card": [("hub-run",)],
    "memory": [("text.toml",), ("vision.toml",)],
    "plan": [("--lang", "en", *HUB)],
    "index build": [("hf:someone/some-model", "--images", "photos/images", "--out", "again")],
    "index update": [("no-index",)],
    "serve": [("no-index",)],
}


def test_every_command_with_the_option_is_here() -> None:
    assert OFFLINE
    assert LINES.keys() == OFFLINE.keys() - {"show"}, "show makes a page without what is not there"


@pytest.fixture(scope="module")
def box(world: Path) -> Iterator[Sandbox]:
    with sandbox(world) as made:
        resolved = (made.work / "run" / "recipe.toml").read_text(encoding="utf-8")
        for section, name in (("text", TEXT), ("vision", VISION)):
            before, _, after = resolved.partition(f"[{section}]\n")
            own = "\n".join(
                line for line in after.splitlines() if not line.startswith("model") or 'model = "' not in line
            )
            (made.work / f"{section}.toml").write_text(
                f'{before}[{section}]\nmodel = "{name}"\n{own}', encoding="utf-8"
            )
        shutil.copytree(made.work / "run", made.work / "hub-run")
        shutil.copy(made.work / "text.toml", made.work / "hub-run" / "recipe.toml")
        yield made


@pytest.mark.parametrize(
    ("command", "arguments"),
    [(command, line) for command, lines in LINES.items() for line in lines],
    ids=lambda part: str(part)[:60],
)
def test_it_is_refused_in_one_line_at_once(box: Sandbox, command: str, arguments: tuple[str, ...]) -> None:
    outcome = box.run(*command.split(), *arguments, "--offline", may_write=("again", "tower", "runs", "eval"))
    assert outcome.code == 2, outcome


_PROGRAM = """
import sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        print("asked the network:", event, arguments)

sys.addaudithook(refuse)
from polyalign.cli import main
main()
"""


@pytest.mark.parametrize(
    "arguments", [("train", *LINES["train"][0]), ("data", "check", *LINES["data check"][0])], ids=str
)
def test_the_option_alone_is_enough(box: Sandbox, arguments: tuple[str, ...]) -> None:
    """As a program of its own, in which no variable says that there is no network."""
    own = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
    paths = {"PYTHONPATH": str(REPO), "HOME": str(box.root / "home"), "POLYALIGN_CACHE": str(box.cache)}
    command = [sys.executable, "-c", _PROGRAM, *arguments, "--offline"]
    done = subprocess.run(
        command, cwd=box.work, env=own | paths, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2, done
    assert "asked the network" not in done.stdout, done
    assert "Traceback" not in done.stderr, done
    assert [line.startswith("error: ") for line in done.stderr.splitlines()].count(True) == 1, done
