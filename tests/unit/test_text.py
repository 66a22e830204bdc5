from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from polyalign.utils.text import clean, safe_stem


@given(st.text())
@example("\x1b[2J\x1b]0;title\x07red \x9b31m")
@example("a\u202eb\u2066c\u2028d\x00")
@example("\ud800")
def test_cleaned_text_is_one_line_that_no_terminal_obeys(text):
    line = clean(text)
    assert not {unicodedata.category(letter) for letter in line} & {"Cc", "Cs", "Zl", "Zp"}
    assert not set(line) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
    assert clean(line) == line


def test_cleaning_keeps_letters_and_joiners_and_cuts_to_the_limit():
    assert clean("ñandú  می\u200cخواهم\n क्\u200dष") == "ñandú می\u200cخواهم क्\u200dष"
    assert clean("abcdef", 4) == "abc…"
    assert clean("abcd", 4) == "abcd"


@given(st.text(max_size=300))
@example("../evil")
@example("..")
@example("")
@example("/etc/passwd")
@example("a\\b")
@example("漢" * 200)
@example("\ud800")
def test_a_safe_stem_is_one_visible_path_component(name):
    stem = safe_stem(name)
    assert stem[0] != "."
    assert len(stem.encode()) <= 100
    assert not set(stem) & set("/\\:\0\n*?\"'`$ ")


@pytest.mark.parametrize("name", ["sw", "pt-BR", "starter-sw-lilt-10k-pairs-s0", "ñandú", "v1.2"])
def test_a_usual_name_is_its_own_stem(name):
    assert safe_stem(name) == name


def test_different_names_have_different_stems():
    names = ["a/b", "a_b", "a\\b", "../a", "a", ".a", "x" * 101, "x" * 102]
    assert len({safe_stem(name) for name in names}) == len(names)
