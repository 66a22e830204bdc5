"""The index as files and as a search: exact against a naive twin, and damage is told."""

from __future__ import annotations

import os
import sqlite3
import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyalign.serving import index as index_module
from polyalign.serving.index import Index
from polyalign.serving.index_store import PHOTOS, VECTORS, Entry, StaleIndexError, Store, _mark
from polyalign.utils.errors import UserError

DIM = 16
FACTS = {
    "model": "/runs/a",
    "identity": "ab",
    "root": "/photos",
    "dim": str(DIM),
    "columns": '["lang"]',
    "captions": "",
}


def unit(count: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def entry(number: int, row: int, metadata: str = "{}") -> Entry:
    return Entry(0, f"{number:05d}.jpg".encode(), 1, 1, row, None, metadata)


def filled(folder, vectors=None, *, block: int = 40) -> Index:
    """An index of random vectors, written in blocks; every third photo is in Swahili."""
    vectors = unit(100) if vectors is None else vectors
    store = Store.create(folder, FACTS)
    for start in range(0, len(vectors), block):
        part = vectors[start : start + block]
        langs = ['{"lang": "sw"}' if (start + place) % 3 == 0 else "{}" for place in range(len(part))]
        entries = [entry(start + place, -1 - place, lang) for place, lang in enumerate(langs)]
        store.append(part, [f"{start + place}".encode() for place in range(len(part))], entries)
    return Index.open(folder)


def naive(index: Index, query, top: int, skip: int = 0, keep=lambda photo: True) -> list[tuple[str, float]]:
    """Compare every photo in float64, and sort."""
    photos = [photo for one in index.ids.tolist() if keep(photo := index.photo(one))]
    query = query.astype(np.float64) / np.linalg.norm(query)
    scores = [np.float32(index.vector(photo.id).astype(np.float64) @ query) for photo in photos]
    ranked = sorted(zip(scores, photos, strict=True), key=lambda pair: (-pair[0], pair[1].path))
    return [(photo.path, pytest.approx(float(score), abs=1e-6)) for score, photo in ranked[skip : skip + top]]


def paths(hits) -> list[tuple[str, float]]:
    return [(hit.photo.path, hit.score) for hit in hits]


@given(st.integers(0, 99), st.integers(1, 130), st.integers(0, 110), st.integers(0, 120), st.booleans())
def test_search_is_exact(tmp_path_factory, seed, top, skip, without, filtered):
    index = _shared(tmp_path_factory)
    query = unit(1, seed)[0] * 3
    where = {"lang": "sw"} if filtered else None

    def keep(photo):
        return photo.id != without and (not filtered or photo.metadata.get("lang") == "sw")

    assert paths(index.search(query, top, skip, where, without)) == naive(index, query, top, skip, keep)


_SHARED: list[Index] = []


def _shared(factory) -> Index:
    """An index of several blocks with vectors that are alike, rows of no photo, and rows of several."""
    if not _SHARED:
        vectors = unit(100)
        vectors[50:60] = vectors[40:50]
        vectors[60:70] = vectors[40:50] + 1e-7
        folder = factory.mktemp("index") / "ix"
        store = filled(folder, vectors, block=7).store
        store.change({}, deleted=[3, 90, 91])
        store.append(np.empty((0, DIM)), [], [Entry(0, f"again/{row}.jpg".encode(), 1, 1, row) for row in (5, 6, 45)])
        _SHARED.append(Index.open(folder))
    return _SHARED[0]


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 110)), max_size=9), st.integers(0, 130))
def test_many_searches_find_what_each_finds(tmp_path_factory, asked, top):
    index = _shared(tmp_path_factory)
    queries, skips = [unit(1, seed)[0] for seed, _ in asked], [skip for _, skip in asked]
    each = [index.search(query, top, skip) for query, skip in zip(queries, skips, strict=True)]
    assert index.search_many(queries, skips, top) == each


def test_search_is_exact_over_many_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(index_module, "_BLOCK", 8)
    monkeypatch.setattr(index_module, "_RESCORED", 3)
    index = filled(tmp_path / "ix")
    for seed in range(5):
        query = unit(1, seed)[0]
        assert paths(index.search(query, 7)) == naive(index, query, 7)


