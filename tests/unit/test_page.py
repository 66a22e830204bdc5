"""The search page: what it shows, what it refuses, and that nothing but indexed photos leaves the disk."""

from __future__ import annotations

import io
import itertools
import os
import re
from pathlib import Path
from urllib.parse import quote

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("httpx")
import numpy as np
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.testclient import TestClient

from polyalign.config.language import load_language
from polyalign.serving import reopened
from polyalign.serving.index import Index
from polyalign.serving.index_store import Entry, Store, delete
from polyalign.serving.page import LAST_PAGE, LONGEST_QUERY, PER_PAGE, Page, page_language
from polyalign.serving.page_limits import LOOPBACK, Workers
from polyalign.utils.errors import UserError
from tests.shelf import DIM, draw, encode, indexed, shelf

HOSTILE = [
    "<script>alert(1)</script>",
    "\" onerror='alert(1)' x=\"",
    "'><img src=x onerror=alert(1)>",
    "</p></li></ul>{{ 7 * 7 }}{% raw %}",
    "photo \u202egnp.exe\u2066 \u061c",
    "two\nlines\x00\x1b[31m\udc80",
    "&lt;b&gt; &amp;",
    "javascript:alert(1)",
]


def client_of(index: Index, spoken: str | None = "en", hosts: tuple[str, ...] | None = LOOPBACK) -> TestClient:
    page = Page(index, encode, spoken, page_language(spoken))
    return TestClient(page.application(hosts), base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    return client_of(shelf(tmp_path_factory.mktemp("shelf"), [f"a hill {i}" for i in range(60)]))


def ids(html: str) -> list[int]:
    return [int(found) for found in re.findall(r'class="photo" href="/photo/(\d+)"', html)]


def test_the_first_page_asks_for_a_sentence(client: TestClient) -> None:
    html = client.get("/").text
    assert '<html lang="en" dir="ltr">' in html
    assert '<label for="q">What should the photo show?</label>' in html
    assert ids(html) == []
    assert "<script" not in html


def test_the_pages_of_a_query_have_every_photo_once_best_first(client: TestClient) -> None:
    pages = [client.get("/", params={"q": "a hill", "page": n}) for n in (1, 2, 3)]
    found = [ids(page.text) for page in pages]
    assert [len(one) for one in found] == [PER_PAGE, PER_PAGE, 60 - 2 * PER_PAGE]
    assert sorted(itertools.chain(*found)) == list(range(1, 61))
    scores = [float(x) for page in pages for x in re.findall(r"Score <bdi>(-?[\d.]+)</bdi>", page.text)]
    assert scores == sorted(scores, reverse=True)
    assert [("Previous page" in page.text, "Next page" in page.text) for page in pages] == [
        (False, True),
        (True, True),
        (True, False),
    ]
    assert client.get("/", params={"q": "a hill", "page": 4}).status_code == 404


def test_the_link_to_the_next_page_repeats_the_query(tmp_path: Path) -> None:
    client = client_of(shelf(tmp_path, ["a"] * (PER_PAGE + 1)))
    query = 'a&b="ድ" #1 %41 +'
    html = client.get("/", params={"q": query}).text
    link = re.search(r'rel="next" href="([^"]+)"', html)
    assert link
    after = client.get("/" + link[1].replace("&amp;", "&"))
    assert len(ids(after.text)) == 1
    assert 'value="a&amp;b=&#34;ድ&#34; #1 %41 +"' in after.text


def test_similar_photos_leave_out_the_photo_itself(client: TestClient) -> None:
    html = client.get("/similar/7").text
    assert len(ids(html)) == PER_PAGE
    assert 7 not in ids(html)
    assert 'src="/thumbnail/7"' in html


def test_an_empty_index_says_so(tmp_path: Path) -> None:
    html = client_of(indexed(tmp_path, {})).get("/?q=a").text
    assert "No photos found" in html


@pytest.mark.parametrize("caption", HOSTILE)
def test_hostile_captions_names_and_queries_are_text(tmp_path: Path, caption: str) -> None:
    name = caption.replace("/", "").replace("\0", "")
    index = indexed(tmp_path, {"a.png": caption, f"{name}.png": ""})
    client = client_of(index)
    for html in (client.get("/?q=a").text, client.get("/similar/1").text, client.get("/?q=" + _quoted(caption)).text):
        assert "49" not in html
        assert "<img src=x" not in html
        assert "<script" not in html
        assert not re.search(r"[\x00-\x09\x0b-\x1f\u202a-\u202e\u2066-\u2069\u061c\ud800-\udfff]", html)
        assert not re.search(r"<[^>]*\sonerror=[^>]*>", re.sub(r'"[^"]*"', '""', html))


def _quoted(text: str) -> str:
    return quote(text.encode("utf-8", "surrogateescape"))


def test_a_photo_without_caption_is_shown_by_its_name(tmp_path: Path) -> None:
    html = client_of(indexed(tmp_path, {"deep/down/a b.png": ""})).get("/?q=a").text
    assert 'alt="a b.png"' in html


def test_the_caption_in_the_language_of_the_run_is_preferred(tmp_path: Path) -> None:
    index = indexed(tmp_path, {"a.png": {"place": "x", "caption_gn": "jagua\nanother", "caption_sw": "mbwa"}})
    assert 'alt="mbwa"' in client_of(index, "sw").get("/?q=a").text
    assert 'alt="jagua"' in client_of(index, "gn").get("/?q=a").text


@pytest.mark.parametrize(("spoken", "shown"), [("sw", "sw"), ("ar", "ar"), ("qu", "en"), ("zz", "en"), (None, "en")])
def test_the_page_is_in_the_language_of_the_run_or_english(tmp_path: Path, spoken: str | None, shown: str) -> None:
    lang = load_language(shown)
    html = client_of(shelf(tmp_path, ["x"]), spoken).get("/?q=a").text
    assert f'<html lang="{shown}" dir="{lang.direction}">' in html
    assert lang.page
    assert lang.page.similar in html
    assert ('dir="auto" lang="' in html) == (spoken is not None)


WRONG = [
    "-1",
    "0",
    "61",
    "99999999",
    "9" * 15,
    "9" * 5000,
    "٣",
    "1.0",
    "0x1",
    "1e1",
    "+1",
    "",
    " ",
    "%00",
    "1%00",
    "nan",
]
CLIMBING = ["%2e%2e%2f%2e%2e%2fetc%2fpasswd", "..%5c..%5c", "0%2f..%2f..", "%252e%252e", "a.jpg", "p%2fphoto-1.jpg"]


@pytest.mark.parametrize("text", WRONG + CLIMBING)
def test_what_is_no_id_of_the_index_is_not_found(client: TestClient, text: str) -> None:
    for route in ("photo", "thumbnail", "similar"):
        answer = client.get(f"/{route}/{text}")
        assert answer.status_code == 404
        assert "Page not found" in answer.text


@pytest.mark.parametrize("text", [*WRONG, str(LAST_PAGE + 1)])
def test_what_is_no_page_number_is_not_found(client: TestClient, text: str) -> None:
    for path in (f"/?q=a&page={text}", f"/similar/1?page={text}"):
        assert client.get(path.replace("+", "%2B")).status_code == 404


@pytest.mark.parametrize("query", ["%00", "%20%09", "%00%0a", ""])
def test_a_blank_query_is_the_first_page(client: TestClient, query: str) -> None:
    assert ids(client.get(f"/?q={query}").text) == []


@pytest.mark.parametrize("query", ["%ed%a0%80", "%ff%fe", "a%00b", "%F0%9F%90%95", "a%0d%0aSet-Cookie:%20x=y"])
def test_odd_queries_are_answered(client: TestClient, query: str) -> None:
    answer = client.get(f"/?q={query}")
    assert answer.status_code == 200
    assert "set-cookie" not in answer.headers
    assert len(ids(answer.text)) == PER_PAGE


def test_a_long_query_is_refused(client: TestClient) -> None:
    assert client.get("/", params={"q": "a" * LONGEST_QUERY}).status_code == 200
    answer = client.get("/", params={"q": "a" * (LONGEST_QUERY + 1)})
    assert answer.status_code == 413
    assert "The text is too long" in answer.text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_only_reading_is_possible(client: TestClient, method: str) -> None:
    answer = client.request(method, "/?q=a", content=b"q=" + b"x" * 1_000_000)
    assert answer.status_code == 405
    assert answer.headers["Allow"]


@pytest.mark.parametrize("path", ["/", "/?q=a", "/photo/1", "/thumbnail/1", "/similar/1", "/page.css", "/icon.svg"])
def test_head_is_answered_and_every_answer_has_the_security_headers(client: TestClient, path: str) -> None:
    answers = [client.head(path), client.get(path), client.get("/no" + path), client.post(path)]
    answers.append(client.get(path, headers={"Host": "evil.example"}))
    assert [answer.status_code for answer in answers] == [200, 200, 404, 405, 400]
    for answer in answers:
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200), ("localhost:8000", 200), ("LOCALHOST", 200), ("[::1]:8000", 200), ("evil.example", 400),
        ("127.0.0.1.evil.example", 400), ("localhost:8000@evil.example", 400), ("", 400), ("127.0.0.1:80:80", 400),
    ],
)  # fmt: skip
def test_another_host_is_refused_on_loopback_only(client: TestClient, tmp_path: Path, host: str, status: int) -> None:
    assert client.get("/", headers={"Host": host}).status_code == status
    assert client_of(shelf(tmp_path, ["x"]), hosts=None).get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("JPEG", "a.jpg", "image/jpeg"), ("PNG", "a.jpg", "image/png"), ("GIF", "a.html", "image/gif"),
        ("WEBP", "a.svg", "image/webp"), ("BMP", "a.bmp", "image/bmp"), ("TIFF", "a.tif", "image/jpeg"),
        ("PPM", "a.png", "image/jpeg"),
    ],
)  # fmt: skip
def test_the_type_of_a_photo_is_that_of_its_content(tmp_path: Path, kind: str, name: str, expected: str) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / name, kind)
    answer = client_of(indexed(tmp_path, {name: ""})).get("/photo/1")
    assert answer.headers["Content-Type"] == expected
    assert Image.MIME[Image.open(io.BytesIO(answer.content)).format] == expected


