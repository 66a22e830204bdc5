from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from polyalign.config import language as lang
from polyalign.utils.errors import UserError

XITSONGA = """\
code = "ts"
name = "Xitsonga"
english_name = "Tsonga"
script = "Latn"
low_resource = true
flores = "tso_Latn"
prompts = ["Xifaniso xa {}."]

[recipe]
text.max_tokens = 40
"""


@pytest.fixture
def langs(tmp_path, monkeypatch):
    """The user's own ``./langs``, with Xitsonga in it."""
    folder = tmp_path / "langs"
    folder.mkdir()
    (folder / "ts.toml").write_text(XITSONGA, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return folder


def test_one_file_adds_a_language(langs):
    tsonga = lang.load_language("ts")
    assert "ts" in lang.language_codes()
    assert (tsonga.name, tsonga.script, tsonga.low_resource) == ("Xitsonga", "Latn", True)
    assert tsonga.recipe == {"text": {"max_tokens": 40}}
    assert tsonga.starter == {}


def test_every_shipped_language_loads_under_its_own_code():
    codes = lang.language_codes()
    assert len(codes) >= 8
    assert [lang.load_language(code).code for code in codes] == codes


def test_the_shipped_languages_are_as_mixed_as_promised():
    shipped = [lang.load_language(code) for code in lang.language_codes()]
    assert sum(one.low_resource for one in shipped if one.starter) >= 4
    assert len({one.script for one in shipped if one.starter}) >= 3


def test_a_file_under_another_name_than_its_code_is_refused(langs):
    (langs / "tso.toml").write_text(XITSONGA, encoding="utf-8")
    with pytest.raises(UserError, match=r'says code = "ts": the file must be named ts\.toml'):
        lang.load_language("tso")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('scrpt = "Latn"', "scrpt: Extra inputs are not permitted"),
        ('script = "Latin"', "script: String should match"),
        ("low_resource = 'often'", "low_resource: Input should be a valid boolean"),
        ("prompts = 'a photo of {}'", "prompts: Input should be a valid tuple"),
    ],
)
def test_a_key_that_does_not_fit_is_named(line, complaint, langs):
    key = line.split(" =")[0]
    kept = [one for one in XITSONGA.splitlines() if not one.startswith(f"{key} =")]
    (langs / "ts.toml").write_text("\n".join([line, *kept]), encoding="utf-8")
    with pytest.raises(UserError, match=r"ts\.toml does not describe a language") as caught:
        lang.load_language("ts")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named(langs):
    (langs / "ts.toml").write_text('code = "ts"\n', encoding="utf-8")
    with pytest.raises(UserError, match="script: Field required"):
        lang.load_language("ts")


@pytest.mark.parametrize("code", ["sw", "quz", "zh-Hans", "sr-Latn-RS"])
def test_bcp_47_codes_pass(code):
    assert lang.Lang(code=code, name="x", english_name="x", script="Latn", low_resource=False).code == code


@given(st.text(max_size=12).filter(lambda code: not code.isascii() or "/" in code or "." in code or "_" in code))
def test_no_code_can_name_a_path_or_leave_ascii(code: str):
    with pytest.raises(ValidationError):
        lang.Lang(code=code, name="x", english_name="x", script="Latn", low_resource=False)


def test_an_unknown_language_is_a_user_error():
    with pytest.raises(UserError, match='unknown language "kiswahili"'):
        lang.load_language("kiswahili")
