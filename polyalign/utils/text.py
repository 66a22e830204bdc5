"""Text from files of unknown origin: safe to print, and safe as part of a path."""

from __future__ import annotations

import hashlib

import regex

# Control characters, lone surrogates, line separators, and marks that reorder the text around them. The joiners
# U+200C and U+200D stay: Persian and the languages of India need them.
_UNSAFE = regex.compile(r"[\p{Cc}\p{Cs}\p{Zl}\p{Zp}\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]+")
_NOT_IN_NAMES = regex.compile(r"[^\p{L}\p{M}\p{N}._+=@-]+")
_LONGEST_NAME = 100  # bytes; file systems allow 255, and endings are added


def clean(text: object, limit: int | None = None) -> str:
    """Return text as one line without terminal control sequences, cut to ``limit`` characters.

    Everything printed that comes from a file goes through this function.
    """
    line: str = " ".join(_UNSAFE.sub(" ", str(text)).split())
    return line if limit is None or len(line) <= limit else f"{line[: limit - 1]}…"


def safe_stem(name: str) -> str:
    """Return a name as the stem of a file: one path component, never hidden, at most 100 bytes long.

    A name that had to be changed ends with a digest of the original, so that different names stay different.
    """
    stem: str = _NOT_IN_NAMES.sub("_", name).lstrip(".")
    if stem == name and stem and len(stem.encode()) <= _LONGEST_NAME:
        return stem
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    short = stem.encode("utf-8", "ignore")[: _LONGEST_NAME - 9].decode("utf-8", "ignore")
    return f"{short}-{digest}".lstrip("-")