def test_the_photo_of_a_camera_with_two_lenses_is_a_jpeg(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (30, 20), color) for color in ("red", "blue")]
    pictures[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=pictures[1:])
    answer = client_of(indexed(tmp_path, {"a.jpg": ""})).get("/photo/1")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "image/jpeg")


@pytest.mark.parametrize("content", [b"", b"<html><script>alert(1)</script>", b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    b"%PDF-1.4", b"\xff\xd8\xff\xe0 not a photo"])  # fmt: skip
def test_what_is_no_photo_is_never_sent(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    client = client_of(indexed(tmp_path, {"a.jpg": ""}))
    assert [client.get(f"/{route}/1").status_code for route in ("photo", "thumbnail")] == [404, 404]


def _removed(photo: Path, _: Path) -> None:
    photo.unlink()


def _linked_outside(photo: Path, outside: Path) -> None:
    photo.unlink()
    photo.symlink_to(outside / "secret.png")


def _folder_linked_outside(photo: Path, outside: Path) -> None:
    draw(outside / photo.name)
    photo.unlink()
    photo.parent.rmdir()
    photo.parent.symlink_to(outside)


def _linked_to_another(photo: Path, outside: Path) -> None:
    copied = outside / "secret.png"
    photo.replace(copied)
    os.utime(copied, ns=(1, 1))
    photo.symlink_to(copied)


def _in_a_circle(photo: Path, _: Path) -> None:
    photo.unlink()
    photo.symlink_to(photo)


def _now_a_folder(photo: Path, _: Path) -> None:
    photo.unlink()
    photo.mkdir()


def _now_a_pipe(photo: Path, _: Path) -> None:
    photo.unlink()
    os.mkfifo(photo)


@pytest.mark.parametrize(
    "change",
    [
        _removed,
        _linked_outside,
        _linked_to_another,
        _folder_linked_outside,
        _in_a_circle,
        _now_a_folder,
        _now_a_pipe,
    ],
)
def test_a_photo_that_is_no_longer_there_is_not_found(tmp_path: Path, change) -> None:
    draw(tmp_path / "outside" / "secret.png")
    draw(tmp_path / "photos" / "p" / "a.png")
    client = client_of(indexed(tmp_path / "photos", {"p/a.png": "a"}))
    assert client.get("/photo/1").status_code == client.get("/thumbnail/1").status_code == 200
    change(tmp_path / "photos" / "p" / "a.png", tmp_path / "outside")
    assert [client.get(f"/{route}/1").status_code for route in ("photo", "thumbnail")] == [404, 404]
    assert client.get("/?q=a").status_code == 200


def test_an_index_that_is_updated_meanwhile(tmp_path: Path) -> None:
    index = shelf(tmp_path, ["a", "b", "c"])
    client = client_of(index)
    other = Store(index.folder)
    other.change({}, deleted=[1])
    other.append(np.ones((1, DIM)), [b"new"], [Entry(0, b"p/photo-0.jpg", 1, 1, -1)])
    assert sorted(ids(client.get("/?q=a").text)) == [2, 3]
    for number in (1, 4):  # photo 4 is known after a restart
        assert [client.get(f"/{route}/{number}").status_code for route in ("photo", "thumbnail", "similar")] == [
            404
        ] * 3


def test_photos_behind_links_at_the_time_of_indexing_are_shown(tmp_path: Path) -> None:
    draw(tmp_path / "disk" / "a.png")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "disk")
    client = client_of(indexed(tmp_path / "photos", {"linked/a.png": "a"}))
    assert [client.get(f"/{route}/1").status_code for route in ("photo", "thumbnail")] == [200, 200]


