"""The command line where its surroundings fail or are hostile: names, pipes, disks, signals, two at once."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from polyalign.cli import options
from polyalign.experiments import report
from polyalign.experiments import run_folders as runs
from polyalign.utils.errors import UserError
from polyalign.utils.lock import locked
from polyalign.utils.parent import ENDS_WITH_STDIN
from tests import tiny
from tests.unit.test_report import saved, some_runs

HOSTILE = "[red]:smile: 'x' $(y)\x1b[2J\x9b31m\u202e\n[link=z]"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / HOSTILE / "run"
    runs.train_into(folder, tiny.resolved(optim={"epochs": 1}), resume=False, overwrite=False)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder with a hostile name, of photos with hostile names."""
    folder = shutil.copytree(tiny.data(), tmp_path_factory.mktemp("data") / HOSTILE)
    for photo in list((folder / "images").iterdir())[:3]:
        shutil.copy(photo, photo.with_name(f"{HOSTILE}{photo.name}"))
    return folder


def safe(text: str) -> str:
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text), text
    return text


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    "words",
    [
        ("search", "{run}", "red", "--images", "{data}/images", "--top", "200"),
        ("eval", "{run}", "--data", "{data}"),
        ("eval", "{run}", "--data", "{data}", "--task", "text-by-retrieval"),
        ("zeroshot", "{run}", "{classes}", "--lang", "en", "--prompt", "[b]{{}}\x1b[2J"),
        ("retention", "{run}", "--lang", "en,de"),
        ("strategies", "--recipe", "{recipe}"),
        ("train", "--lang", "en", "--recipe", "{recipe}", "--out", "{out}"),
        ("cache", "list"),
    ],
    ids=lambda words: " ".join(words[:1] + words[4:6:2]),
)
def test_hostile_names_are_shown_as_they_are(words, as_json, run, trained, data, tmp_path):
    places = {"run": trained, "data": data, "out": tmp_path / HOSTILE / "run", "classes": tmp_path / "classes"}
    places["recipe"] = tiny.write(tmp_path / f"{HOSTILE}.toml", optim={"epochs": 1})
    for number in range(2):
        photos = tmp_path / "classes" / f"{HOSTILE}{number}"
        photos.mkdir(parents=True)
        shutil.copy(next((tiny.data() / "images").iterdir()), photos)
    code, out, err = run(*(word.format(**places) for word in words), *["--json"] * as_json)
    assert code == 0, err
    safe(err)
    if as_json:
        json.loads(safe(out))
    else:
        safe(out)
        if words[0] not in ("retention", "cache"):
            assert any(part in out for part in ("[red]", "[b]", "[link=z]"))
        assert "\N{SMILING FACE WITH OPEN MOUTH AND SMILING EYES}" not in out


def test_numbers_that_json_does_not_have_are_null(capsys):
    options.print_json({"a": [float("nan"), float("inf"), 1.5], "b": HOSTILE, "c": "\ud800"})
    assert json.loads(safe(capsys.readouterr().out)) == {"a": [None, None, 1.5], "b": HOSTILE, "c": "\ud800"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train", "--lang", "en", "--out", ""), "--out is empty: give a value, or leave it out"),
        (("train", "--lang", "", "--out", "x"), "--lang is empty"),
        (("train", "--lang", "en", "--out="), "--out is empty"),
        (("compare", "--out", " "), "--out is empty"),
        (("report", "--out", ""), "--out is empty"),
        (("report", "--out", "a\0b"), "--out is empty"),
        (("search", "run", "", "--images", "x"), "an argument is empty"),
        (("compare", "--lang", ","), '"," is an empty list'),
    ],
)
def test_empty_values_are_refused(words, said, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert not list(tmp_path.iterdir())


def python(repo: Path, *words: str, code: str = "from polyalign.cli import main; main()", **options: Any) -> Any:
    given = {"stderr": subprocess.PIPE, "env": {**os.environ, "PYTHONPATH": str(repo)}, **options}
    return subprocess.run([sys.executable, "-c", code, *words], text=True, check=False, **given)


def test_a_reader_that_has_ended_is_no_error(repo):
    for code in ("", "sys.stdout.reconfigure(line_buffering=True);"):  # fails at the end, or at once
        read, write = os.pipe()
        os.close(read)
        done = python(repo, "datasets", code=f"import sys;{code}from polyalign.cli import main; main()", stdout=write)
        os.close(write)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_one_line(repo):
    with Path("/dev/full").open("w") as full:
        done = python(repo, "datasets", stdout=full)
    assert (done.returncode, done.stderr) == (2, "error: standard output: No space left on device\n")


def test_ctrl_c_in_any_command_is_code_130_without_a_traceback(run, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for place in ("polyalign.data.catalogue.infos", "polyalign.cli.app"):
        with monkeypatch.context() as patched:
            patched.setattr(place, interrupted)
            code, out, err = run("datasets")
            assert (code, out, err) == (130, "", "")


def test_a_process_whose_parent_has_died_is_interrupted(repo):
    code = "import time; from polyalign.utils.parent import end_with_parent; end_with_parent(); time.sleep(60)"
    environment = {**os.environ, "PYTHONPATH": str(repo), ENDS_WITH_STDIN: "1"}
    done = python(repo, code=code, env=environment, stdin=subprocess.DEVNULL, timeout=30)
    assert done.returncode in (-signal.SIGINT, 130)


# Disks


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EFBIG])
@pytest.mark.parametrize("name", ["README.md", "sw.csv", "png", "own.md"])
def test_a_report_that_cannot_be_written_is_one_line_that_names_the_file(name, number, run, tmp_path, monkeypatch):
    saved(tmp_path, some_runs()[:2])
    keys = "| language | recipe | budget | strategy | seeds |\n| --- | --- | --- | --- | --- |\n"
    (tmp_path / "own.md").write_text(f"{keys}| sw | starter | 10k-pairs | lilt |  |\n")
    replace = Path.replace

    def full(path: Path, target: Path) -> Path:
        if str(target).endswith(name):
            raise OSError(number, os.strerror(number), str(path))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", full)
    code, out, err = run("report", "--out", tmp_path)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: cannot write {tmp_path}")
    assert os.strerror(number) in err
    assert not list(tmp_path.rglob("*.polyalign-partial"))


