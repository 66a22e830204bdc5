"""Rows by content: computed once, whatever tables ask, and whoever kills, damages, clears or prunes."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyalign.serving import cache
from polyalign.utils import row_blocks, row_files, row_store, storage
from polyalign.utils.errors import UserError
from polyalign.utils.gathered import Gathered, gathered
from polyalign.utils.row_blocks import Space
from polyalign.utils.row_store import Batch, Costs

SPACE, OTHER = (Space(name=f"vision-5-{digit * 24}", what="images", tower="a tower", cut=5) for digit in "ab")
NAMES = [f"photo {number}" for number in range(30)]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A cache folder of the test's own, and nothing said or checked before."""
    monkeypatch.setenv("POLYALIGN_CACHE", str(tmp_path))
    forget(monkeypatch)
    return tmp_path / "features"


def forget(monkeypatch):
    """Stand for the process that a later run is."""
    monkeypatch.setattr(row_store, "_CHECKED", set())
    row_files.say_once.cache_clear()


def value(content: str) -> np.ndarray:
    return np.random.default_rng(list(content.encode())).random(5, np.float32)


def length(content: str) -> int:
    return 1 + len(content) * sum(content.encode()) % 4


def ramp(content: str) -> np.ndarray:
    return np.outer(np.arange(length(content), dtype=np.float32), value(content))


def vectors(names, space=SPACE, *, batch=4, computed=None, stop_at=None):
    """The naive computation of each row, through the store."""

    def compute(rows):
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            if computed is not None:
                computed.extend(names[row] for row in part)
            if stop_at is not None and start >= stop_at:
                raise KeyboardInterrupt
            yield Batch(part, np.stack([value(names[row]) for row in part]))

    return row_store.fetch(space, names, compute)


def tokens(names, space=OTHER, computed=None):
    """The same for rows of several values."""
    lengths = np.array([length(name) for name in names])

    def compute(rows):
        for start in range(0, len(rows), 3):
            part = rows[start : start + 3]
            computed.extend(names[row] for row in part)
            yield Batch(part, np.concatenate([ramp(names[row]) for row in part]))

    return row_store.fetch(space, names, compute, lengths=lengths)


def right(names, found) -> bool:
    return np.array_equal(np.asarray(found.values), np.stack([value(name) for name in names]))


def right_tokens(names, found) -> bool:
    return np.array_equal(np.asarray(found.values), np.concatenate([ramp(name) for name in names]))


TABLES = st.lists(st.lists(st.sampled_from(NAMES), min_size=1, max_size=40), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(tables=TABLES, segment=st.sampled_from([1, 100, 333, 2**28]), block=st.sampled_from([1, 90, 2**25]))
def test_any_tables_are_what_computing_gives_and_each_content_once(tables, segment, block, tmp_path_factory):
    computed, pieces = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLYALIGN_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(row_store, "SEGMENT_BYTES", segment)
        patch.setattr(row_store, "_BLOCK_BYTES", block)
        for names in tables:
            found = vectors(names, computed=computed)
            assert right(names, found)
            assert found.present.all()
            assert right_tokens(names, tokens(names, computed=pieces))
        everything = sorted({name for names in tables for name in names})
        assert sorted(computed) == sorted(pieces) == everything
        assert right(everything, vectors(everything, computed=computed))
        assert len(computed) == len(everything)


@settings(deadline=None)
@given(data=st.data())
def test_gathered_rows_are_those_of_the_joined_parts(data):
    sizes = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    whole = np.random.default_rng(0).random((sum(sizes), 2, 3))
    parts = np.split(whole, np.cumsum(sizes)[:-1])
    places = np.array(data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=9)))
    found = gathered(parts, places)
    rows = np.array(data.draw(st.lists(st.integers(-len(places), len(places) - 1), max_size=5)), np.int64)
    for index in (rows, slice(1, 3), rows.reshape(-1, 1), 0):
        assert np.array_equal(found[index], whole[places][index])
    assert (found.shape, found.nbytes, len(found)) == (whole[places].shape, whole[places].nbytes, len(places))
    start = data.draw(st.integers(0, len(parts[0]) - 1))
    assert isinstance(gathered(parts, np.arange(start, len(parts[0]))), np.ndarray)


