"""The server of the search page: raw requests, the command, the address, and its end."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import sys
import time
import webbrowser
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
from starlette.testclient import TestClient

from polyalign.experiments import run_folders as runs
from polyalign.serving import index_build, page_server
from polyalign.utils.errors import UserError
from tests import forked, tiny
from tests.shelf import served, shelf


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of the tiny world, made with a run."""
    folder = tmp_path_factory.mktemp("tiny")
    runs.train_into(folder / "run", tiny.resolved(), resume=False, overwrite=False)
    index_build.build(str(folder / "run"), tiny.data() / "images", folder / "index")
    return folder / "index"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory):
    with served(shelf(tmp_path_factory.mktemp("shelf"), [f"a hill {i}" for i in range(30)]), "en") as found:
        yield found


def raw(address: str, content: bytes) -> bytes:
    """Send bytes, and return all that is answered until the connection is closed."""
    place = urlsplit(address)
    with socket.create_connection((place.hostname, place.port), timeout=20) as connection:
        try:
            connection.sendall(content)
            return b"".join(iter(lambda: connection.recv(65536), b""))
        except (ConnectionResetError, BrokenPipeError):  # closed before everything was sent
            return b""


@pytest.mark.parametrize(
    "path", ["/../../etc/passwd", "/photo/../../etc/passwd", "/photo/1/../../..", "//etc/passwd", "/photo//1",
             "/\\..\\", "/photo/%2e%2e/%2e%2e/etc/passwd", "/page.css/../../page.py", "/templates/page.html"],
)  # fmt: skip
def test_a_path_never_reaches_the_disk(address: str, path: str) -> None:
    answer = raw(address, f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404")
    assert b"Page not found" in answer


@pytest.mark.parametrize(
    "content",
    [
        b"GET /?q=" + b"a" * 1_000_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n",
        b"GET /\0 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n",
    ],
    ids=["query", "header", "nul", "tls", "proxy", "two hosts", "no host"],
)
def test_broken_requests_are_refused_and_do_not_end_the_server(address: str, content: bytes, caplog) -> None:
    if content[0] == 0x16:
        content += b"\r\n\r\n"
    assert re.match(rb"HTTP/1.1 4\d\d|$", raw(address, content))
    assert raw(address, b"GET / HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n").startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("clients", [12, pytest.param(60, marks=pytest.mark.repeated)])
def test_many_at_once_are_answered_or_told_to_wait(address: str, clients: int) -> None:
    def ask(number: int) -> int:
        client = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
        client.request("GET", ("/?q=%d", "/thumbnail/%d", "/similar/%d", "/photo/%d")[number % 4] % (1 + number % 30))
        answer = client.getresponse()
        answer.read()
        client.close()
        return answer.status

    with ThreadPoolExecutor(clients) as pool:
        statuses = list(pool.map(ask, range(4 * clients)))
    assert set(statuses) <= {200, 503}
    assert statuses.count(200) >= clients


def test_the_command_serves_an_index_until_ctrl_c(index: Path, tmp_path: Path) -> None:
    said = tmp_path / "said"
    process = forked.start("serve", index, "--port", 0, "--offline", said=said)
    try:
        for _ in range(600):
            if found := re.search(
                r"http://127\.0\.0\.1:(\d+) \(Ctrl-C to stop\)\n", said.read_text() if said.exists() else ""
            ):
                break
            time.sleep(0.05)
        assert found, said.read_text()
        client = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=20)
        client.request("GET", "/?q=red%20green%20blue%20white")
        answer = client.getresponse()
        content = answer.read().decode()
        assert answer.status == 200
        assert content.count("<li>") == 24
        assert '<html lang="en" dir="ltr">' in content
        os.kill(process.pid, signal.SIGINT)
        process.join(20)
        client.close()
    finally:
        process.kill()
    assert process.exitcode == 0
    assert said.read_text() == opened(index) + found[0]


def opened(index: Path) -> str:
    """What is said of an index that is opened."""
    run = index.parent / "run"
    return f"{index}: photos in {tiny.data() / 'images'}, vectors of {run}\n"