def test_thumbnails_are_made_once_and_again_when_the_photo_changes(tmp_path: Path, monkeypatch) -> None:
    index = shelf(tmp_path, ["a"])
    first = client_of(index).get("/thumbnail/1")
    assert first.headers["Content-Type"] == "image/jpeg"
    with monkeypatch.context() as patch:
        patch.setattr("polyalign.serving.thumbnails.thumbnail", None)
        assert client_of(index).get("/thumbnail/1").content == first.content
    draw(tmp_path / "p/photo-0.jpg", number=5, size=(300, 301))
    assert client_of(index).get("/thumbnail/1").content != first.content


@pytest.mark.parametrize(
    ("error", "told"), [(RuntimeError("the secret"), []), (UserError("the secret"), ["the secret"])]
)
def test_a_failure_inside_is_a_page_without_details(tmp_path: Path, caplog, error: Exception, told: list[str]) -> None:
    def fail(_: object):
        raise error

    page = Page(shelf(tmp_path, ["a"]), fail, "sw", page_language("sw"))
    answer = TestClient(page.application(), raise_server_exceptions=False).get("/?q=a")
    assert answer.status_code == 500
    assert "Hitilafu imetokea" in answer.text
    assert "secret" not in answer.text
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert caplog.messages == told


def test_a_query_is_encoded_once(tmp_path: Path) -> None:
    asked: list[str] = []

    def count(queries):
        asked.extend(queries)
        return encode(queries)

    page = Page(shelf(tmp_path, ["a"]), count, "en", page_language("en"))
    client = TestClient(page.application())
    for query in ("a", "b", "a", "%20a%20"):
        client.get(f"/?q={query}")
    assert asked == ["a", "b"]