def test_consecutive_rows_are_a_slice_of_the_file_and_others_are_gathered():
    first = vectors(NAMES)
    assert isinstance(first.values, np.memmap)
    assert not first.values.flags.writeable
    assert isinstance(vectors(NAMES[3:9]).values, np.memmap)
    scattered = vectors(NAMES[::2])
    assert isinstance(scattered.values, Gathered)
    assert right(NAMES[::2], scattered)


def test_ten_rows_more_are_ten_rows_to_compute():
    names, computed = [f"row {number}" for number in range(1010)], []
    vectors(names[:500] + names[510:])
    assert right(names, vectors(names, computed=computed))
    assert computed == names[500:510]


def test_nested_budgets_share_their_rows():
    computed = []
    for budget in (3, 10, 30):
        vectors(NAMES[:budget], computed=computed)
    assert computed == NAMES
    (entry,) = row_blocks.entries()
    assert (entry.rows, entry.bytes, entry.space) == (30, 30 * 20, SPACE)


def test_rows_are_kept_by_space():
    computed = []
    for space in (SPACE, OTHER, SPACE):
        vectors(NAMES, space, computed=computed)
    assert computed == NAMES + NAMES


def test_without_a_space_nothing_is_stored(folder):
    computed = []
    for _ in range(2):
        assert right([*NAMES, *NAMES], vectors([*NAMES, *NAMES], None, computed=computed))
    assert computed == NAMES + NAMES
    assert not folder.exists()


def test_notes_and_rows_that_are_not_computed():
    def compute(rows):
        asked.extend(rows)
        kept = rows[rows != 2]
        yield Batch(kept, np.stack([value(NAMES[row]) for row in kept]), {1: "odd"} if 1 in kept else {})

    for expected in ([0, 1, 2, 3], [2]):
        asked: list[int] = []
        found = row_store.fetch(SPACE, NAMES[:4], compute) if expected[0] == 0 else None
        if found is None:
            with pytest.raises(ValueError, match="need at least one array"):
                row_store.fetch(SPACE, NAMES[:4], compute)
        else:
            assert found.present.tolist() == [True, True, False, True]
            assert found.notes == {1: "odd"}
            assert np.array_equal(np.asarray(found.values)[2], value(NAMES[3]))
        assert asked == expected
    again = row_store.fetch(SPACE, [NAMES[1], NAMES[0], NAMES[1]], compute)
    assert again.notes == {0: "odd", 2: "odd"}


def test_what_rows_took_is_shared_by_the_rows_of_a_block(monkeypatch):
    def compute(rows):
        for row in rows:
            time.sleep(0.02 * (row + 1))
            yield Batch(np.array([row]), value(NAMES[row])[None])

    monkeypatch.setattr(row_store, "_BLOCK_SECONDS", 0)
    first = row_store.fetch(SPACE, NAMES[:5], compute).costs
    again = row_store.fetch(SPACE, NAMES[2:5], compute).costs
    assert (np.diff(first.seconds[:, 0]) > 0.005).all()
    assert Costs.together([first, again]) == Costs.together([first])
    assert np.array_equal(again.seconds, first.seconds[2:])


# Kills


def _forked(function, *arguments):
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process


def _slow(names, log):
    def compute(rows):
        for row in rows.tolist():
            with Path(log).open("a", encoding="utf-8") as file:
                file.write(f"{row}\n")
            time.sleep(0.002)
            yield Batch(np.array([row]), value(names[row])[None])

    row_store.fetch(SPACE, names, compute)


