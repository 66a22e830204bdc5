from __future__ import annotations

import hashlib
import io
import json
import os
import re
import sys
import zipfile

import pytest

from polyalign import cli
from polyalign.config import plugins, shipped
from polyalign.data import catalogue
from polyalign.data import download as obtain
from polyalign.data.readers.info import Single
from polyalign.data.sources import coco_karpathy, xm3600, xtd
from polyalign.evaluation import suites as suite
from polyalign.utils.errors import UserError
from polyalign.utils.lock import LOCK_FILES, locked
from tests.serve import serving

PHOTOS = ["COCO_train2014_000000000009.jpg", "COCO_val2014_000000000042.jpg"]
XTD = {
    "XTD10/test_image_names.txt": "\n".join(PHOTOS).encode(),
    "XTD10/test_1kcaptions_en.txt": b"A dog.\nA cat.",
    "XTD10/test_1kcaptions_es.txt": b"Un perro.\nUn gato.",
}


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with serving() as site:
        yield site


@pytest.fixture
def published(site, monkeypatch):
    """Serve a small XTD from here, with the hashes of its files, and its photos one by one."""
    site.files |= XTD | dict.fromkeys(PHOTOS, b"jpeg")
    moved = [one.model_copy(update={"url": f"{site.url}/"}) for one in xtd.INFO.downloads]
    single = Single(urls={"COCO_": f"{site.url}/{{}}"}, to="coco", seen="here")
    monkeypatch.setattr(xtd, "INFO", xtd.INFO.model_copy(update={"downloads": tuple(moved), "single": single}))
    hashes = [(hashlib.sha256(content).hexdigest(), name) for name, content in XTD.items()]
    monkeypatch.setattr(obtain, "listed", lambda _: iter(hashes))
    return site


def get(root, photos="none", name="xtd"):
    return obtain.download_dataset(name, root, photos)


def test_a_dataset_is_got_and_can_be_read_and_what_is_left_to_do_is_told(published, tmp_path, caplog):
    told = get(tmp_path)
    assert (tmp_path / "xtd10" / "XTD10" / "test_1kcaptions_es.txt").read_bytes() == b"Un perro.\nUn gato."
    assert "3 downloaded, 0 already present" in told
    assert "captions in: en es" in told
    assert "--photos test (those of the test set)" in told
    assert "--photos all" not in told
    assert f"--data xtd --set source.root={tmp_path / 'xtd10'} --images {tmp_path / 'photos'}" in told
    assert caplog.messages == ["XTD10 / XTD11, licence: Adobe Research License: non-commercial research"]


def test_got_again_nothing_is_downloaded_and_another_file_in_its_place_is_an_error(published, tmp_path):
    get(tmp_path)
    asked = len(published.asked)
    assert "0 downloaded, 3 already present" in get(tmp_path)
    assert len(published.asked) == asked
    (tmp_path / "xtd10" / "XTD10" / "test_1kcaptions_en.txt").write_text("mine")
    with pytest.raises(UserError, match=r"test_1kcaptions_en\.txt differs from the published file: move it"):
        get(tmp_path)
    assert (tmp_path / "xtd10" / "XTD10" / "test_1kcaptions_en.txt").read_text() == "mine"


def test_photos_of_the_test_set_are_got_one_by_one(published, tmp_path):
    told = get(tmp_path, "test")
    assert sorted(path.name for path in (tmp_path / "photos" / "coco").iterdir()) == PHOTOS
    assert "photos needed" not in told
    with pytest.raises(UserError, match="only the photos of xtd's test set can be downloaded: use --photos test"):
        get(tmp_path, "all")


@pytest.mark.parametrize("name", ["COCO_../../x", "COCO_\x1b[2J.jpg", "COCO_a b.jpg", "/COCO_a.jpg"])
def test_a_photo_whose_name_could_lead_elsewhere_is_not_asked_for(published, tmp_path, name, monkeypatch):
    get(tmp_path)
    (tmp_path / "xtd10" / "XTD10" / "test_image_names.txt").write_text(f"{PHOTOS[0]}\n{name}")
    monkeypatch.setattr(obtain, "listed", lambda _: iter(()))
    with pytest.raises(UserError, match="is not the name of a photo: download xtd again"):
        get(tmp_path, "test")
    assert not (tmp_path / "photos").exists()


def test_an_archive_that_an_earlier_call_left_is_compared_with_its_hash(site, tmp_path, monkeypatch):
    one = xm3600.INFO.downloads[0].model_copy(update={"url": f"{site.url}/c.zip", "sha256": "0" * 64})
    monkeypatch.setattr(xm3600, "INFO", xm3600.INFO.model_copy(update={"downloads": (one,)}))
    (tmp_path / "xm3600").mkdir()
    os.mkfifo(tmp_path / "xm3600" / "c.zip")
    with pytest.raises(UserError, match=r"c\.zip differs from the published file: move it away"):
        get(tmp_path, name="xm3600")
    (tmp_path / "xm3600" / "c.zip").unlink()
    (tmp_path / "xm3600" / "c.zip").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"c\.zip differs from the published file: move it away"):
        get(tmp_path, name="xm3600")
    assert site.asked == []