@pytest.fixture
def not_run(monkeypatch) -> list[object]:
    """Applications that would have been run."""
    found: list[object] = []
    monkeypatch.setattr(page_server, "run", lambda app, opened: found.append((app, opened.getsockname())))
    return found


def test_another_host_is_warned_of(index: Path, run, not_run) -> None:
    assert run("serve", index, "--port", 0)[2] == opened(index)
    code, out, err = run("serve", index, "--port", 0, "--host", "0.0.0.0", "--lang", "Swahili")
    assert code == 0
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+ \(Ctrl-C to stop\)\n", out)
    assert err == opened(index) + "anybody who reaches 0.0.0.0 at this port can see all 112 indexed photos\n"
    assert [host for _, (host, _) in not_run] == ["127.0.0.1", "0.0.0.0"]


def test_a_port_in_use_and_a_foreign_address_are_told(index: Path, run, not_run) -> None:
    with page_server.bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        code, out, err = run("serve", index, "--port", port)
    assert (code, out) == (2, "")
    assert (
        err
        == opened(index)
        + f"error: cannot serve on 127.0.0.1, port {port}: Address already in use; change --host or --port\n"
    )
    with pytest.raises(UserError, match=r"cannot serve on 203\.0\.113\.9, port 0: .*; change --host or --port"):
        page_server.bind("203.0.113.9", 0)


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".example"])
def test_a_name_that_no_host_can_have_is_told(host: str) -> None:
    with pytest.raises(UserError, match=rf"cannot serve on {host}, port 0: .*label.*; change --host or --port"):
        page_server.bind(host, 0)


def test_of_two_servers_that_start_at_once_the_second_is_told() -> None:
    with page_server.bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with page_server.bind("127.0.0.1", port) as second:
            page_server.listen(first)
            with pytest.raises(UserError, match=f"cannot serve on 127.0.0.1, port {port}: Address already in use"):
                page_server.listen(second)


def test_the_extra_is_named_when_it_is_missing(index: Path, run, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    code, _, err = run("serve", index)
    assert (code, err) == (2, "error: the page needs uvicorn: pip install 'polyalign[serve]'\n")


def test_a_folder_that_is_no_index_and_an_unknown_language_are_refused(index: Path, run, tmp_path: Path) -> None:
    code, _, err = run("serve", tmp_path)
    assert code == 2
    assert "polyalign index build" in err
    code, _, err = run("serve", index, "--port", 0, "--lang", "xx")
    assert code == 2
    assert 'unknown language "xx"' in err
    code, _, err = run("serve", index, "--port", 0, "--lang", "qu")
    assert code == 2
    assert "no texts of the page in Quechua" in err


@pytest.mark.parametrize("is_there", [True, False])
def test_the_browser_is_opened(index: Path, run, monkeypatch, is_there: bool) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or is_there)
    monkeypatch.setattr(page_server, "run", lambda *_: time.sleep(0.2))
    code, out, err = run("serve", index, "--port", 0, "--open")
    assert code == 0
    assert opened == [out.split()[0]]
    assert ("no browser was found" in err) != is_there


@pytest.mark.parametrize(
    ("host", "is_local"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("127.1", True), ("localhost", True), ("0.0.0.0", False), ("0", False)],
)
def test_loopback_addresses(host: str, is_local: bool) -> None:
    with page_server.bind(host, 0) as opened:
        assert page_server.is_loopback(opened) == is_local


@pytest.mark.parametrize("host", ["127.1", "127.8.8.8", "LOCALHOST"])
def test_a_page_on_loopback_is_reached_by_its_names(index: Path, run, not_run, host: str) -> None:
    code, out, err = run("serve", index, "--port", 0, "--host", host)
    assert (code, err) == (0, opened(index))
    for name in (host, urlsplit(out.split()[0]).hostname):
        client = TestClient(not_run[0][0], base_url=f"http://{name}")
        assert client.get("/").status_code == 200
    assert TestClient(not_run[0][0], base_url="http://evil.example").get("/").status_code == 400
