"""A web server for tests: files in memory, byte ranges, and faults on request."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Site:
    """What is served, what went wrong on purpose, and what was asked for (path, first byte).

    ``tags`` are ETags, ``most`` the largest part that is sent at once.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.drop_after: dict[str, list[int]] = {}
        self.answers: dict[str, list[tuple[int, dict[str, str]]]] = {}
        self.ranges = True
        self.tags: dict[str, str] = {}
        self.most: int | None = None
        self.asked: list[tuple[str, int]] = []
        self.url = ""


class Handler(BaseHTTPRequestHandler):
    """Answers for a site, which a subclass names."""

    site: Site

    def do_GET(self) -> None:
        path = self.path.lstrip("/")
        wanted = self.headers.get("Range", "")
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        tag = self.site.tags.get(path, "")
        self.site.asked.append((path, start))
        if self.site.answers.get(path):
            code, headers = self.site.answers[path].pop(0)
            self._head(code, headers | {"Content-Length": "0"})
        elif path not in self.site.files:
            self.send_error(404)
        elif wanted and self.site.ranges and self.headers.get("If-Range", tag) == tag:
            self._part(path, start)
        else:
            self._head(200, {"Content-Length": str(len(self.site.files[path]))} | ({"ETag": tag} if tag else {}))
            self._send(path, 0)

    def _part(self, path: str, start: int) -> None:
        size = len(self.site.files[path])
        if start >= size:
            self._head(416, {"Content-Range": f"bytes */{size}", "Content-Length": "0"})
            return
        end = size if self.site.most is None else min(size, start + self.site.most)
        self._head(206, {"Content-Range": f"bytes {start}-{end - 1}/{size}", "Content-Length": str(end - start)})
        self._send(path, start, end)

    def _send(self, path: str, start: int, end: int | None = None) -> None:
        drops = self.site.drop_after.get(path)
        self.wfile.write(self.site.files[path][start : start + drops.pop(0) if drops else end])

    def _head(self, code: int, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Say nothing: clients that hang up are part of the tests, and what a client misses it notices itself."""


@contextmanager
def serving() -> Iterator[Site]:
    """Serve a site on a port of this machine."""
    site = Site()
    server = _Server(("127.0.0.1", 0), type("OfSite", (Handler,), {"site": site}))
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