def test_an_archive_is_unpacked_and_put_away(site, tmp_path, monkeypatch):
    row = {"image/key": "0a", "de": {"caption": ["Ein Hund."]}}
    for name, members in (("c.zip", {"x/captions.jsonl": json.dumps(row)}), ("p.zip", {"0a.jpg": "jpeg"})):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for member, content in members.items():
                archive.writestr(member, content)
        site.files[name] = packed.getvalue()
    info = xm3600.INFO
    moved = {
        "downloads": (info.downloads[0].model_copy(update={"url": f"{site.url}/c.zip"}),),
        "photos": (info.photos[0].model_copy(update={"url": f"{site.url}/p.zip"}),),
    }
    monkeypatch.setattr(xm3600, "INFO", info.model_copy(update=moved))
    told = get(tmp_path, "test", "xm3600")
    assert "2 downloaded" in told
    assert (tmp_path / "photos" / "xm3600" / "0a.jpg").read_bytes() == b"jpeg"
    assert {path.name for path in (tmp_path / "xm3600").iterdir()} - {*LOCK_FILES} == {"captions.jsonl"}
    assert "2 already present" in get(tmp_path, "test", "xm3600")
    assert len(site.asked) == 2


def test_what_may_not_be_downloaded_says_where_to_ask_and_what_to_place_where(tmp_path):
    with pytest.raises(
        UserError, match=r"flickr8k cannot be downloaded .*forms\.illinois\.edu.*place in .*captions/<language>\.txt"
    ):
        get(tmp_path, name="flickr8k")
    with pytest.raises(
        UserError, match=r"photos of flickr30k-200 cannot be downloaded .*forms\.illinois\.edu/sec/229675"
    ):
        get(tmp_path, "test", "flickr30k-200")
    with pytest.raises(UserError, match='no dataset "xdt"'):
        get(tmp_path, name="xdt")
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_what_there_is_and_a_failure_is_one_line(published, tmp_path, monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["polyalign", "data", "get", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return caught.value.code or 0, *capsys.readouterr()

    code, out, err = call("xtd", "--root", tmp_path)
    assert (code, "captions in: en es" in out, "licence" in err) == (0, True, True)
    del published.files["XTD10/test_image_names.txt"]
    code, _, err = call("xtd", "--root", tmp_path / "again")
    assert (code, "HTTP 404" in err, err.strip().count("\n")) == (2, True, 1)  # the licence, and the error
    assert call("flickr8k", "--root", tmp_path)[0] == 2
    asked = len(published.asked)
    code, _, err = call("xtd", "--root", tmp_path / "off", "--offline")
    assert (code, "cannot be downloaded offline" in err, len(published.asked)) == (2, True, asked)


# The catalogue


INFOS = catalogue.infos()


def test_what_is_downloaded_has_an_address_whose_source_is_named():
    assert sum(bool(info.downloads) for info in INFOS.values()) >= 10
    for name, info in INFOS.items():
        for one in (*info.downloads, *info.photos):
            assert re.fullmatch(r"https?://[\w.-]+/\S+", one.url), name
            assert one.seen, name
            assert not one.sha256 or re.fullmatch("[0-9a-f]{64}", one.sha256), name
            # what moves has a hash or is packed with one of its own
            assert one.url.endswith("/") or one.sha256 or re.search(r"\.(zip|t?gz|bz2)$", one.url), name


@pytest.mark.parametrize("name", [n for n, info in INFOS.items() if any(d.url.endswith("/") for d in info.downloads)])
def test_a_list_of_hashes_is_of_the_form_of_sha256sum(name):
    files = list(obtain.listed(name))
    assert len(files) > 10
    assert len({path for _, path in files}) == len(files)
    for sha256, path in files:
        assert re.fullmatch("[0-9a-f]{64}", sha256)
        assert re.fullmatch(r"[\w./-]+", path)
        assert not path.startswith(("/", "."))


def test_datasets_lie_where_the_shipped_suites_look():
    for one in (one for name in shipped.shipped_names("suites") for one in suite.load(name).benchmarks):
        assert one.spec.options["root"] == plugins.load_plugin("sources", one.spec.name).INFO.folder


def test_facts_that_could_not_be_looked_up_say_so():
    assert "could not be checked" in coco_karpathy.INFO.checked
    assert all(info.checked for info in INFOS.values())


def test_a_second_download_into_the_same_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(obtain, "fetch", lambda *_, **__: pytest.fail("downloaded"))
    for place in ("multi30k", obtain.PHOTOS):
        with locked(tmp_path / place), pytest.raises(UserError, match=f"{place} is in use by process"):
            obtain.download_dataset("multi30k", tmp_path, "test")
    assert list(tmp_path.iterdir()) == []