def test_a_fill_that_is_killed_again_and_again_goes_on(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(row_store, "_BLOCK_SECONDS", 0)
    log, names = tmp_path / "log", [f"row {number}" for number in range(150)]
    chance = random.Random(0)
    for _ in range(12):
        process = _forked(_slow, names, log)
        time.sleep(chance.uniform(0.01, 0.12))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    _slow(names, log)
    asked = log.read_text(encoding="utf-8").split()
    assert sorted(set(map(int, asked))) == list(range(150))
    assert len(asked) <= 150 + 12
    assert right(names, vectors(names, computed=[]))
    assert sum(path.stat().st_size for path in folder.rglob("*.rows")) == 150 * 20


def test_two_processes_compute_each_row_once(tmp_path, monkeypatch):
    monkeypatch.setattr(row_store, "_BLOCK_SECONDS", 0)
    log, names = tmp_path / "log", [f"row {number}" for number in range(60)]
    processes = [_forked(_slow, part, log) for part in (names, names[::-1], names)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(log.read_text(encoding="utf-8").split()) == 60
    computed = []
    assert right(names, vectors(names, computed=computed))
    assert computed == []


def _after(go, said):
    while not go.exists():  # a lock held at the time of a fork would be the child's too
        time.sleep(0.01)
    row_files.logger.info = lambda message: said.write_text(message, encoding="utf-8")
    vectors(NAMES)


def test_a_second_process_says_that_it_waits(tmp_path, caplog, folder):
    go, said = tmp_path / "go", tmp_path / "said"
    process = _forked(_after, go, said)
    with row_files.locked(SPACE.name, SPACE.what), caplog.at_level("INFO"):
        go.touch()
        while not said.exists():
            time.sleep(0.01)
        assert row_files.clear() == 0
    process.join()
    assert process.exitcode == 0
    assert said.read_text() == (f"another process computes images for {folder / SPACE.name}: waiting until it ends")
    assert "is in use: it is kept" in caplog.text
    assert row_blocks.entries()[0].rows == 30


CLEARS = """
from polyalign.utils import row_files
print("ready", flush=True)
while True:
    row_files.clear()
"""


def test_clearing_in_a_loop_never_breaks_a_fill():
    env = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    with subprocess.Popen([sys.executable, "-c", CLEARS], stdout=subprocess.PIPE, env=env) as clearing:
        try:
            assert clearing.stdout.readline() == b"ready\n"
            for number in range(25):
                assert right(NAMES, vectors(NAMES))
                assert right(NAMES[number % 20 :], vectors(NAMES[number % 20 :]))
            assert clearing.poll() is None
        finally:
            clearing.kill()


def test_a_stop_in_the_middle_keeps_what_was_computed(monkeypatch):
    monkeypatch.setattr(row_store, "_BLOCK_SECONDS", 0)
    with pytest.raises(KeyboardInterrupt):
        vectors(NAMES, stop_at=12)
    computed = []
    assert right(NAMES, vectors(NAMES, computed=computed))
    assert computed == NAMES[12:]


# Damage


def flipped(whole: bytes, place: int) -> bytes:
    return whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :]


def filled(monkeypatch) -> dict[Path, bytes]:
    """Three blocks in two segments, as a later process finds them."""
    monkeypatch.setattr(row_store, "SEGMENT_BYTES", 500)
    for part in (NAMES[:10], NAMES[10:20], NAMES[20:]):
        vectors(part)
    return {path: path.read_bytes() for path in row_files.files(row_files.folder() / SPACE.name)}


def restore(files: dict[Path, bytes], monkeypatch) -> None:
    for path in row_files.files(next(iter(files)).parent):
        path.unlink()
    for path, content in files.items():
        path.write_bytes(content)
    forget(monkeypatch)


@pytest.mark.parametrize("step", [97, pytest.param(5, marks=pytest.mark.repeated)])
def test_any_flipped_byte_is_found_and_its_rows_are_computed_again(step, monkeypatch, caplog):
    files = filled(monkeypatch)
    recomputed = 0
    for path, whole in files.items():
        for place in range(0, len(whole), 1 if path.suffix == ".rows" and step < 97 else step):
            restore(files, monkeypatch)
            path.write_bytes(flipped(whole, place))
            computed = []
            assert right(NAMES, vectors(NAMES, computed=computed)), (path, place)
            recomputed += bool(computed)
            if path.suffix == ".rows":
                assert len(computed) == 10
            assert right(NAMES, vectors(NAMES, computed=computed)), (path, place)
            row_blocks.entries()
    assert recomputed > 10


@pytest.mark.parametrize("name", ["rows.sqlite", "segment"])
@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "longer", "link", "folder", "gone", "pipe"])
def test_a_damaged_file_is_made_again_and_said_once(name, damage, monkeypatch, tmp_path, folder):
    files = filled(monkeypatch)
    path = next(path for path in files if path.name == name or (name == "segment" and path.suffix == ".rows"))
    outside = tmp_path / "outside"
    outside.write_bytes(b"mine")
    content = {"empty": b"", "cut": files[path][:-30], "noise": os.urandom(5000), "longer": files[path] + bytes(9)}
    if damage in content:
        path.write_bytes(content[damage])
    else:
        path.unlink()
        {
            "link": lambda: path.symlink_to(outside),
            "folder": path.mkdir,
            "gone": lambda: None,
            "pipe": lambda: os.mkfifo(path),
        }[damage]()
    forget(monkeypatch)
    if name == "rows.sqlite" and damage in ("folder", "pipe"):
        with pytest.raises(UserError, match="delete it"):
            vectors(NAMES)
    else:
        for _ in range(2):
            assert right(NAMES, vectors(NAMES))
        computed = []
        vectors(NAMES, computed=computed)
        assert computed == []
    assert outside.read_bytes() == b"mine"


