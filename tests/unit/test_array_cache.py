from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from polyalign.utils import array_cache, storage
from polyalign.utils.errors import UserError

NAME, OTHER = (f"vision-5-{digit * 24}" for digit in "ab")
VALUES = np.arange(60, dtype=np.float32).reshape(12, 5)
FACTS = {"what": "images", "rows": 12, "seconds": 1.5, "cpu_seconds": 2.5}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A cache folder of the test's own, and nothing said or checked before."""
    monkeypatch.setenv("POLYALIGN_CACHE", str(tmp_path))
    monkeypatch.setattr(array_cache, "_CHECKED", set())
    array_cache._say_once.cache_clear()
    return tmp_path / "features"


def write(name: str = NAME, values: np.ndarray = VALUES) -> np.ndarray:
    def fill(empty):
        empty[:] = values
        return FACTS

    return array_cache.write(name, values.shape, values.dtype, fill)


def test_an_array_comes_back_mapped_with_its_card():
    assert np.array_equal(write(), VALUES)
    values, card = array_cache.find(NAME)
    assert isinstance(values, np.memmap)
    assert not values.flags.writeable
    assert np.array_equal(values, VALUES)
    assert (card.rows, card.seconds, card.bytes) == (12, 1.5, VALUES.nbytes)
    assert array_cache.find(OTHER) is None


def flipped(whole: bytes, place: int) -> bytes:
    return whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :]


def test_every_flipped_byte_makes_it_absent(folder):
    write()
    path = folder / f"{NAME}.array"
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(flipped(whole, place))
        assert array_cache.find(NAME) is None, place
        array_cache.cards()
    path.write_bytes(whole)
    assert np.array_equal(array_cache.find(NAME)[0], VALUES)


def damages() -> list[tuple[str, object]]:
    chance = random.Random(0)
    found = [(f"cut-{n}", lambda whole, n=n: whole[:n]) for n in (0, 1, 23, 24, 100, 240, 400)]
    found += [(f"longer-{n}", lambda whole, n=n: whole + b"\0" * n) for n in (1, 24, 4096)]
    found += [(f"noise-{n}", lambda _, n=n: chance.randbytes(n)) for n in (24, 300)]
    found += [("npy", lambda _: b"\x93NUMPY\x01\x00"), ("length", lambda whole: whole[:-24] + b"\xff" * 24)]
    return [*found, ("zeros", lambda whole: bytes(len(whole))), ("shifted", lambda whole: whole[1:] + b"\0")]


@pytest.mark.parametrize("damage", [change for _, change in damages()], ids=[name for name, _ in damages()])
def test_a_damaged_file_is_absent_is_said_once_and_is_written_again(damage, folder, caplog):
    write()
    path = folder / f"{NAME}.array"
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level("INFO"):
        assert array_cache.find(NAME) is None
        assert array_cache.find(NAME) is None
        assert array_cache.cards() == []
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} is not used, and is computed again: it is damaged"
    ]
    write()
    assert np.array_equal(array_cache.find(NAME)[0], VALUES)


def test_the_file_of_another_array_is_absent(folder):
    write()
    write(OTHER, VALUES + 1)
    (folder / f"{NAME}.array").replace(folder / f"{OTHER}.array")
    assert array_cache.find(OTHER) is None


@pytest.mark.parametrize("change", [{"dtype": "object"}, {"shape": (-12, -5)}, {"shape": ()}, {"shape": (10**30, 5)}])
def test_a_card_that_states_the_impossible_is_absent_though_its_checksum_is_right(change, folder):
    write()
    path = folder / f"{NAME}.array"
    _, card = array_cache.find(NAME)
    text = card.model_copy(update=change).model_dump_json(warnings=False).encode()
    end = array_cache._END.pack(len(text), array_cache.xxhash.xxh3_128_digest(text))
    path.write_bytes(VALUES.tobytes() + text + end)
    assert array_cache.find(NAME) is None
    assert array_cache.cards() == []


def test_only_files_of_the_cache_are_listed_and_deleted(folder, tmp_path):
    write()
    (tmp_path / "mine.npy").write_bytes(b"mine")
    (tmp_path / "card.json").write_text("{}")
    outside = tmp_path / "outside.array"
    outside.write_bytes(b"mine")
    foreign = ["notes.txt", "x.npy", "x.json", "vision-5-short.array", ".x.npy.partial", f"{NAME}.array.bak"]
    for name in foreign:
        (folder / name).write_bytes(b"mine")
    (folder / f"{OTHER}.array").symlink_to(outside)
    (folder / f"text-5-{'c' * 24}.array").mkdir()
    (folder / f"text-5-{'d' * 24}.array").write_bytes(b"damaged")
    (folder / f".{OTHER}.array.abcd_123.polyalign-partial").write_bytes(b"left by a killed process")
    assert [card.name for card in array_cache.cards()] == [NAME]
    assert array_cache.find(OTHER) is None
    size = (folder / f"{NAME}.array").stat().st_size
    assert array_cache.clear() == size + len(b"damaged") + len(b"left by a killed process")
    kept = {*foreign, "CACHEDIR.TAG", f"{OTHER}.array", f"text-5-{'c' * 24}.array"}
    assert {path.name for path in folder.iterdir()} == kept
    assert {path.name for path in tmp_path.iterdir()} == {"features", "mine.npy", "card.json", "outside.array"}


