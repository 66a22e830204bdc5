from __future__ import annotations

import hashlib
import os
import shutil
import urllib.request
from collections import namedtuple

import pytest

from polyalign.data import fetch as download
from polyalign.utils.errors import UserError
from tests import tiny
from tests.serve import serving

CONTENT = bytes(range(256)) * 4096  # 1 MiB
HASH = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with serving() as site:
        site.files["a.bin"] = CONTENT
        yield site


def get(site, path, name="a.bin", **options):
    waits = []
    download.fetch(f"{site.url}/{name}", path, wait=waits.append, **options)
    return waits


def test_a_file_is_placed_whole_and_checked(site, tmp_path):
    path = tmp_path / "folder" / "a.bin"
    assert get(site, path, sha256=HASH) == []
    assert path.read_bytes() == CONTENT
    assert [other.name for other in path.parent.iterdir()] == ["a.bin"]


def test_a_dropped_connection_is_gone_on_with_where_it_stopped(site, tmp_path):
    site.drop_after["a.bin"] = [1000, 3000]
    waits = get(site, tmp_path / "a.bin", sha256=HASH)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert [start for _, start in site.asked] == [0, 1000, 4000]
    assert waits == [1, 1]  # each try got on, so the pause does not grow


def test_what_an_earlier_call_left_is_gone_on_with(site, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:5000])
    get(site, tmp_path / "a.bin", sha256=HASH)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert site.asked == [("a.bin", 5000)]


@pytest.mark.parametrize("left", [CONTENT, b"of another version", CONTENT + b"longer than it is now"])
def test_whatever_an_earlier_call_left_the_file_is_right_in_the_end(site, tmp_path, left):
    (tmp_path / "a.bin.part").write_bytes(left)
    get(site, tmp_path / "a.bin", sha256=HASH)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert [other.name for other in tmp_path.iterdir()] == ["a.bin"]