def test_a_space_in_the_place_of_another_is_not_believed(monkeypatch, folder):
    vectors(NAMES)
    (folder / SPACE.name).rename(folder / OTHER.name)
    computed = []
    assert right(NAMES, vectors(NAMES, OTHER, computed=computed))
    assert computed == NAMES


def forged(**change: object) -> None:
    """Change a card as somebody would who can compute its checksum."""
    (block, *_), _ = row_blocks.read(SPACE.name)
    facts = row_blocks.begin(SPACE)
    card = block.card.model_copy(update=change)
    with row_blocks.changing(SPACE.name) as database:
        row_blocks.delete_blocks(database, [block.id])
        row_blocks.insert(database, facts, row_blocks.Block(0, card, block.keys, block.lengths))


@pytest.mark.parametrize(
    "change",
    [
        {"segment": "../../outside"}, {"segment": "/etc/passwd"}, {"segment": ".lock"}, {"start": -1}, {"start": 2**40},
        {"count": 10**12}, {"shape": (-5,)}, {"shape": (10**30,)}, {"shape": ()}, {"shape": (4,)}, {"dtype": "uint8"},
        {"dtype": "object"}, {"seconds": -1.0}, {"checksum": "0"},
    ],
)  # fmt: skip
def test_a_forged_entry_is_computed_again_and_leads_nowhere(change, monkeypatch, tmp_path):
    (tmp_path / "outside").write_bytes(bytes(1000))
    vectors(NAMES)
    forged(**change)
    forget(monkeypatch)
    for _ in range(2):
        assert right(NAMES, vectors(NAMES))
    assert (tmp_path / "outside").read_bytes() == bytes(1000)
    assert len(row_blocks.entries()) == 1


