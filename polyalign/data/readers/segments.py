"""Undoing word segmentation: Chinese, Japanese and Thai captions that were published with spaces between words."""

from __future__ import annotations

import re

# A space stays where a Latin word or a number stands on both sides.
_SPACES = re.compile(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])")


def join(caption: str) -> str:
    """Take out the spaces that segmentation put in."""
    return _SPACES.sub("", caption)