def test_a_server_without_ranges_sends_all_again(site, tmp_path):
    site.ranges = False
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:5000])
    get(site, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_wrong_hash_is_an_error_that_keeps_nothing(site, tmp_path):
    with pytest.raises(UserError, match=f"has SHA-256 {HASH}, expected 0000.*download was deleted"):
        get(site, tmp_path / "a.bin", sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []
    assert len(site.asked) == 1


def test_what_is_not_there_is_not_asked_for_again(site, tmp_path):
    with pytest.raises(UserError, match=r"b\.bin cannot be downloaded: HTTP 404"):
        get(site, tmp_path / "b.bin", "b.bin")
    assert len(site.asked) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_busy_is_asked_again_after_the_pause_it_asks_for(site, tmp_path):
    site.answers["a.bin"] = [(503, {"Retry-After": "7"}), (500, {}), (429, {"Retry-After": "tomorrow"})]
    assert get(site, tmp_path / "a.bin", sha256=HASH) == [7, 2, 4]


def test_one_that_stays_busy_is_given_up_and_what_came_is_kept(site, tmp_path):
    site.drop_after["a.bin"] = [1000]
    waits = []

    def wait(seconds):
        waits.append(seconds)
        site.answers["a.bin"] = [(503, {})]

    with pytest.raises(UserError, match=r"in 5 attempts: HTTP 503 .*again to resume"):
        download.fetch(f"{site.url}/a.bin", tmp_path / "a.bin", wait=wait)
    assert waits == [1, 2, 4, 8]
    assert (tmp_path / "a.bin.part").read_bytes() == CONTENT[:1000]
    assert not (tmp_path / "a.bin").exists()


def test_no_server_at_all_is_one_line(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with pytest.raises(UserError, match=r"could not be downloaded in 5 attempts: .*refused"):
        download.fetch("http://127.0.0.1:9/a", tmp_path / "a", wait=tiny.quiet)


def test_a_full_disk_is_found_before_it_is_full(site, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 66 * 2**20))
    get(site, tmp_path / "a.bin", copies=2)
    with pytest.raises(UserError, match=r"a\.bin would take .*MiB in .*, where 66\.0 MiB are free: make room"):
        get(site, tmp_path / "a.bin", copies=3)


def test_a_large_file_tells_how_far_it_is(site, tmp_path, news):
    site.files["large.bin"] = bytes(9 * 2**20)
    download.fetch(f"{site.url}/large.bin", tmp_path / "large.bin")
    assert news[0] == ("large.bin, MiB", 1, 9)
    assert news[-1] == ("large.bin, MiB", 9, 9)


def test_a_folder_that_cannot_be_is_an_error(site, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "b.bin.part").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*b\.bin\.part"):
        get(site, tmp_path / "b.bin")
    with pytest.raises(UserError, match=r"cannot write .*file"):
        get(site, tmp_path / "file" / "a.bin")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html>\n<title>Sign in</title>", "is a web page, not a file"),
        (b"\xef\xbb\xbf \n<html lang='en'>", "is a web page, not a file"),
    ],
)
def test_what_is_no_file_is_refused_and_deleted(site, tmp_path, content, told):
    site.files["a.bin"] = content
    with pytest.raises(UserError, match=rf"a\.bin {told}.*the download was deleted"):
        get(site, tmp_path / "a.bin")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_changed_on_the_server_is_not_joined_with_the_old_one(site, tmp_path):
    site.tags["a.bin"] = '"1"'
    site.drop_after["a.bin"] = [5000]

    def wait(_):
        site.files["a.bin"], site.tags["a.bin"] = CONTENT[::-1], '"2"'

    download.fetch(f"{site.url}/a.bin", tmp_path / "a.bin", wait=wait)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT[::-1]
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_without_hash_and_version_a_download_begins_again(site, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(b"of another file")
    get(site, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert site.asked == [("a.bin", 0)]


def test_short_parts_are_joined(site, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:5000])
    site.most = 2**19
    get(site, tmp_path / "a.bin", sha256=HASH)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert [start for _, start in site.asked] == [5000, 5000 + 2**19]


@pytest.mark.parametrize("sent", ["bytes 7-9/1048576", "bytes */5", "nonsense", ""])
def test_another_part_than_requested_is_not_kept(site, tmp_path, sent):
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:5000])
    site.answers["a.bin"] = [(206, {"Content-Range": sent})]
    get(site, tmp_path / "a.bin", sha256=HASH)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_redirect_to_another_host_is_named_and_its_file_checked(site, tmp_path, caplog):
    download._Redirects.told.clear()
    site.answers["b.bin"] = [(302, {"Location": f"{site.url.replace('127.0.0.1', 'localhost')}/a.bin"})]
    get(site, tmp_path / "b.bin", "b.bin", sha256=HASH)
    assert caplog.messages == ["127.0.0.1 redirects to localhost"]
    site.answers["c.bin"] = [(302, {"Location": f"{site.url}/c.bin"})] * 20
    with pytest.raises(UserError, match="HTTP 302 ") as caught:
        get(site, tmp_path / "c.bin", "c.bin")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("to", ["http://example.org/\x1b[2Ja.bin", "ftp://example.org/a.bin", "file:///etc/passwd"])
def test_a_redirect_from_https_to_anything_else_is_refused(to):
    request = urllib.request.Request("https://example.org/a.bin")
    with pytest.raises(UserError, match=r"^https://example\.org/a\.bin redirects to [a-z:/.]*(None)?, which is not"):
        download._Redirects().redirect_request(request, None, 302, "Found", {}, to)


def test_offline_nothing_is_asked_for(site, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"a\.bin is not there and cannot be downloaded offline; its address is http"):
        get(site, tmp_path / "folder" / "a.bin")
    assert site.asked == []
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_or_link_in_the_place_of_a_download_is_not_written_to(site, tmp_path):
    os.mkfifo(tmp_path / "a.bin.part")
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "b.bin.part").symlink_to(tmp_path / "mine")
    for name in ("a.bin", "b.bin"):
        with pytest.raises(UserError, match=r"cannot write .*\.part: there is something else of this name"):
            get(site, tmp_path / name)
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_file_without_end_is_given_up(site, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_LARGEST", 2**19)
    with pytest.raises(UserError, match=r"a\.bin is larger than"):
        get(site, tmp_path / "a.bin")
    assert list(tmp_path.iterdir()) == []