def test_rows_that_others_read_are_not_overwritten(monkeypatch):
    """A process that finds damage writes elsewhere: another one may have read the rows before."""
    before = vectors(NAMES)
    forged(checksum="0")
    forget(monkeypatch)
    assert right(NAMES, vectors(NAMES, batch=7))
    assert right(NAMES, vectors([*NAMES, "more"][:-1]))
    vectors([f"other {number}" for number in range(99)])
    assert right(NAMES, before)


# The folder


def test_only_files_of_the_cache_are_listed_and_deleted(folder, tmp_path):
    vectors(NAMES)
    (tmp_path / "mine.npy").write_bytes(b"mine")
    outside = tmp_path / f"vision-5-{'e' * 24}"
    outside.mkdir()
    (outside / "rows.sqlite").write_bytes(b"mine")
    for name in ("notes.txt", "x.npy", "vision-5-short.array", ".x.npy.partial", f"{SPACE.name}.array.bak"):
        (folder / name).write_bytes(b"mine")
    (folder / outside.name).symlink_to(outside)
    (folder / SPACE.name / "mine.txt").write_bytes(b"mine")
    old = [f"{SPACE.name}.array", f".{OTHER.name}.array.abcd_123.polyalign-partial"]
    for name in old:
        (folder / name).write_bytes(b"of an earlier version")
    assert [entry.name for entry in row_blocks.entries()] == [SPACE.name]
    kept = {path.name for path in folder.iterdir()} - set(old)
    sizes = sum(path.stat().st_size for path in row_files.files(folder / SPACE.name))
    assert row_files.clear() == sizes + 2 * len(b"of an earlier version")
    assert {path.name for path in folder.iterdir()} == kept
    assert [path.name for path in (folder / SPACE.name).iterdir()] == ["mine.txt"]
    assert (outside / "rows.sqlite").read_bytes() == b"mine"


def test_without_the_tag_nothing_is_deleted_and_a_foreign_folder_is_never_claimed(folder):
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="set POLYALIGN_CACHE to another folder"):
        vectors(NAMES)
    (folder / f"{SPACE.name}.array").write_bytes(b"mine")
    assert row_files.clear() == 0
    assert row_blocks.entries() == []
    assert {path.name for path in folder.iterdir()} == {"thesis.tex", f"{SPACE.name}.array"}


def test_the_tag_is_the_standard_one_and_is_written_again_if_it_was_deleted(folder):
    vectors(NAMES)
    tag = folder / "CACHEDIR.TAG"
    assert tag.read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55\n")
    tag.unlink()
    vectors(NAMES, OTHER)
    assert len(row_blocks.entries()) == 2


def test_the_cache_of_another_program_is_neither_used_nor_cleared(folder):
    folder.mkdir()
    (folder / "CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n# Written by another program.\n")
    for act in (row_files.clear, lambda: vectors(NAMES)):
        with pytest.raises(UserError, match="is not a cache of polyalign"):
            act()
    assert [path.name for path in folder.iterdir()] == ["CACHEDIR.TAG"]


def test_a_cache_that_cannot_be_a_folder_is_one_line(monkeypatch):
    monkeypatch.setenv("POLYALIGN_CACHE", "/dev/null")
    with pytest.raises(UserError, match=r"^cannot write /dev/null/features/.*; set POLYALIGN_CACHE to another"):
        vectors(NAMES)
    assert row_files.clear() == 0


def test_values_are_compared_once_in_a_process(monkeypatch):
    vectors(NAMES)
    forget(monkeypatch)
    asked, checksum = [], row_store.checksum
    monkeypatch.setattr(row_store, "checksum", lambda values: asked.append(1) or checksum(values))
    for _ in range(3):
        vectors(NAMES)
    assert len(asked) == 1


def test_what_was_found_stays_readable_when_it_is_cleared():
    found = vectors(NAMES)
    assert row_files.clear() > 0
    assert right(NAMES, found)


def denied(*_args, **_how):
    raise PermissionError(errno.EACCES, "Permission denied")


