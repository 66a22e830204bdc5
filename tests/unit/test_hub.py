from __future__ import annotations

import socket
import urllib.request

import pytest
from huggingface_hub import constants

from polyalign.utils import hub


@pytest.fixture
def calls(monkeypatch) -> list[tuple[str, int]]:
    """The addresses that are tried; none answers."""
    tried: list[tuple[str, int]] = []

    def refuse(address, timeout):
        tried.append(address)
        raise OSError("no network")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "getproxies", dict)
    monkeypatch.setattr(socket, "create_connection", refuse)
    hub.check_hub.cache_clear()
    yield tried
    hub.check_hub.cache_clear()


def test_without_a_network_the_hub_is_tried_once_and_then_left_alone(calls, caplog):
    with caplog.at_level("INFO"):
        hub.check_hub()
        hub.check_hub()
    assert calls == [("huggingface.co", 443)]
    assert caplog.text.count("huggingface.co cannot be reached (no network): using files downloaded before") == 1
    assert constants.is_offline_mode()


def test_another_endpoint_is_tried_at_its_own_port(calls, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://mirror.example:8080")
    hub.check_hub()
    assert calls == [("mirror.example", 8080)]


@pytest.mark.parametrize("reason", ["offline", "proxy"])
def test_offline_or_behind_a_proxy_no_socket_is_opened(reason, calls, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", reason == "offline")
    monkeypatch.setattr(hub, "getproxies", lambda: {"https": "x"} if reason == "proxy" else {})
    hub.check_hub()
    assert not calls
    assert constants.HF_HUB_OFFLINE == (reason == "offline")


def test_proxies_are_read_from_the_environment():
    assert hub.getproxies is urllib.request.getproxies
