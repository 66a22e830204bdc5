"""Commands killed at random moments: the same command then succeeds, and all files are as if nothing had happened."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from polyalign.experiments import report
from polyalign.serving.index import Index
from polyalign.serving.index_build import build, update
from polyalign.serving.index_store import PHOTOS, VECTORS, is_store
from polyalign.training import train
from polyalign.utils.lock import LOCK_FILES
from polyalign.utils.storage import PARTIAL
from tests import forked, tiny
from tests.unit.test_index_build import saved
from tests.unit.test_significance import trained

Run = Callable[..., tuple[int, str, str]]


def killed(*arguments: object, said: Path, seconds: float, times: int) -> int:
    """Start the command this many times and kill it within ``seconds``; return how many times it was killed."""
    draw = random.Random(0)
    codes = []
    for moment in sorted(0.02 + seconds * draw.random() ** 3 for _ in range(times)):
        process = forked.start(*arguments, said=said)
        process.join(moment)
        process.kill()
        process.join()
        codes.append(process.exitcode)
        assert process.exitcode in {0, -9}, said.read_text(encoding="utf-8")
    return codes.count(-9)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in LOCK_FILES)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.slow
def test_training_goes_on_to_the_same_weights(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny.write(tmp_path / "tiny.toml", "lilt-deep")
    words = ("train", "--lang", "en", "--recipe", recipe, "--resume", "--out")
    monkeypatch.setenv("POLYALIGN_CACHE", str(tmp_path / "whole"))
    assert run(*words, tmp_path / "whole" / "run")[0] == 0
    monkeypatch.setenv("POLYALIGN_CACHE", str(tmp_path / "cut"))
    out = tmp_path / "cut" / "run"
    assert killed(*words, out, said=tmp_path / "said", seconds=1.5, times=6)
    code, _, err = run(*words, out)
    assert code == 0, err
    assert tiny.same(tiny.weights(out), tiny.weights(tmp_path / "whole" / "run"))
    assert not (out / train.STATE).exists()
    assert contents(out).keys() == contents(tmp_path / "whole" / "run").keys()
    assert run("cache", "clear")[0] == 0
    assert not list((tmp_path / "cut").rglob(f"*{PARTIAL}"))


@pytest.mark.slow
def test_a_report_has_only_whole_files_at_any_time(run: Run, tmp_path: Path) -> None:
    for folder in ("whole", "cut"):
        for name in ("lilt", "full"):
            trained(name, 0, 1.0, lang="en").save_json(tmp_path / folder / report.RUNS / f"{name}.json")
    assert run("report", "--out", tmp_path / "whole")[0] == 0
    whole = contents(tmp_path / "whole")
    assert killed("report", "--out", tmp_path / "cut", said=tmp_path / "said", seconds=3, times=5)
    found = {name: text for name, text in contents(tmp_path / "cut").items() if not name.endswith(PARTIAL)}
    assert found.items() <= whole.items()
    assert run("report", "--out", tmp_path / "cut")[0] == 0
    assert contents(tmp_path / "cut") == whole


@pytest.mark.slow
def test_trimming_leaves_nothing_beside_the_tower(run: Run, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("red green\nblue white\n", encoding="utf-8")
    out = tmp_path / "towers" / "small"
    words = ("trim", "--lang", "en", "--text-tower", tiny.text(), "--corpus", tmp_path / "texts.txt", "--out", out)
    for seconds in (0.1, 0.2, 0.4):
        killed(*words, said=tmp_path / "said", seconds=seconds, times=1)
        shutil.rmtree(out, ignore_errors=True)
    left = out.with_name(f".small.left{PARTIAL}")
    left.mkdir(parents=True, exist_ok=True)
    code, _, err = run(*words)
    assert code == 0, err
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.slow
@pytest.mark.parametrize("kills", [5, pytest.param(60, marks=pytest.mark.repeated)])
def test_an_index_is_valid_at_any_time(tmp_path: Path, kills: int) -> None:
    model, photos, out = saved(tmp_path / "run"), tmp_path / "photos", tmp_path / "cut"
    photos.mkdir()
    scenes = itertools.product(tiny.COLORS, repeat=4)
    for number, scene in zip(range(150), scenes, strict=False):
        tiny.draw(scene).save(photos / f"{number}.png")
    kill_and_mend(kills, out, build, model, photos, out)
    build(model, photos, tmp_path / "whole")
    assert_same(out, tmp_path / "whole")
    for number, scene in zip(range(0, 150, 3), scenes, strict=False):
        (photos / f"{number}.png").rename(photos / f"moved-{number}.png")
        tiny.draw(scene).save(photos / f"{number + 1}.png")
        (photos / f"{number + 2}.png").unlink()
    kill_and_mend(kills, out, update, out)
    build(model, photos, tmp_path / "after")
    assert_same(out, tmp_path / "after")
    assert {path.name for path in out.iterdir()} - {*LOCK_FILES} == {PHOTOS, VECTORS}


def kill_and_mend(kills: int, out: Path, function: Callable[..., object], *arguments: object) -> None:
    """Do the work again and again, killed before a random one of its writes; then whole."""
    draw = random.Random(0)
    codes = []
    for _ in range(kills):
        process = forked.killed_at(draw.randrange(60), function, *arguments)
        process.join()
        codes.append(process.exitcode)
        if is_store(out):
            Index.open(out)
    assert -9 in codes
    assert set(codes) <= {0, -9}
    function(*arguments)


def assert_same(folder: Path, other: Path) -> None:
    """Compare all photos of two indexes and their vectors, up to the rounding of batches of other sizes."""
    found, wanted = (
        {photo.path: index.vector(photo.id) for one in index.ids.tolist() if (photo := index.photo(one))}
        for index in map(Index.open, (folder, other))
    )
    assert found.keys() == wanted.keys()
    for path, vector in wanted.items():
        np.testing.assert_allclose(found[path], vector, atol=1e-3)
