"""``polyalign search`` and ``index`` on the command line, contact sheets and exports."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import webbrowser
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from polyalign.evaluation import evaluate
from polyalign.evaluation.model import load
from polyalign.serving import index_build, index_export, search
from polyalign.serving.index import Index
from polyalign.serving.index_store import VECTORS
from polyalign.utils.errors import UserError
from polyalign.utils.lock import locked
from tests import tiny
from tests.unit.test_index_build import model, photos, saved, state  # noqa: F401

SENTENCES = ("red green blue white", "a red and a red , below a red then a red")


@pytest.fixture
def index(model, photos, tmp_path):  # noqa: F811
    (photos / "captions.csv").write_text(
        "image,caption,split\nred.png,nyekundu,test\nblue.png,<b>,dev\n", encoding="utf-8"
    )
    index_build.build(model, photos, tmp_path / "ix", photos / "captions.csv")
    return tmp_path / "ix"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYALIGN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "indexes"


def test_the_scores_are_those_of_the_model(run, model, photos):  # noqa: F811
    names = ["blue.png", "red.png", "sub/green.PNG"]
    both = load(model)
    scores = both.similarity([photos / name for name in names], list(SENTENCES))
    for column, sentence in enumerate(SENTENCES):
        code, out, err = run("search", model, sentence, "--images", photos, "--json")
        assert code == 0, err
        wanted = sorted(zip(scores[:, column].tolist(), names, strict=True), reverse=True)
        found = json.loads(out)
        assert [row["path"] for row in found] == [str(photos / name) for _, name in wanted]
        assert [row["score"] for row in found] == pytest.approx([score for score, _ in wanted], abs=1e-3)


def test_the_second_search_loads_no_vision_tower(run, model, photos, monkeypatch):  # noqa: F811
    words = ("search", model, "red", "--images", photos)
    first = run(*words)
    assert first[0] == 0
    whole = evaluate.open_model

    def text_only(*given, text_only=False):
        assert text_only
        return whole(*given, text_only=True)

    monkeypatch.setattr(search, "open_model", text_only)
    monkeypatch.setattr(index_build, "open_model", text_only)
    assert run(*words)[:2] == first[:2]
    (photos / "red.png").rename(photos / "rouge.png")
    assert run(*words)[1] == first[1].replace("red.png", "rouge.png")


def test_a_kept_index_of_an_earlier_training_or_damaged_is_made_anew(run, photos, tmp_path, cache):  # noqa: F811
    model = saved(tmp_path / "run")  # noqa: F811
    words = ("search", model, "red", "--images", photos)
    first = run(*words)[1]
    saved(tmp_path / "run", seed=3)
    code, second, err = run(*words)
    assert code == 0
    assert "computed again" in err
    assert second != first
    (kept,) = cache.iterdir()
    (kept / VECTORS).write_bytes(b"")
    code, third, err = run(*words)
    assert (code, third) == (0, second)
    assert "computed again" in err
    assert "freed" in run("cache", "clear")[1]
    assert not list(cache.iterdir())


def test_clearing_keeps_what_is_in_use(run, model, photos, cache):  # noqa: F811
    for folder in (photos, photos / "sub"):
        assert run("search", model, "red", "--images", folder)[0] == 0
    used = min(cache.iterdir())
    with locked(used):
        code, out, err = run("cache", "clear")
    assert (code, err) == (0, f"{used} is in use: it is kept\n")
    assert "freed" in out
    assert list(cache.iterdir()) == [used]


def test_the_cache_names_towers_models_and_folders_and_clears_one_by_name(run, model, photos, cache):  # noqa: F811
    for folder in (photos, photos / "sub"):
        assert run("search", model, "red", "--images", folder)[0] == 0
    found = json.loads(run("cache", "list", "--json")[1])
    indexes = [one for one in found if one["what"] == "photos"]
    assert {one["folder"] for one in indexes} == {str(photos), str(photos / "sub")}
    assert {one["model"] for one in indexes} == {str(model)}
    shown = run("cache", "list")[1]
    assert all(one["name"] in shown and one["folder"] in shown for one in indexes)
    towers = {one["model"] for one in found if one not in indexes}
    assert towers <= {str(tiny.text()), str(tiny.vision())}
    code, out, _ = run("cache", "clear", indexes[0]["name"])
    assert code == 0
    assert "freed" in out
    assert [path.name for path in cache.iterdir()] == [indexes[1]["name"]]
    code, out, err = run("cache", "clear", indexes[0]["name"])
    assert (code, out) == (2, "")
    assert err == f"error: nothing is cached as '{indexes[0]['name']}': see `polyalign cache list`\n"


def test_prune_deletes_the_folder_that_was_not_searched_for_longest(run, model, photos, cache):  # noqa: F811
    kept = []
    for folder in (photos, photos / "sub"):
        assert run("search", model, "red", "--images", folder)[0] == 0
        (new,) = set(cache.iterdir()) - set(kept)
        kept.append(new)
    for place in (*kept, *(cache.parent / "features").rglob("*.rows")):
        os.utime(place, (100, 100))
    assert run("search", model, "red", "--images", photos)[0] == 0  # now the last used
    size = sum(path.stat().st_size for path in kept[0].iterdir())
    code, out, _ = run("cache", "prune", "--max-gib", size * 1.5 / 2**30)
    assert code == 0
    assert kept[1].name in out
    assert list(cache.iterdir()) == kept[:1]
    assert run("cache", "prune", "--max-gib", 0)[0] == 0
    assert not list(cache.iterdir())
    assert json.loads(run("cache", "list", "--json")[1]) == []
    code, _, err = run("cache", "prune")
    assert (code, "--max-gib" in err) == (2, True)


def test_a_second_search_of_a_changed_folder_waits(run, model, photos, cache, monkeypatch):  # noqa: F811
    words = ("search", model, "red", "--images", photos)
    assert run(*words)[0] == 0
    tiny.draw(("black",) * 4).save(photos / "new.png")
    (kept,) = cache.iterdir()
    with ExitStack() as other:
        other.enter_context(locked(kept))
        monkeypatch.setattr(search.time, "sleep", lambda _: other.close())
        code, out, err = run(*words)
    assert (code, err) == (
        0,
        f"another process computes the vectors of {photos}: waiting until it ends\nindexing photos: 1 of 1\n",
    )
    assert "new.png" in out


def test_a_cache_that_cannot_be_written_to(run, model, photos, monkeypatch):  # noqa: F811
    wanted = run("search", model, "red", "--images", photos)[1]

    def denied(folder):
        raise UserError(f"cannot write {folder}: Read-only file system; choose another folder")

    monkeypatch.setattr(search.storage, "check_writable", denied)
    code, out, err = run("search", model, "red", "--images", photos)
    assert (code, out) == (0, wanted)
    assert "embedded for this search alone" in err


def test_queries_from_a_file_and_a_column(run, index, tmp_path):
    (tmp_path / "queries.txt").write_text("\nred\n\nblue \n", encoding="utf-8")
    code, out, _ = run("search", index, "--queries", tmp_path / "queries.txt", "--json", "--where", "split=test")
    assert code == 0
    assert [(one["query"], [row["metadata"] for row in one["found"]]) for one in json.loads(out)] == [
        ("red", [{"caption": "nyekundu", "split": "test"}]),
        ("blue", [{"caption": "nyekundu", "split": "test"}]),
    ]
    assert re.fullmatch(
        r"red\n(.*\n){3}\nblue\n(.*\n){3}", run("search", index, "--queries", tmp_path / "queries.txt")[1]
    )


def test_similar_photos(run, index, model, photos, tmp_path, monkeypatch):  # noqa: F811
    shutil.copy(photos / "red.png", photos / "twin.png")
    index_build.update(index)
    tiny.draw(("red", "red", "red", "blue")).save(tmp_path / "other.png")
    code, out, _ = run("search", index, "--image", tmp_path / "other.png", "--json")
    assert code == 0
    scores = load(model).similarity([photos / "red.png"], load(model).encode_image([tmp_path / "other.png"]))
    found = {os.path.relpath(row["path"], photos): row["score"] for row in json.loads(out)}
    assert found["red.png"] == found["twin.png"] == pytest.approx(float(scores[0, 0]), abs=1e-3)
    monkeypatch.setattr(search, "open_model", lambda *_, **__: pytest.fail("the model was loaded"))
    out = run("search", index, "--image", photos / "red.png", "--json", "--top", "2")[1]
    assert {Path(row["path"]).name for row in json.loads(out)} == {"blue.png", "green.PNG"}


WRONG = {
    "nothing": (("search", "{ix}"), "give one of a query, --image and --queries"),
    "two": (("search", "{ix}", "red", "--image", "x.png"), "give one of a query, --image and --queries"),
    "blank": (("search", "{run}", " ", "--images", "{photos}"), "is empty"),
    "no file": (("search", "{ix}", "--queries", "{photos}/none.txt"), "none.txt: No such file"),
    "no photo": (("search", "{ix}", "--image", "{photos}/none.png"), "none.png: No such file"),
    "no photo beside photos": (
        ("search", "{run}", "--image", "{photos}/none.png", "--images", "{photos}"),
        "none.png: No such file",
    ),
    "sheet": (("search", "{run}", "red", "--images", "{photos}", "--sheet", "{photos}"), "it is a folder"),
    "no sheet": (
        ("search", "{run}", "red", "--images", "{photos}", "--sheet", "{photos}/red.png/a.html"),
        "cannot write",
    ),
    "no image": (("search", "{ix}", "--image", "{photos}/captions.csv"), "cannot read the image"),
    "no folder": (("search", "{run}", "red"), "--images FOLDER"),
    "folder twice": (("search", "{ix}", "red", "--images", "{photos}"), "leave out --images"),
    "where": (("search", "{ix}", "red", "--where", "split"), "not of the form COLUMN=VALUE"),
    "column": (("search", "{ix}", "red", "--where", "spit=test"), 'did you mean "split"?'),
    "no columns": (("search", "{run}", "red", "--images", "{photos}", "--where", "a=b"), "--captions"),
    "no index": (("index", "info", "{photos}"), "is no index"),
    "export": (("index", "export", "{ix}", "--to", "parquet", "--out", "{photos}"), "exists"),
    "no run": (
        ("index", "build", "{photos}", "--images", "{photos}", "--out", "{photos}/ix"),
        "no finished checkpoint",
    ),
    "out": (("index", "build", "{run}", "--images", "{photos}", "--out", "{photos}"), "has other files"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line(run, index, model, photos, cache, case):  # noqa: F811
    words, said = WRONG[case]
    code, out, err = run(*(word.format(ix=index, run=model, photos=photos) for word in words))
    assert (code, out) == (2, ""), err
    assert said in err
    assert err.removeprefix(f"{index}: photos in {photos}, vectors of {model}\n").count("\n") == 1
    assert not cache.exists()


def test_a_run_that_moved_or_was_trained_again(run, photos, tmp_path):  # noqa: F811
    index_build.build(saved(tmp_path / "run"), photos, tmp_path / "ix")
    saved(tmp_path / "run", seed=5)
    code, _, err = run("search", tmp_path / "ix", "red")
    assert code == 2
    assert "was trained again since then" in err
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    code, _, err = run("search", tmp_path / "ix", "red")
    assert code == 2
    assert f"polyalign index update {tmp_path / 'ix'} --run RUN" in err


def test_build_info_and_update_say_what_is_there(run, model, photos, tmp_path):  # noqa: F811
    (photos / "bad\x1b[31m\nname.jpg").write_bytes(b"no image")
    code, out, err = run("index", "build", model, "--images", photos, "--out", tmp_path / "ix")
    assert (code, out) == (0, f"{tmp_path / 'ix'}: 3 photos (3 added, 3 embedded)\n")
    assert "files that cannot be read: 1;" in err
    code, out, _ = run("index", "info", tmp_path / "ix")
    assert code == 0
    assert "unreadable  bad [31m name.jpg: cannot identify" in out
    assert re.search(rf"photos +3\n.*root +{photos}\nmodel +{model}\n", out, re.DOTALL)
    assert json.loads(run("index", "info", tmp_path / "ix", "--json")[1])["unreadable"][0]["path"].startswith("bad")
    assert run("index", "update", tmp_path / "ix")[1] == f"{tmp_path / 'ix'}: 3 photos (nothing changed)\n"
    (photos / "red.png").unlink()
    assert json.loads(run("index", "update", tmp_path / "ix", "--json")[1])["deleted"] == 1


def test_a_full_disk(run, model, photos, tmp_path, monkeypatch):  # noqa: F811
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    code, _, err = run("index", "build", model, "--images", photos, "--out", tmp_path / "ix")
    assert code == 2
    assert f"cannot write {tmp_path / 'ix' / VECTORS}: No space left on device; make room" in err
    monkeypatch.undo()
    monkeypatch.setenv("POLYALIGN_CACHE", str(tmp_path / "cache"))
    assert run("index", "build", model, "--images", photos, "--out", tmp_path / "ix")[0] == 0
    index_build.build(model, photos, tmp_path / "fresh")
    assert state(tmp_path / "ix") == state(tmp_path / "fresh")


def test_the_contact_sheet(run, index, photos, tmp_path, monkeypatch):  # noqa: F811
    evil = "<script>alert(1)</script> \u202e"
    (photos / "sub/green.PNG").rename(photos / "a&<i>\n.png")
    index_build.update(index)
    (photos / "red.png").unlink()
    code, _, err = run("search", index, evil, "--sheet", tmp_path / "found.html")
    assert code == 0, err
    page = (tmp_path / "found.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/jpeg;base64,') == 2
    assert "No such file or directory" in page
    assert "&lt;script&gt;" in page
    assert "a&amp;&lt;i&gt;" in page
    assert not set(re.findall(r"<(\w+)", page)) & {"script", "b", "i", "link", "iframe"}
    assert "\u202e" not in page
    assert "default-src 'none'" in page
    assert (photos / "a&<i>\n.png").as_uri() in page
    assert run("search", index, "red", "--sheet", tmp_path / "found.html")[0] == 0
    (tmp_path / "captions.csv").write_text("image,caption\n", encoding="utf-8")
    code, _, err = run("search", index, "red", "--sheet", tmp_path / "captions.csv")
    assert (code, "was not written by polyalign" in err) == (2, True)
    assert (tmp_path / "captions.csv").read_text(encoding="utf-8") == "image,caption\n"
    shown = []
    monkeypatch.setattr(webbrowser, "open", shown.append)
    assert run("search", index, "red", "--open")[0] == 0
    assert shown[0].startswith("file://")


def test_exports(run, index, photos, tmp_path):  # noqa: F811
    name = os.fsdecode(b"bytes\xff.png")
    (photos / "sub/green.PNG").rename(photos / name)
    index_build.update(index)
    opened = Index.open(index)
    ids = opened.ids.tolist()
    assert run("index", "export", index, "--to", "parquet", "--out", tmp_path / "x.parquet")[0] == 0
    table = pq.read_table(tmp_path / "x.parquet")
    assert str(table.schema.field("vector").type) == "fixed_size_list<element: float>[16]"
    assert table["id"].to_pylist() == ids
    assert table["path"].to_pylist() == ["blue.png", "red.png", r"bytes\xff.png"]
    assert np.array_equal(np.array(table["vector"].to_pylist(), np.float32), opened.vectors(ids))
    assert [json.loads(text).get("split") for text in table["metadata"].to_pylist()] == ["dev", "test", None]
    assert run("index", "export", index, "--to", "clip-retrieval", "--out", tmp_path / "cr")[0] == 0
    vectors = np.load(tmp_path / "cr/img_emb/img_emb_0.npy")
    assert vectors.dtype == np.float16
    assert np.array_equal(vectors.astype(np.float32), opened.vectors(ids))
    rows = pq.read_table(tmp_path / "cr/metadata/metadata_0.parquet").to_pylist()
    assert rows[1] == {"image_path": str(photos / "red.png"), "caption": "nyekundu", "split": "test"}


def test_an_export_that_is_stopped_leaves_nothing(index, tmp_path, monkeypatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = set(tmp_path.iterdir())
    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", stop)
    with pytest.raises(KeyboardInterrupt):
        index_export.export(Index.open(index), "clip-retrieval", tmp_path / "cr")
    assert set(tmp_path.iterdir()) == before
