"""The web server of the search page."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import uvicorn
from starlette.types import ASGIApp

from polyalign.utils.errors import UserError, first_line

_GRACE_SECONDS = 3
_CONNECTIONS = 500


def is_loopback(opened: socket.socket) -> bool:
    """Return whether only this machine reaches an address."""
    return ipaddress.ip_address(opened.getsockname()[0].partition("%")[0]).is_loopback


@contextmanager
def _converted(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeError) as error:  # the latter on names that no host can have
        problem = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"cannot serve on {host}, port {port}: {problem}; change --host or --port") from error


def bind(host: str, port: int) -> socket.socket:
    """Reserve a port; connections are refused until ``listen``.

    Raises:
        UserError: the address is not of this machine, or the port is taken or needs other rights.
    """
    with _converted(host, port):
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        opened = socket.socket(family, kind, protocol)
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(address)
        except OSError:
            opened.close()
            raise
    return opened


def listen(opened: socket.socket) -> None:
    """Accept connections.

    Raises:
        UserError: another server that started at the same time has the port.
    """
    with _converted(*opened.getsockname()[:2]):
        opened.listen()


def address_of(opened: socket.socket) -> str:
    """Return the address of a page for the browser; one on all interfaces is shown as that of this machine."""
    host, port = opened.getsockname()[:2]
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{here}]:{port}" if ":" in here else f"http://{here}:{port}"


def configure(app: ASGIApp) -> uvicorn.Config:
    """Return the settings of the server, which do not depend on the libraries that happen to be installed."""
    return uvicorn.Config(
        app,
        http="h11",
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )


def run(app: ASGIApp, opened: socket.socket) -> None:
    """Answer requests until Ctrl-C, which lets answers that were begun be finished."""
    with suppress(KeyboardInterrupt):
        uvicorn.Server(configure(app)).run(sockets=[opened])
