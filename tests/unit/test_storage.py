from __future__ import annotations

import errno
import shutil

import pytest
import torch

from polyalign.utils import storage
from polyalign.utils.errors import UserError


def test_tensors_and_metadata_come_back_to_the_bit(tmp_path):
    tensors = {
        "half": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).half(),
        "scalar": torch.tensor(2.5),
        "ids": torch.arange(4),
        "turned": torch.arange(6.0).view(2, 3).T,
    }
    storage.save_tensors(tmp_path / "deep" / "x.safetensors", tensors, {"who": "Kiswahili é"})
    found, metadata = storage.load_tensors(tmp_path / "deep" / "x.safetensors")
    assert metadata == {"who": "Kiswahili é"}
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype for name in found)


def test_tensors_that_share_memory_are_kept_apart(tmp_path):
    base = torch.arange(4.0)
    storage.save_tensors(tmp_path / "x", {"whole": base, "part": base[:2]})
    assert {name: tensor.tolist() for name, tensor in storage.load_tensors(tmp_path / "x")[0].items()} == {
        "whole": [0, 1, 2, 3],
        "part": [0, 1],
    }


def test_what_shares_no_memory_is_not_copied(tmp_path, monkeypatch):
    handed = {}
    monkeypatch.setattr(storage, "save_file", lambda tensors, path, metadata: handed.update(tensors))
    base, own = torch.arange(4.0), torch.nn.Parameter(torch.ones(3))
    storage.save_tensors(tmp_path / "x", {"whole": base, "part": base[2:], "own": own})
    copied = {name: handed[name].data_ptr() != tensor.data_ptr() for name, tensor in (("whole", base), ("own", own))}
    assert copied == {"whole": False, "own": False}
    assert handed["part"].untyped_storage().data_ptr() != base.untyped_storage().data_ptr()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_the_old_file_and_no_other(error, tmp_path):
    path = tmp_path / "x.txt"
    storage.write_text(path, "old")

    def fill(partial):
        partial.write_text("half of the n")
        raise error

    with pytest.raises(error):
        storage.write(path, fill)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_in_the_middle_of_a_write_sees_the_old_file(tmp_path):
    path = tmp_path / "x.txt"
    storage.write_text(path, "old")

    def fill(partial):
        partial.write_text("new")
        assert path.read_text() == "old"

    storage.write(path, fill)
    assert path.read_text() == "new"


def test_text_keeps_its_line_ends_and_letters(tmp_path):
    storage.write_text(tmp_path / "x", "ñ\r\n漢\n")
    assert (tmp_path / "x").read_bytes() == "ñ\r\n漢\n".encode()


@pytest.mark.parametrize("content", [None, b"", b"not a tensor in sight", b"\xff" * 64])
def test_a_file_that_holds_no_tensors_is_a_user_error_of_one_line(content, tmp_path):
    path = tmp_path / "x.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read .*x\.safetensors") as caught:
        storage.load_tensors(path)
    assert "\n" not in str(caught.value)


def test_a_cut_off_file_is_a_user_error(tmp_path):
    storage.save_tensors(tmp_path / "x", {"a": torch.zeros(100)})
    whole = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot read"):
        storage.load_tensors(tmp_path / "x")


def test_a_full_disk_is_a_user_error_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.txt"
    storage.write_text(path, "old")

    def fill(partial):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match=r"cannot write .*x\.txt: No space left"):
        storage.write(path, fill)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_filling_could_not_read_is_no_fault_of_the_disk(tmp_path):
    with pytest.raises(FileNotFoundError):
        storage.write(tmp_path / "x", lambda partial: (tmp_path / "absent").read_text())


def test_a_place_that_cannot_be_written_to_is_found_before_and_when_it_is_written_to(tmp_path):
    file = tmp_path / "file"
    file.write_text("no folder")
    for folder in (file, file / "deep" / "er"):
        with pytest.raises(UserError, match="cannot write"):
            storage.check_writable(folder)
        with pytest.raises(UserError, match="cannot write"):
            storage.write_text(folder / "x.txt", "text")
    storage.check_writable(tmp_path / "deep" / "er")
    assert list(tmp_path.iterdir()) == [file], "a look leaves nothing behind"


def test_what_is_larger_than_the_disk_is_refused(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    storage.check_room(tmp_path / "not" / "there", free // 2, "the cache")
    with pytest.raises(UserError, match=r"the cache would take .* GiB in .*, where .* GiB are free"):
        storage.check_room(tmp_path, 2 * free, "the cache")


def test_every_flipped_byte_of_a_file_is_found(tmp_path):
    path = tmp_path / "x"
    tensors = {"a": torch.arange(5.0), "b": torch.ones(2, 2, dtype=torch.bfloat16), "empty": torch.zeros(0, 3)}
    storage.save_tensors(path, tensors, {"recipe": "name = 1", "other": "é"})
    whole = path.read_bytes()
    found = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            again, metadata = storage.load_tensors(path)
        except UserError as error:
            found += str(path) in str(error)
        else:  # in the name of the checksum, which then counts as absent
            assert len(metadata) == 3, place
            assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    assert found > 0.9 * len(whole)


def test_a_file_without_a_checksum_is_read_with_a_message(tmp_path, caplog):
    storage.save_file({"a": torch.ones(1)}, tmp_path / "x")
    with caplog.at_level("INFO"):
        assert storage.load_tensors(tmp_path / "x")[0]["a"].item() == 1
    assert "no checksum" in caplog.text


def test_what_a_killed_process_left_is_removed_and_what_is_being_written_is_not(tmp_path):
    left = tmp_path / ".x.npy.abc.polyalign-partial"
    left.write_bytes(b"1234")
    others = tmp_path / ".y.npy.abc.polyalign-partial"
    others.write_bytes(b"12")

    def fill(partial):
        assert not left.exists()
        assert partial.exists()
        assert storage.remove_abandoned(tmp_path) == 2
        assert partial.exists()
        assert not others.exists()

    storage.write(tmp_path / "x.npy", fill)
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


@pytest.mark.parametrize(
    ("code", "advice"), [(errno.ENOSPC, "make room or choose another folder"), (errno.ENOTDIR, "choose another folder")]
)
def test_only_a_full_disk_needs_room(tmp_path, code, advice):
    assert str(storage.cannot_write(tmp_path, OSError(code, "why"))) == f"cannot write {tmp_path}: why; {advice}"


def test_folders_that_killed_processes_left_are_deleted_and_those_in_use_are_not(tmp_path):
    left = tmp_path / f".out.abcd{storage.PARTIAL}"
    (left / "out").mkdir(parents=True)
    (left / "out" / "model.safetensors").write_bytes(b"half")
    foreign = tmp_path / f".other.abcd{storage.PARTIAL}"
    foreign.mkdir()
    link = tmp_path / f".out.link{storage.PARTIAL}"
    link.symlink_to(foreign)
    with storage.temporary_folder(tmp_path / "out") as used:
        storage.remove_abandoned_folders(tmp_path / "out")
        assert {path.name for path in tmp_path.iterdir()} == {used.name, foreign.name, link.name}
    assert {path.name for path in tmp_path.iterdir()} == {foreign.name, link.name}
