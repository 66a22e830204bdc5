"""The Hugging Face hub: whether it can be reached."""

from __future__ import annotations

import logging
import socket
import sys
from functools import cache
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants

from polyalign.utils.errors import first_line

logger = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 5


@cache
def check_hub() -> None:
    """Switch the hub's libraries to offline mode if the hub cannot be reached, and log it; called before they are used.

    Without a network they would otherwise repeat every request for 20 seconds.
    """
    address = urlsplit(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE or getproxies():  # behind a proxy the host itself need not be reachable
        return
    try:
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname or "", port), timeout=_TIMEOUT_SECONDS).close()
    except OSError as error:
        logger.info(f"{constants.ENDPOINT} cannot be reached ({first_line(error)}): using files downloaded before")
        constants.HF_HUB_OFFLINE = True
        if "datasets" in sys.modules:
            sys.modules["datasets"].config.HF_HUB_OFFLINE = True