def test_all_photos_alike(tmp_path, monkeypatch):
    monkeypatch.setattr(index_module, "_RESCORED", 3)
    index = filled(tmp_path / "ix", np.repeat(unit(1), 30, axis=0))
    assert [hit.photo.id for hit in index.search(unit(1)[0], 5, skip=4)] == [5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    "vector", [np.zeros(DIM), np.full(DIM, np.nan), np.full(DIM, np.inf), np.ones(3), np.ones((1, DIM))]
)
def test_a_vector_that_does_not_fit(tmp_path, vector):
    with pytest.raises(UserError, match="vectors of 16 numbers"):
        filled(tmp_path / "ix").search(vector)


def test_a_column_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r'no column "lan": did you mean "lang"\?'):
        filled(tmp_path / "ix").search(unit(1)[0], where={"lan": "sw"})


def test_an_empty_index_finds_nothing(tmp_path):
    Store.create(tmp_path / "ix", FACTS)
    index = Index.open(tmp_path / "ix")
    assert (len(index), index.search(unit(1)[0]), index.photo(1)) == (0, [], None)
    with pytest.raises(UserError, match="has no photo 1"):
        index.vector(1)


def test_several_threads_search_at_once(tmp_path):
    index = filled(tmp_path / "ix")
    wanted = paths(index.search(unit(1)[0], 20))
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.extend(paths(index.search(unit(1)[0], 20)))) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert found == wanted * 4


def test_no_index(tmp_path):
    (tmp_path / "other").write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match=r"is no index: make one with `polyalign index build`"):
        Index.open(tmp_path)
    with pytest.raises(UserError, match="has other files, such as other"):
        Store.create(tmp_path, FACTS)


def test_rows_that_a_killed_process_left_are_overwritten(tmp_path):
    index = filled(tmp_path / "ix")
    with (tmp_path / "ix" / VECTORS).open("ab") as file:
        file.write(b"left")
    assert paths(Index.open(tmp_path / "ix").search(unit(1)[0], 5)) == paths(index.search(unit(1)[0], 5))
    index.store.append(unit(1, 7), [b"new"], [entry(100, -1)])
    assert (tmp_path / "ix" / VECTORS).stat().st_size == 101 * DIM * 2
    assert Index.open(tmp_path / "ix").search(unit(1, 7)[0], 1)[0].photo.path == "00100.jpg"


