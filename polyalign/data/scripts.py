"""Letters of writing systems."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

import regex

# ISO 15924 codes of writing systems that mix Unicode scripts; every other code is that of one script.
_MIXED: Final = {"Hans": ("Hani",), "Hant": ("Hani",), "Jpan": ("Hani", "Hira", "Kana"), "Kore": ("Hang", "Hani")}


def letters_of(script: str) -> re.Pattern[str] | None:
    """Return a pattern of one letter of a script (ISO 15924 code), or None if Unicode has no such script.

    Script extensions count: the Japanese prolonged sound mark is a letter of both Hiragana and Katakana.
    """
    if script in ("Zinh", "Zyyy", "Zzzz"):  # inherited, common, unknown
        return None
    scripts = "".join(rf"\p{{scx={one}}}" for one in _MIXED.get(script, (script,)))
    try:
        pattern: re.Pattern[str] = regex.compile(rf"[\p{{L}}&&[{scripts}]]", regex.V1)
    except regex.error:
        return None
    return pattern


def in_other_script(sentences: Iterable[str], own: re.Pattern[str]) -> Iterator[int]:
    """Yield the indices of sentences with fewer than half of their letters in a script, or without letters.

    Empty sentences are left out. ``own`` is one letter of the script, from ``letters_of``.
    """
    for index, sentence in enumerate(sentences):
        letters = len(regex.findall(r"\p{L}", sentence))
        if sentence.strip() and (not letters or len(own.findall(sentence)) < letters / 2):
            yield index
