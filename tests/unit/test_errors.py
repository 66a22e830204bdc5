from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from polyalign.utils.errors import UserError, did_you_mean


def test_a_near_name_is_suggested_and_all_are_listed():
    assert did_you_mean("lit-deep", ["lilt", "lora", "lilt-deep"]) == (
        'did you mean "lilt-deep"? (known: lilt, lilt-deep, lora)'
    )


def test_a_far_name_gets_the_list_alone():
    assert did_you_mean("zzz", ["full", "bitfit"]) == "known: bitfit, full"


def test_where_nothing_is_known_it_says_none():
    assert did_you_mean("lilt", []) == "known: none"


@given(st.text(max_size=20), st.lists(st.text("abcdefgh-", min_size=1, max_size=8), min_size=1, unique=True))
def test_the_advice_is_one_line_naming_every_known_name_whatever_was_typed(name: str, known: list[str]):
    advice = did_you_mean(name, known)
    assert "\n" not in advice
    assert all(one in advice for one in known)


def test_user_errors_are_caught_apart_from_bugs():
    assert not issubclass(UserError, ValueError | OSError)
    assert str(UserError("no folder photos/")) == "no folder photos/"