@given(st.lists(st.tuples(st.sampled_from(["add", "delete", "rename", "share"]), st.integers(0, 30)), max_size=12))
@settings(max_examples=25)
def test_the_checksum_follows_every_change(tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("index") / "ix"
    store = Store.create(folder, FACTS)
    for number, (step, which) in enumerate(steps):
        known = list(store.entries("row IS NOT NULL"))
        some = known[which % len(known)] if known else None
        if step == "add" or some is None:
            store.append(unit(2, number), [f"{number}a".encode(), f"{number}b".encode()],
                         [entry(2 * number, -1), entry(2 * number + 1, -2)])  # fmt: skip
        elif step == "delete":
            store.change({}, deleted=[some.id])
        elif step == "rename":
            store.change({}, [replace(some, path=b"new-%d.jpg" % number)])
        else:
            store.append(np.empty((0, DIM)), [], [replace(some, id=0, path=b"share-%d.jpg" % number)])
        assert len(Index.open(folder)) == len(list(store.entries("row IS NOT NULL")))


def test_a_reader_keeps_what_it_opened(tmp_path):
    index = filled(tmp_path / "ix")
    index.store.append(unit(1, 7), [b"new"], [entry(100, -1)])
    assert (len(index), index.is_current) == (100, False)
    index = Index.open(tmp_path / "ix")
    assert index.is_current
    Store(tmp_path / "ix").change({}, deleted=[1])
    assert 1 not in [hit.photo.id for hit in index.search(index.vector(1), 3)]


def results(folder) -> object:
    """All that an index says, or the class of its error."""
    try:
        index = Index.open(folder)
        photos = [index.photo(one) for one in index.ids.tolist()]
        rows = [index.store.row_of(str(number).encode()) for number in range(100)]
        assert all(row in (None, place) for place, row in enumerate(rows))
        return photos, paths(index.search(unit(1)[0], 100)), index.root, index.model, index.columns
    except StaleIndexError:
        return StaleIndexError


@pytest.mark.parametrize("name", [VECTORS, PHOTOS])
def test_damage_is_told_or_harmless(tmp_path, name):
    """Change a byte anywhere, or cut the file anywhere: the results are those of before, or there is an error."""
    whole = results(filled(tmp_path / "ix").folder)
    path = tmp_path / "ix" / name
    content = path.read_bytes()
    told = 0
    for place in np.random.default_rng(0).integers(0, len(content), 120).tolist():
        cut = place % 4 == 0
        rest = b"" if cut else bytes([content[place] ^ 0x41]) + content[place + 1 :]
        path.write_bytes(content[:place] + rest)
        found = results(tmp_path / "ix")
        told += found is StaleIndexError
        assert found in (StaleIndexError, whole), (place, cut)
    assert told > 20


def test_facts_of_another_version_or_nonsense(tmp_path):
    for number, (name, value) in enumerate(
        (("format", "2"), ("dim", "-4"), ("dim", "x"), ("columns", "{"), ("columns", "3"))
    ):
        folder = filled(tmp_path / f"{number}").folder
        with sqlite3.connect(folder / PHOTOS) as database:
            database.execute("UPDATE facts SET value = ? WHERE name = ?", (value, name))
        database.close()
        assert results(folder) is StaleIndexError


@pytest.mark.parametrize("path", [b"/etc/passwd", b"../secret.jpg", b"a/../../b.jpg", b""])
def test_an_index_of_a_stranger_names_no_file_outside(tmp_path, path):
    store = Store.create(tmp_path / "ix", FACTS)
    store.append(unit(1), [b"x"], [Entry(0, path, 1, 1, -1)])
    with pytest.raises(StaleIndexError, match="photo 1"):
        Index.open(tmp_path / "ix").photo(1)


def test_names_that_are_not_utf8(tmp_path):
    name = b"\xff\n'\"<script>\xfe.jpg"
    store = Store.create(tmp_path / "ix", FACTS)
    store.append(unit(1), [b"x"], [Entry(0, name, 1, 1, -1)])
    photo = Index.open(tmp_path / "ix").photo(1)
    assert photo is not None
    assert os.fsencode(photo.path) == name


@pytest.mark.parametrize("name", [VECTORS, PHOTOS, f"{PHOTOS}-journal", f"{PHOTOS}-wal"])
def test_links_in_an_index_of_a_stranger_are_refused(tmp_path, name):
    store = Store.create(tmp_path / "ix", FACTS)
    thesis, link = tmp_path / "thesis.odt", tmp_path / "ix" / name
    thesis.write_bytes(link.read_bytes() + b"thesis" if link.exists() else b"thesis")
    before = thesis.read_bytes()
    link.unlink(missing_ok=True)
    link.symlink_to(thesis)
    with pytest.raises(UserError, match=f"{name} is a link"):
        Store(tmp_path / "ix")
    if name == VECTORS:
        with pytest.raises(UserError, match="cannot write"):
            store.append(unit(1), [b"x"], [entry(0, -1)])
        (tmp_path / "ix" / PHOTOS).unlink()
        with pytest.raises(UserError, match="cannot write"):
            Store.create(tmp_path / "ix", FACTS)
    assert thesis.read_bytes() == before


@pytest.mark.parametrize(
    ("field", "value"),
    [("path", 7), ("path", "a.jpg"), ("size", "x"), ("reason", b"x"), ("metadata", 1.5), ("row", "x")],
)
def test_values_of_another_type_are_damage(tmp_path, field, value):
    folder = filled(tmp_path / "ix").folder
    forged = Entry(**{**vars(next(Store(folder).entries())), field: value})
    with sqlite3.connect(folder / PHOTOS) as database:
        database.execute(f"UPDATE photos SET {field} = ?, mark = ? WHERE id = 1", (value, forged.mark(1)))
        database.execute("UPDATE contents SET row = 'x', mark = ? WHERE hash = ?", (_mark(b"0", "x"), b"0"))
    database.close()
    with pytest.raises(StaleIndexError, match="damaged"):
        list(Store(folder).entries())
    with pytest.raises(StaleIndexError, match="the contents"):
        Store(folder).row_of(b"0")
