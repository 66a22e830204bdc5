"""Indexes of real folders: what is embedded, kept, renamed and left out, whatever the files are."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from polyalign.evaluation.model import Model, load
from polyalign.models import checkpoint
from polyalign.serving import index_build
from polyalign.serving.index import Index
from polyalign.serving.index_build import build, update
from polyalign.serving.photo_folder import read_captions, scan
from polyalign.utils.errors import UserError
from polyalign.utils.lock import locked
from tests import tiny

RED, BLUE, GREEN = (("red",) * 4, ("blue",) * 4, ("green", "red", "blue", "white"))


def saved(folder, seed: int = 0, strategy: str = "projection") -> str:
    """A finished run of random weights, without training."""
    recipe = tiny.resolved(strategy, train={"seed": seed})
    aligner = tiny.build_aligner(recipe)
    tiny.jitter(aligner, seed)
    checkpoint.save(folder, aligner, recipe)
    return str(folder)


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    return saved(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for name, scene in (("red.png", RED), ("blue.png", BLUE), ("sub/green.PNG", GREEN)):
        tiny.draw(scene).save(folder / name)
    return folder


def counts(changes) -> dict[str, int]:
    return {name: value for name, value in vars(changes).items() if value}


def state(folder, *, ids: bool = False) -> object:
    """What an index says: each photo and its vector, and the unreadable files."""
    index = Index.open(folder)
    found = [(photo, index.vector(one)) for one in index.ids.tolist() if (photo := index.photo(one)) is not None]
    rows = [(photo.path, photo.metadata, vector.tolist(), *([photo.id] if ids else [])) for photo, vector in found]
    return sorted(rows, key=lambda row: os.fsencode(row[0])), index.describe()["unreadable"]


def test_vectors_are_those_of_the_model(model, photos, tmp_path):
    assert counts(build(model, photos, tmp_path / "ix")) == {"added": 3, "embedded": 3}
    index = Index.open(tmp_path / "ix")
    assert [index.photo(one).path for one in index.ids.tolist()] == ["blue.png", "red.png", "sub/green.PNG"]
    wanted = load(model).encode_image([index.file(index.photo(one)) for one in index.ids.tolist()])
    assert np.array_equal(index.vectors(index.ids.tolist()), wanted.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("strategy", ["projection", "lora", "lilt-deep", "full"])
def test_the_text_side_alone_gives_the_same_vectors(tmp_path, strategy):
    run = saved(tmp_path / "run", strategy=strategy)
    both, alone = load(run), Model(index_build.open_model(run, text_only=True))
    assert all(parameter.is_meta for parameter in alone.encoder.aligner.vision.model.parameters())
    sentences = ["red green", "blue"]
    assert np.array_equal(alone.encode_text(sentences), both.encode_text(sentences))


def test_an_update_embeds_only_new_contents(model, photos, tmp_path, monkeypatch):
    build(model, photos, tmp_path / "ix")
    before = {path: photo_id for path, _, _, photo_id in state(tmp_path / "ix", ids=True)[0]}
    (photos / "red.png").rename(photos / "rouge.png")
    (photos / "sub/green.PNG").unlink()
    shutil.copy(photos / "blue.png", photos / "twin.png")
    os.utime(photos / "blue.png", (1, 1))
    monkeypatch.setattr(index_build, "open_model", lambda *_: pytest.fail("the model was loaded"))
    changes = update(tmp_path / "ix")
    assert counts(changes) == {"added": 1, "changed": 1, "renamed": 1, "deleted": 1}
    assert counts(update(tmp_path / "ix")) == {}
    rows = state(tmp_path / "ix", ids=True)[0]
    assert {path: photo_id for path, _, _, photo_id in rows} == {
        "blue.png": before["blue.png"], "rouge.png": before["red.png"], "twin.png": 4,
    }  # fmt: skip
    assert rows[0][2] == rows[2][2]
    monkeypatch.undo()
    tiny.draw(GREEN).save(photos / "again.png")
    tiny.draw(("black",) * 4).save(photos / "blue.png")
    assert counts(update(tmp_path / "ix")) == {"added": 1, "changed": 1, "embedded": 1}
    build(model, photos, tmp_path / "fresh")
    assert state(tmp_path / "ix") == state(tmp_path / "fresh")


def test_two_photos_that_swap_their_names(model, photos, tmp_path):
    build(model, photos, tmp_path / "ix")
    for old, new in (("red.png", "x"), ("blue.png", "red.png"), ("x", "blue.png")):
        (photos / old).rename(photos / new)
    for name in ("red.png", "blue.png"):
        os.utime(photos / name, (5, 5))
    assert counts(update(tmp_path / "ix")) == {"changed": 2}
    build(model, photos, tmp_path / "fresh")
    assert state(tmp_path / "ix") == state(tmp_path / "fresh")


ODD = [b"line\nbreak.png", b"quote'\x22.png", b"bytes\xff\xfe.png", b"<script>.png", b"\x1b[31m.png", b"-rf.png"]


@pytest.mark.parametrize("name", ODD)
def test_odd_names(model, photos, tmp_path, name):
    (photos / "red.png").rename(photos / os.fsdecode(name))
    build(model, photos, tmp_path / "ix")
    index = Index.open(tmp_path / "ix")
    found = [index.photo(one) for one in index.ids.tolist()]
    assert name in [os.fsencode(photo.path) for photo in found]
    assert all(index.file(photo).is_file() for photo in found)


def test_unreadable_files_are_listed_and_tried_again_once_changed(model, photos, tmp_path):
    (photos / "empty.jpg").touch()
    (photos / "corrupt.jpg").write_bytes(b"no image")
    whole = (photos / "blue.png").read_bytes()
    (photos / "cut.png").write_bytes(whole[: len(whole) // 2])
    (photos / "broken.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(photos / "pipe.jpg")
    assert counts(build(model, photos, tmp_path / "ix")) == {"added": 3, "embedded": 3}
    unreadable = Index.open(tmp_path / "ix").describe()["unreadable"]
    assert [one["path"] for one in unreadable] == ["broken.jpg", "corrupt.jpg", "cut.png", "empty.jpg", "pipe.jpg"]
    assert all(one["reason"] for one in unreadable)
    assert counts(update(tmp_path / "ix")) == {}
    (photos / "cut.png").write_bytes(whole)
    assert counts(update(tmp_path / "ix")) == {"changed": 1}
    assert len(Index.open(tmp_path / "ix")) == 4


def test_a_file_that_cannot_be_read_is_tried_again(model, photos, tmp_path, monkeypatch):
    scanned = scan(photos)
    (photos / "red.png").unlink()
    monkeypatch.setattr(index_build, "scan", lambda _: scanned)
    build(model, photos, tmp_path / "ix")
    assert Index.open(tmp_path / "ix").describe()["unreadable"][0]["reason"] == "No such file or directory"
    monkeypatch.undo()
    tiny.draw(RED).save(photos / "red.png")
    update(tmp_path / "ix")
    assert state(tmp_path / "ix")[1] == []


def test_links_are_followed_once(photos, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    tiny.draw(RED).save(tmp_path / "elsewhere" / "far.png")
    (photos / "linked").symlink_to(tmp_path / "elsewhere")
    (photos / "again").symlink_to(tmp_path / "elsewhere")
    (photos / "loop").symlink_to(photos)
    (photos / "sub/up").symlink_to("..")
    (photos / "a").symlink_to("sub")
    (photos / "self").symlink_to("self")
    (photos / "one.png").symlink_to("red.png")
    wanted = [b"again/far.png", b"blue.png", b"one.png", b"red.png", b"sub/green.PNG"]
    assert sorted(scan(photos)) == wanted


def test_a_photo_is_turned_as_in_training(model, photos, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = tiny.draw(GREEN)
    image.rotate(90, expand=True).save(photos / "turned.png", exif=exif)
    build(model, photos, tmp_path / "ix")
    rows = {path: vector for path, _, vector in state(tmp_path / "ix")[0]}
    assert rows["turned.png"] == rows["sub/green.PNG"]


def test_another_model_or_folder_is_refused_by_name(model, photos, tmp_path):
    build(model, photos, tmp_path / "ix")
    other = saved(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match=rf"has vectors of {model} \(weights .*\), and {other} is another model"):
        build(other, photos, tmp_path / "ix")
    with pytest.raises(UserError, match=f"is an index of {photos}"):
        build(model, photos / "sub", tmp_path / "ix")
    copy = shutil.copytree(model, tmp_path / "copy")
    build(str(copy), photos, tmp_path / "of-copy")
    saved(copy, seed=2)
    with pytest.raises(UserError, match="was trained again since then"):
        update(tmp_path / "of-copy")


def test_moved_run_and_photos(model, photos, tmp_path):
    copy = shutil.copytree(model, tmp_path / "copy")
    build(str(copy), photos, tmp_path / "ix")
    copy.rename(tmp_path / "moved-run")
    photos.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="holds no finished checkpoint"):
        update(tmp_path / "ix")
    with pytest.raises(UserError, match="no such folder"):
        update(tmp_path / "ix", model=str(tmp_path / "moved-run"))
    assert counts(update(tmp_path / "ix", tmp_path / "moved", str(tmp_path / "moved-run"))) == {}
    index = Index.open(tmp_path / "ix")
    assert index.file(index.photo(1)).is_file()
    assert index.model == str(tmp_path / "moved-run")


def test_no_photos_at_all_is_an_error_that_deletes_nothing(model, photos, tmp_path):
    build(model, photos, tmp_path / "ix")
    shutil.rmtree(photos)
    photos.mkdir()
    with pytest.raises(UserError, match="there are no images under"):
        update(tmp_path / "ix")
    assert len(Index.open(tmp_path / "ix")) == 3
    with pytest.raises(UserError, match="there are no images under"):
        build(model, photos, tmp_path / "new")
    assert not (tmp_path / "new").exists()


TABLE = """image,caption,lang
photos/red.png,nyekundu,sw
photos/red.png,red,en
photos/sub\\green.PNG,"kijani, ""safi"" sana",sw
photos/gone.png,x,sw
"""


def test_a_captions_table(model, photos, tmp_path):
    (tmp_path / "captions.csv").write_text(TABLE, encoding="utf-8")
    changes = build(model, photos, tmp_path / "ix", tmp_path / "captions.csv")
    assert changes.absent == ["photos/gone.png"]
    index = Index.open(tmp_path / "ix")
    assert index.columns == ("caption", "lang")
    assert {photo.path: photo.metadata for one in index.ids.tolist() if (photo := index.photo(one))} == {
        "blue.png": {},
        "red.png": {"caption": "nyekundu\nred", "lang": "sw\nen"},
        "sub/green.PNG": {"caption": 'kijani, "safi" sana', "lang": "sw"},
    }
    query = index.vector(1)
    assert {hit.photo.path for hit in index.search(query, where={"lang": "sw"})} == {"red.png", "sub/green.PNG"}
    assert [hit.photo.path for hit in index.search(query, where={"lang": "en", "caption": "red"})] == ["red.png"]
    assert index.search(query, where={"lang": "e"}) == []
    rest = TABLE.replace("kijani", "bluu").replace("sub\\green.PNG", "blue.png")
    (tmp_path / "captions.csv").write_text(rest, encoding="utf-8")
    assert counts(update(tmp_path / "ix")) == {"absent": ["photos/gone.png"]}
    build(model, photos, tmp_path / "fresh", tmp_path / "captions.csv")
    assert state(tmp_path / "ix") == state(tmp_path / "fresh")
    (tmp_path / "captions.csv").unlink()
    (photos / "red.png").rename(photos / "rouge.png")
    update(tmp_path / "ix")
    assert {path: metadata for path, metadata, _ in state(tmp_path / "ix")[0]}["rouge.png"][
        "caption"
    ] == "nyekundu\nred"


def test_a_captions_table_of_other_photos(model, photos, tmp_path):
    (tmp_path / "captions.csv").write_text("image,caption\nx.png,y\n", encoding="utf-8")
    with pytest.raises(UserError, match=r'column "image" names no photo under .*, but files such as x\.png'):
        build(model, photos, tmp_path / "ix", tmp_path / "captions.csv")


def test_an_index_in_use(model, photos, tmp_path):
    build(model, photos, tmp_path / "ix")
    with locked(tmp_path / "ix"):
        assert counts(update(tmp_path / "ix")) == {}
        tiny.draw(GREEN).save(photos / "new.png")
        with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
            update(tmp_path / "ix")


def test_damage_is_found_before_anything_is_added(model, photos, tmp_path):
    build(model, photos, tmp_path / "ix")
    path = tmp_path / "ix" / "vectors.f16"
    path.write_bytes(b"\0" * path.stat().st_size)
    tiny.draw(("black",) * 4).save(photos / "new.png")
    with pytest.raises(UserError, match="is damaged"):
        update(tmp_path / "ix")


def test_an_index_among_its_photos_is_left_out(model, photos):
    build(model, photos, photos / "my.index")
    (photos / "my.index/.thumbnails/ab").mkdir(parents=True)
    tiny.draw(BLUE).save(photos / "my.index/.thumbnails/ab/x.jpg")
    assert counts(update(photos / "my.index")) == {}


def test_an_interrupted_build_continues_where_the_run_is_now(model, photos, tmp_path):
    copy = shutil.copytree(model, tmp_path / "copy")
    build(str(copy), photos, tmp_path / "ix")
    moved = copy.rename(tmp_path / "moved")
    tiny.draw(("black",) * 4).save(photos / "new.png")
    assert counts(build(str(moved), photos, tmp_path / "ix")) == {"added": 1, "embedded": 1}
    assert Index.open(tmp_path / "ix").model == str(moved)


def test_a_captions_table_without_names_of_photos(photos, tmp_path):
    (tmp_path / "captions.csv").write_text("foto,caption\nred.png,y\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"captions\.csv.* has no column of image names \(image, .*, foto, caption$"):
        read_captions(tmp_path / "captions.csv", photos, [b"red.png"])
