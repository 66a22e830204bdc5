from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from polyalign.utils.plain_table import PlainTable
from polyalign.utils.text import binary_size, clean, for_markdown, for_spreadsheet, safe_stem


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


def test_text_in_a_table_for_the_terminal_is_shown_as_it_is():
    table = PlainTable(title="[red]a[/]\x1b[2J", caption="[link=b]c\nd:smile:")
    table.add_column("x")
    table.add_row("  [blink]e[/blink]\x1b]0;f\x07 g")
    console = Console(emoji=False, width=100, force_terminal=True)
    with console.capture() as shown:
        console.print(table)
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown.get())  # colours
    assert "\x1b" not in text
    for part in ("[red]a[/] [2J", "[link=b]c", "d:smile:", "   [blink]e[/blink] ]0;f  g"):
        assert part in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("vit_base lilt (text), [28.4, 34.0]", "vit_base lilt (text), [28.4, 34.0]"),
        ("a|b", "a\\|b"),
        ("<script>&lt;", "&lt;script>&amp;lt;"),
        ("[a](b)", "[a]\\(b)"),
        ("`a` **b** \\|", "\\`a\\` \\*\\*b\\*\\* \\\\\\|"),
        ("a\n# b", "a # b"),
    ],
)
def test_text_in_markdown_is_shown_as_it_is(text, shown):
    assert for_markdown(text) == shown


@pytest.mark.parametrize("text", ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", " =1", "＝1", "-", "- 1"])
def test_formulas_are_text_in_a_spreadsheet(text):
    assert for_spreadsheet(text) == f"'{text.strip()}"


@pytest.mark.parametrize("cell", ["-0.0123", "+5", "1e-05", "-1.5e+10", -0.5, 3, None, "", "lilt", "20min+1GiB"])
def test_numbers_and_other_text_are_left_as_they_are_in_a_spreadsheet(cell):
    assert for_spreadsheet(cell) == cell


@pytest.mark.parametrize("text", ["_EVIL_", "~~EVIL~~", "*EVIL*", "[a](b)", "`x`", "www.evil.example", "HTTPS://evil"])
def test_markdown_shows_text_as_it_is(text):
    shown = for_markdown(text)
    assert shown != text
    assert for_markdown("flickr30k_200 and a_b") == "flickr30k_200 and a_b"


@pytest.mark.parametrize(
    ("count", "shown"), [(512, "512 B"), (9_856_614, "9.4 MiB"), (3 * 2**30, "3.0 GiB"), (5000 * 2**30, "5000.0 GiB")]
)
def test_sizes(count: int, shown: str) -> None:
    assert binary_size(count) == shown