@pytest.mark.parametrize("call", ["mkdir", "flock", "database"])
def test_where_nothing_can_be_written_it_is_read_and_else_kept_in_memory(call, monkeypatch, caplog):
    if call != "mkdir":
        vectors(NAMES[:20])
    if call == "database":
        monkeypatch.setattr(row_blocks, "begin", lambda _: (_ for _ in ()).throw(row_files.DeniedError("read-only")))
    else:
        monkeypatch.setattr(*{"mkdir": (Path, "mkdir"), "flock": (row_files.fcntl, "flock")}[call], denied)
    computed = []
    with caplog.at_level("INFO"):
        for _ in range(2):
            assert right(NAMES, vectors(NAMES, computed=computed))
    assert computed == 2 * (NAMES if call == "mkdir" else NAMES[20:])
    (said,) = caplog.messages
    assert said.startswith(f"cannot write to {row_files.folder()} (")
    assert said.endswith("what is computed is not kept on disk")


def test_an_error_of_the_computation_is_not_taken_for_one_of_the_folder():
    asked = []

    def compute(_):
        asked.append(1)
        raise UserError("an image cannot be read") from PermissionError(errno.EACCES, "Permission denied")
        yield

    with pytest.raises(UserError, match="an image cannot be read"):
        row_store.fetch(SPACE, NAMES, compute)
    assert len(asked) == 1
    assert row_blocks.entries() == []


def test_a_full_disk_is_an_error_of_one_line_before_anything_is_stored(monkeypatch, folder):
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100}))
    with pytest.raises(UserError, match=rf"the cache would take 600 B in {folder}, where 100 B are free: make room"):
        vectors(NAMES)
    assert not list(folder.rglob("*.rows"))


def _limited(said):
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
    try:
        row_store.fetch(SPACE, ["x"], lambda rows: iter([Batch(rows, np.zeros((1, 2**21), np.uint8))]))
    except UserError as error:
        said.write_text(str(error), encoding="utf-8")


def test_a_file_size_limit_is_an_error_and_no_signal(folder, tmp_path):
    process = _forked(_limited, tmp_path / "said")
    process.join()
    assert (tmp_path / "said").read_text().startswith(f"cannot keep 2.0 MiB in {folder}: File too large; make room")


# Prune


def used_at(seconds: float, name: str = SPACE.name) -> None:
    for path in (row_files.folder() / name).glob("*.rows"):
        if path.stat().st_mtime > 1e9:
            os.utime(path, (seconds, seconds))


def test_segments_go_in_the_order_of_their_last_use(monkeypatch):
    monkeypatch.setattr(row_store, "SEGMENT_BYTES", 200)
    for number, names in enumerate((NAMES[:10], NAMES[10:20], NAMES[20:])):
        vectors(names)
        used_at(100.0 + number)
    vectors(NAMES, OTHER)
    used_at(50, OTHER.name)
    assert vectors(NAMES[:10]).present.all()  # the first segment is now the last used
    whole = sum(path.stat().st_size for place in row_files.spaces() for path in row_files.files(place))
    assert cache.prune(whole) == []
    ((name, _),) = cache.prune(whole - 1)
    assert (name, [entry.name for entry in cache.entries()]) == (OTHER.name, [SPACE.name])
    left = sum(path.stat().st_size for place in row_files.spaces() for path in row_files.files(place))
    assert cache.prune(left - 200) == [(SPACE.name, 200)]
    computed = []
    assert right(NAMES, vectors(NAMES, computed=computed))
    assert computed == NAMES[10:20]
    assert sum(size for _, size in cache.prune(0)) > 600
    assert row_files.spaces() == []


def test_a_space_in_use_is_not_pruned(caplog):
    vectors(NAMES)
    with row_files.locked(SPACE.name, SPACE.what), caplog.at_level("INFO"):
        assert cache.prune(0) == []
    assert "is in use: it is kept" in caplog.text
    assert vectors(NAMES, computed=[]).present.all()
