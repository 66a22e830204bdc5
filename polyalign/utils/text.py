"""Text from files of unknown origin: safe to print, in Markdown, in a spreadsheet, and as part of a path."""

from __future__ import annotations

import hashlib

import regex

# Control characters, lone surrogates, line separators, and marks that reorder the text around them. The joiners
# U+200C and U+200D stay: Persian and the languages of India need them.
UNSAFE = regex.compile(r"[\p{Cc}\p{Cs}\p{Zl}\p{Zp}\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]+")
_NOT_IN_NAMES = regex.compile(r"[^\p{L}\p{M}\p{N}._+=@-]+")
_MARKDOWN = regex.compile(r"[\\`*|~]|(?<=\])\(|(?<!\w)_|_(?!\w)")
_ADDRESS = regex.compile(r"(?i)(https?|ftp|mailto|www)([:.])")  # shown as links without any markup
_NUMBER = regex.compile(r"[-+]?[0-9]+(\.[0-9]+)?(e[-+]?[0-9]+)?")
_LONGEST_NAME = 100  # bytes; file systems allow 255, and endings are added


def clean(text: object, limit: int | None = None) -> str:
    """Return text as one line without terminal control sequences, cut to ``limit`` characters.

    Everything printed that comes from a file goes through this function.
    """
    line = str(text)
    if not line.isprintable():  # true of most, and ten times as fast
        line = UNSAFE.sub(" ", line)
    line = " ".join(line.split())
    return line if limit is None or len(line) <= limit else f"{line[: limit - 1]}…"


def json_text(text: str) -> str:
    """Return the text of a JSON document with the characters that ``clean`` removes as escapes, except line breaks."""
    escaped: str = UNSAFE.sub(
        lambda found: "".join(char if char == "\n" else f"\\u{ord(char):04x}" for char in found[0]), text
    )
    return escaped


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


def binary_size(count: float) -> str:
    """Show bytes in the binary unit that fits: ``9.4 MiB``."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def for_markdown(text: object) -> str:
    """Return text as one line of Markdown that is shown as it is: without markup, links and HTML."""
    plain = clean(text).replace("&", "&amp;").replace("<", "&lt;")
    escaped: str = _MARKDOWN.sub(r"\\\g<0>", plain)
    shown: str = _ADDRESS.sub(lambda found: f"{found[1]}&#{ord(found[2])};", escaped)
    return shown


def for_spreadsheet(value: object) -> object:
    """Return a cell of a CSV file; a text that a spreadsheet would run as a formula begins with an apostrophe."""
    if not isinstance(value, str):
        return value
    line = clean(value)
    return f"'{line}" if line.startswith(tuple("=+-@＝＋－＠")) and not _NUMBER.fullmatch(line) else line