def test_without_the_tag_nothing_is_deleted_and_a_foreign_folder_is_never_claimed(folder):
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="set POLYALIGN_CACHE to another folder"):
        write()
    (folder / f"{NAME}.array").write_bytes(b"mine")
    assert array_cache.clear() == 0
    assert array_cache.cards() == []
    assert {path.name for path in folder.iterdir()} == {"thesis.tex", f"{NAME}.array"}


def test_the_tag_is_the_standard_one_and_is_written_again_if_it_was_deleted(folder):
    write()
    tag = folder / "CACHEDIR.TAG"
    assert tag.read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55\n")
    tag.unlink()
    write(OTHER)
    assert len(array_cache.cards()) == 2


def test_the_cache_of_another_program_is_neither_used_nor_cleared(folder):
    folder.mkdir()
    (folder / "CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n# Written by another program.\n")
    theirs = folder / f"{NAME}.array"
    theirs.write_bytes(b"theirs")
    for act in (array_cache.clear, write):
        with pytest.raises(UserError, match="is not a cache of polyalign"):
            act()
    assert array_cache.cards() == []
    assert theirs.read_bytes() == b"theirs"


def test_a_cache_that_cannot_be_a_folder_is_one_line(monkeypatch):
    monkeypatch.setenv("POLYALIGN_CACHE", "/dev/null")
    with pytest.raises(UserError, match=r"^cannot write /dev/null/features: .*; set POLYALIGN_CACHE to another"):
        write()
    assert array_cache.clear() == 0


def test_values_are_compared_once_in_a_process(monkeypatch):
    write()
    asked, checksum = [], array_cache._checksum
    monkeypatch.setattr(array_cache, "_checksum", lambda values: asked.append(1) or checksum(values))
    for _ in range(3):
        assert array_cache.find(NAME) is not None
    assert len(asked) == 1


def test_what_was_found_stays_readable_when_it_is_cleared():
    write()
    values, _ = array_cache.find(NAME)
    written = write(OTHER)
    assert array_cache.clear() > 0
    assert np.array_equal(values, VALUES)
    assert np.array_equal(written, VALUES)


CLEARS = """
from polyalign.utils import array_cache
print("ready", flush=True)
while True:
    array_cache.clear()
"""


def test_clearing_in_a_loop_never_breaks_a_fill():
    env = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    with subprocess.Popen([sys.executable, "-c", CLEARS], stdout=subprocess.PIPE, env=env) as clearing:
        try:
            assert clearing.stdout.readline() == b"ready\n"
            for number in range(300):
                values = VALUES + number
                assert np.array_equal(write(values=values), values)
                found = array_cache.find(NAME)
                assert found is None or np.array_equal(found[0], values)
            assert clearing.poll() is None
        finally:
            clearing.kill()


def test_two_fills_of_one_array_are_both_right():
    inner = []

    def fill(values):
        inner.append(write())
        values[:] = VALUES
        return FACTS

    assert np.array_equal(array_cache.write(NAME, VALUES.shape, VALUES.dtype, fill), VALUES)
    assert np.array_equal(inner[0], VALUES)
    assert np.array_equal(array_cache.find(NAME)[0], VALUES)


def denied(*_args, **_how):
    raise PermissionError(errno.EACCES, "Permission denied")


@pytest.mark.parametrize("call", ["mkstemp", "mkdir", "replace"])
def test_where_nothing_can_be_written_it_is_read_and_else_kept_in_memory(call, monkeypatch, caplog):
    if call != "mkdir":
        write()
    where = storage.tempfile if call == "mkstemp" else storage.Path
    monkeypatch.setattr(where, call, denied)
    monkeypatch.setattr(array_cache.os, "utime", denied)
    assert call == "mkdir" or np.array_equal(array_cache.find(NAME)[0], VALUES)
    with caplog.at_level("INFO"):
        for _ in range(2):
            assert np.array_equal(write(OTHER), VALUES)
    assert array_cache.find(OTHER) is None
    assert [record.getMessage() for record in caplog.records] == [
        f"cannot write to {array_cache.folder()} (Permission denied): what is computed is not kept on disk"
    ]


def test_an_error_of_the_fill_is_not_taken_for_one_of_the_folder(folder):
    asked = []

    def fill(values):
        asked.append(1)
        raise UserError("an image cannot be read") from PermissionError(errno.EACCES, "Permission denied")

    with pytest.raises(UserError, match="an image cannot be read"):
        array_cache.write(NAME, VALUES.shape, VALUES.dtype, fill)
    assert len(asked) == 1
    assert [path.name for path in folder.iterdir()] == ["CACHEDIR.TAG"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_an_error_of_one_line_before_anything_is_computed(code, folder, monkeypatch):
    def full(_handle, _start, size):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(array_cache.os, "posix_fallocate", full)
    with pytest.raises(UserError, match=rf"cannot keep 240 B in {folder}: .*; make room") as caught:
        array_cache.write(NAME, VALUES.shape, VALUES.dtype, lambda _: pytest.fail("computed"))
    assert "\n" not in str(caught.value)
    assert [path.name for path in folder.iterdir()] == ["CACHEDIR.TAG"]


def test_a_file_size_limit_is_an_error_and_no_signal(folder):
    code = """
        import resource
        from polyalign.utils import array_cache
        from polyalign.utils.errors import UserError
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
        try:
            array_cache.write(f"vision-5-{'a' * 24}", (2**21,), "uint8", lambda _: {})
        except UserError as error:
            print(error)
    """
    env = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"cannot keep 2.0 MiB in {folder}: File too large; make room")
