"""What protects the search page: headers for the browser, names of the host, and a bound on waiting work."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

T = TypeVar("T")

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
"""Names by which a browser on this machine reaches it."""

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_RETRY_SECONDS = 2


class Guarded:
    """An application whose answers, errors too, have the security headers.

    Requests with a ``Host`` other than ``hosts`` get ``refusal``: otherwise any web site could let its own name resolve
    to 127.0.0.1 and read the page in the browser of the user (DNS rebinding). None allows every ``Host``.
    """

    def __init__(self, app: ASGIApp, refusal: ASGIApp, hosts: Collection[str] | None) -> None:
        """Wrap an application."""
        self._app, self._refusal, self._hosts = app, refusal, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        host = re.sub(r":[0-9]+$", "", Headers(scope=scope).get("host", "")).lower()
        is_known = self._hosts is None or host in self._hosts
        await (self._app if is_known else self._refusal)(scope, receive, send_guarded)


class Workers:
    """Threads for work that would block the event loop."""

    def __init__(self, threads: int, waiting: int) -> None:
        """Use this number of threads; while ``waiting`` more calls wait for one, further calls are refused."""
        self._pool = ThreadPoolExecutor(threads)
        self._free = threads + waiting

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        """Call a function in a thread.

        Raises:
            HTTPException: too many calls are waiting (503).
        """
        if not self._free:
            raise HTTPException(503, headers={"Retry-After": str(_RETRY_SECONDS)})
        self._free -= 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)
        finally:
            self._free += 1