def test_a_figure_on_a_full_disk_leaves_the_old_one(tmp_path, repo):
    saved(tmp_path, some_runs()[:1])
    report.write(tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    limit = f"""
        import resource, sys
        from pathlib import Path
        from polyalign.evaluation.results import Run
        from polyalign.experiments import figures, report
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
        figures.draw(report.load(Path({str(tmp_path)!r})), Path({str(tmp_path)!r}) / "figures")
    """
    done = python(repo, code="\n".join(line.strip() for line in limit.splitlines()))
    assert "UserError: cannot write" in done.stderr
    assert {path: path.read_bytes() for path in (tmp_path / "figures").iterdir()} == before


def test_a_disk_error_anywhere_is_one_line(run, monkeypatch, tmp_path):
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "photos"))

    monkeypatch.setattr("polyalign.serving.search.search", denied)
    (tmp_path / "run").mkdir()
    code, out, err = run("search", tmp_path / "run", "red", "--images", tmp_path)
    assert (code, out, err) == (2, "", f"error: {tmp_path / 'photos'}: Permission denied\n")


# Two at once, and what the dead leave


def test_a_report_or_comparison_in_use_is_told(run, tmp_path):
    saved(tmp_path, some_runs()[:1])
    recipe = tiny.write(tmp_path / "tiny.toml")
    with locked(tmp_path):
        for words in (("report",), ("compare", "--recipe", recipe, "--lang", "en")):
            code, _, err = run(*words, "--out", tmp_path)
            assert code == 2
            assert f"{tmp_path} is in use by process {os.getpid()} on " in err


def test_a_report_of_no_results_touches_nothing(run, tmp_path):
    (tmp_path / "photo.jpg").touch()
    for out in (tmp_path, tmp_path / "new"):
        code, _, err = run("report", "--out", out)
        assert (code, err.count("\n")) == (2, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_a_comparison_does_not_begin_where_a_page_is_not_its_own(tmp_path, run):
    (tmp_path / "README.md").write_text("mine")
    code, _, err = run("compare", "--recipe", tiny.write(tmp_path / "tiny.toml"), "--lang", "en", "--out", tmp_path)
    assert code == 2
    assert "README.md was not written by polyalign report" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "tiny.toml"]


def test_files_that_killed_processes_left_are_removed(tmp_path):
    left = [
        tmp_path / "out" / name / ".x.json.abc.polyalign-partial"
        for name in (report.RUNS, report.LEFT_OUT, report.FIGURES)
    ]
    left.append(tmp_path / "run" / ".state.safetensors.abc.polyalign-partial")
    mine = tmp_path / "run" / ".film.mp4.abc.partial"
    for path in (*left, mine):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "run" / runs.MANIFEST).write_text("{}")
    report.write(saved(tmp_path / "out", some_runs()[:1]))
    runs.train_into(tmp_path / "run", tiny.resolved(optim={"epochs": 1}), resume=False, overwrite=False)
    assert [path for path in left if path.exists()] == []
    assert mine.exists()


@pytest.mark.parametrize("name", ["sw.csv", "sw.md", "README.md", "figures/mine.png"])
def test_a_report_never_replaces_what_it_did_not_write(name, tmp_path):
    folder = saved(tmp_path / "out", some_runs()[:1])
    mine = folder / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("My notes: Generated by `polyalign report` is a phrase.")
    with pytest.raises(UserError, match=r"was not (written|made) by polyalign report"):
        report.write(folder)
    assert mine.read_text().startswith("My notes")
    mine.unlink()
    assert report.write(folder) == report.write(folder)
