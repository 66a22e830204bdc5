from __future__ import annotations

import gzip
import io
import shutil
import tarfile
import zipfile
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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


# Archives that are not what they should be


def tar(path, *members, mode="w:gz"):
    """Write members given as name, content and attributes of ``TarInfo``."""
    with tarfile.open(path, mode, format=tarfile.PAX_FORMAT) as archive:
        for name, content, attributes in members:
            member = tarfile.TarInfo(name)
            for key, value in ({"size": len(content)} | attributes).items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(content))
    return path


def zipped(path, *members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def patched(path, old, new):
    """Replace bytes in a file, as a header that lies."""
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))
    return path


def link(path):
    member = zipfile.ZipInfo("a.jpg")
    member.create_system, member.external_attr = 3, 0o120777 << 16
    return zipped(path, (member, b"/etc/passwd"))


def sparse(path):
    """A tar whose only member says that it is 4 TiB of zeros."""
    header = bytearray(tarfile.TarInfo("a.jpg").tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"S"
    header[483:495] = b"\x80" + (2**42).to_bytes(11, "big")
    header[148:156] = b"        "
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    path.write_bytes(header + bytes(1024))
    return path


def huge_header(path):
    """A gzip file of a tar with a header of half a GiB."""
    head = tarfile.TarInfo("x")
    head.type, head.size = tarfile.XHDTYPE, 2**29
    path.write_bytes(gzip.compress(head.tobuf() + bytes(2**20)))
    return path


ZEROS = bytes(80 * 2**20)
KINDS = {
    "link": {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
    "hard link": {"type": tarfile.LNKTYPE, "linkname": "../b.jpg"},
    "device": {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5},
    "pipe": {"type": tarfile.FIFOTYPE},
}
UNSAFE = {
    "zip bomb": ("more than 100 times", lambda path: zipped(path, ("a.jpg", ZEROS))),
    "bomb of bzip2 in zip": ("more than 100", lambda path: zipped(path, ("a.jpg", ZEROS), method=zipfile.ZIP_BZIP2)),
    "tar bomb": ("more than 100 times", lambda path: tar(path, ("a.jpg", ZEROS, {}))),
    "hidden tar bomb": ("more than 100 times", lambda path: tar(path, (".a", ZEROS, {}), ("b", b"", {}), mode="w:xz")),
    "sparse": ("sparse file", sparse),
    "huge header": ("a header gives a size of 536,870,912 bytes", huge_header),
    "link in zip": ("is a link", link),
    **{kind: ("is a link, a device", lambda path, facts=facts: tar(path, ("a.jpg", b"", facts)))
       for kind, facts in KINDS.items()},
    "equal names": ('two files named "a.jpg"', lambda path: zipped(path, ("x/a.jpg", b"A"), ("y/a.jpg", b"B"))),
    "equal names, tar": ("two files", lambda path: tar(path, ("x/a.jpg", b"A", {}), ("y\\a.jpg", b"B", {}))),
    "control characters": ("is not the name of a file", lambda path: tar(path, ("a\x1b[2J\n.jpg", b"A", {}))),
    "no name": ("is not the name of a file", lambda path: zipped(path, ("\\", b"A"))),
    "long name": ("too long", lambda path: zipped(path, ("a" * 300, b"A"))),
    "encrypted": ("encrypted", lambda path: patched(zipped(path, ("a.jpg", b"A")), b"PK\x01\x02\x14\x03\x14\0\0\0",
                                                    b"PK\x01\x02\x14\x03\x14\0\1\0")),
    "unknown method": ("compression", lambda path: patched(zipped(path, ("a.jpg", b"A")), b"\x14\0\0\0\x08\0",
                                                           b"\x14\0\0\0\x63\0")),
    "web page": ("", lambda path: path.write_bytes(b"<!doctype html>" * 100) and path),
    "empty": ("", lambda path: path.write_bytes(b"") or path),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNSAFE)
def test_an_unsafe_archive_is_one_line_and_leaves_nothing(tmp_path, kind):
    told, build = UNSAFE[kind]
    path = build(tmp_path / "x.archive")
    with pytest.raises(UserError, match=rf"x\.archive cannot be unpacked \(.*{told}.*was deleted") as caught:
        unpack.everything(path, tmp_path / "out")
    assert str(caught.value).isprintable()
    assert list(tmp_path.iterdir()) == []


def test_an_archive_with_too_many_members_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(unpack, "_MAX_MEMBERS", 2)
    names = ("0.jpg", "1.jpg", "2.jpg")
    zip_file = zipped(tmp_path / "a", *((name, b"A") for name in names))
    for path in (zip_file, tar(tmp_path / "b", *((name, b"", {}) for name in names))):
        with pytest.raises(UserError, match="it has more than 2 members"):
            unpack.named(path, ("0.jpg",), tmp_path)


def test_hidden_files_and_folders_are_left_out(tmp_path):
    members = [("in/", b""), ("in/a.jpg", b"A"), ("__MACOSX/in/._a.jpg", b"x"), (".DS_Store", b"x"), ("..", b"x")]
    unpack.everything(zipped(tmp_path / "x.zip", *members), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.jpg"]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([".zip", ".tar.gz", ".tar"]), st.data())
def test_a_damaged_archive_is_unpacked_or_refused(tmp_path, suffix, data):
    whole = io.BytesIO()
    if suffix == ".zip":
        zipped(whole, ("a.jpg", b"A" * 50), ("b/c.jpg", b"C" * 700))
    else:
        with tarfile.open(fileobj=whole, mode="w:gz" if suffix == ".tar.gz" else "w") as archive:
            archive.addfile(tarfile.TarInfo("a.jpg"))
    content = bytearray(whole.getvalue())
    for place in data.draw(st.lists(st.integers(0, min(600, len(content) - 1)), min_size=1, max_size=6)):
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path / "x"
    path.write_bytes(content)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    with suppress(UserError):
        unpack.everything(path, tmp_path / "out")
    assert not (tmp_path / ".out.part").exists()
