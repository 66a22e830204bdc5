from __future__ import annotations

import io
import tarfile
import zipfile

import pytest

from polyalign.data import unpack
from polyalign.utils.errors import UserError

FILES = {"data/a.json": b"A", "data/deep/b.json": b"BB", "c.jpg": b"CCC" * 2**20}


def make(path):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in FILES.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, "w:gz") as archive:
            for name, content in FILES.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture(params=["x.zip", "x.tar.gz", "x.tgz"])
def archive(request, tmp_path):
    return make(tmp_path / request.param)


def test_files_are_taken_by_name_wherever_they_are(archive, tmp_path):
    unpack.named(archive, ("b.json", "a.json"), tmp_path)
    assert (tmp_path / "a.json").read_bytes() == b"A"
    assert (tmp_path / "b.json").read_bytes() == b"BB"
    assert not (tmp_path / "c.jpg").exists()


def test_all_are_taken_into_a_folder_that_appears_when_it_is_complete(archive, tmp_path):
    stale = tmp_path / ".out.part"
    stale.mkdir()
    (stale / "of an interrupted call").write_text("")
    unpack.everything(archive, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {
        name.rpartition("/")[2]: content for name, content in FILES.items()
    }
    assert not stale.exists()


def test_a_name_that_is_not_in_it_is_told(archive, tmp_path):
    with pytest.raises(UserError, match=r"does not contain z\.json"):
        unpack.named(archive, ("a.json", "z.json"), tmp_path)


def test_a_broken_archive_is_deleted_so_that_it_can_be_had_again(archive, tmp_path):
    content = archive.read_bytes()
    archive.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="was deleted: download it again"):
        unpack.everything(archive, tmp_path / "out")
    assert not archive.exists()
    assert not (tmp_path / "out").exists()


def test_a_name_that_leads_out_of_the_folder_stays_in_it(tmp_path):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../../evil.txt", b"E")
    unpack.everything(tmp_path / "evil.zip", tmp_path / "in" / "out")
    assert [path.name for path in (tmp_path / "in" / "out").iterdir()] == ["evil.txt"]
    assert not (tmp_path / "evil.txt").exists()