def test_photos_added_to_the_index_are_found_soon(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(reopened, "_SECONDS", 0)
    monkeypatch.setattr(reopened, "_SHARE", 0)
    client = client_of(index := shelf(tmp_path, ["a hill"]))
    assert ids(client.get("/?q=a").text) == [1]
    entry = Entry(0, b"new.jpg", 1, 1, -1, metadata='{"caption": "a lake"}')
    Store(index.folder).append(np.ones((1, DIM)) / DIM**0.5, [b"new"], [entry])
    html = client.get("/?q=a").text
    assert sorted(ids(html)) == [1, 2]
    assert "a lake" in html


def test_an_index_is_looked_at_again_after_a_while(tmp_path: Path, monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(reopened.time, "monotonic", lambda: now[0])
    index = indexed(tmp_path, {"a.jpg": "a"})
    newest = reopened.Reopened(index)
    Store(index.folder).append(np.empty((0, DIM)), [], [Entry(0, b"again.jpg", 1, 1, 0)])
    now[0] = 1.9
    assert len(newest.current()) == 1
    now[0] = 2.1
    assert len(newest.current()) == 2


def test_an_index_that_another_model_filled_meanwhile_is_an_error(tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(reopened, "_SECONDS", 0)
    client = client_of(index := shelf(tmp_path, ["a hill"]))
    delete(index.folder)
    Store.create(index.folder, index.store.facts | {"identity": "cd"})
    assert client.get("/?q=a").status_code == 500
    assert "start `polyalign serve` again" in caplog.text


def test_a_busy_page_says_so(client: TestClient, monkeypatch) -> None:
    monkeypatch.setattr(Workers, "run", _refuse)
    answer = client.get("/?q=a")
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "2"
    assert "Too many requests. Try again in a moment." in answer.text


async def _refuse(*_: object) -> None:
    raise HTTPException(503, headers={"Retry-After": "2"})


def test_the_page_of_an_index_of_another_model_does_not_start(tmp_path: Path, monkeypatch) -> None:
    index = shelf(tmp_path, ["a"])

    def refuse(*_: object, **__: object) -> None:
        raise UserError("another length")

    monkeypatch.setattr(index, "search_many", refuse)
    with pytest.raises(UserError, match="another length"):
        Page(index, encode, "en", page_language("en")).warm_up()
