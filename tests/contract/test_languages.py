"""Test every language file: codes and prompts, and that a lexicon covers the whole starter world."""

from __future__ import annotations

import dataclasses
import itertools
import unicodedata
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
import regex

from polyalign.config import language as langs
from polyalign.data.scripts import letters_of
from polyalign.data.starter import world
from polyalign.data.starter.grammar import Part, Plan, choose, word
from polyalign.utils.text import clean

ALL = langs.language_codes()
PAGE = [code for code in ALL if langs.load_language(code).page]
STARTER = [code for code in ALL if langs.load_language(code).starter]
CROSSMODAL_3600 = """ar bn cs da de el en es fa fi fil fr he hi hr hu id it ja ko mi nl no pl pt qu ro ru sv sw te
    th tr uk vi zh"""
SCRIPTS = {"Latn": "Latin", "Deva": "Devanagari", "Ethi": "Ethiopic"}


def random_plans(count: int, seed: int = 0) -> Iterator[Plan]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        things = [
            world.Thing(
                str(rng.choice(world.KINDS)), str(rng.choice(world.COLORS)),
                str(rng.choice(world.SIZES)), int(rng.choice(world.COUNTS)),
            )
            for _ in range(2)
        ]  # fmt: skip
        background, relation = str(rng.choice(world.BACKGROUNDS)), str(rng.choice(world.RELATIONS))
        yield choose(world.Scene(background, (things[0], things[1]), relation, 0), rng)


def canonical(plan: Plan) -> str:
    return min(repr(plan), repr(plan.turned()))


def test_the_languages_are_found() -> None:
    assert len(ALL) >= 40
    assert {"en", "de", "tr", "id", "hi", "am", "sw", "yo", "qu", "gn"} <= set(STARTER)
    assert sum(langs.load_language(code).low_resource for code in STARTER) >= 4
    assert len({langs.load_language(code).script for code in STARTER}) >= 3


def test_every_language_of_crossmodal_3600_is_there() -> None:
    assert len(CROSSMODAL_3600.split()) == 36
    assert set(CROSSMODAL_3600.split()) <= set(ALL)


@pytest.mark.parametrize("code", ALL)
def test_codes_and_prompts_are_sound(code: str) -> None:
    lang = langs.load_language(code)
    assert lang.name
    assert lang.english_name
    assert lang.flores is not None
    assert regex.fullmatch(r"[a-z]{3}_[A-Z][a-z]{3}", lang.flores)
    assert all(prompt.count("{}") == 1 for prompt in lang.prompts)
    assert len(set(lang.prompts)) == len(lang.prompts)


def test_flores_codes_and_names_are_not_shared() -> None:
    loaded = [langs.load_language(code) for code in ALL]
    assert len({lang.flores for lang in loaded}) == len({lang.name for lang in loaded}) == len(loaded)


@pytest.mark.parametrize("code", STARTER)
def test_every_fact_is_sayable_and_no_slot_is_left_open(code: str) -> None:
    lang, rng = langs.load_language(code), np.random.default_rng(0)
    facts = itertools.product(world.KINDS, world.COUNTS, (None, *world.COLORS), (None, *world.SIZES))
    parts = [Part(kind, count, color, size) for kind, count, color, size in facts]
    for part in parts:
        plan = Plan((part, part), str(rng.choice(world.RELATIONS)), str(rng.choice(world.BACKGROUNDS)))
        sentence = word(plan, lang, rng)
        assert not regex.search(r"[][{}|@]|\s\s|^\s|\s$", sentence), sentence
    for relation, background in itertools.product((None, *world.RELATIONS), (None, *world.BACKGROUNDS)):
        assert word(Plan((parts[0], parts[-1]), relation, background), lang, rng)


@pytest.mark.parametrize("code", STARTER)
def test_only_the_language_s_script_is_written_in_its_normal_form(code: str) -> None:
    lang, rng = langs.load_language(code), np.random.default_rng(1)
    script = SCRIPTS[lang.script]
    for plan in random_plans(300):
        sentence = word(plan, lang, rng)
        assert regex.fullmatch(rf"[\p{{Script={script}}}\p{{M}} ,'\-]+", sentence), sentence
        assert unicodedata.normalize("NFKC", sentence) == sentence


@pytest.mark.parametrize("code", STARTER)
def test_a_sentence_tells_which_facts_it_says(code: str) -> None:
    lang, rng = langs.load_language(code), np.random.default_rng(2)
    meaning: dict[str, str] = {}
    for plan in random_plans(200):
        for other in neighbours(plan):
            for _ in range(2):
                sentence = word(other, lang, rng)
                assert meaning.setdefault(sentence, canonical(other)) == canonical(other), sentence


def neighbours(plan: Plan) -> Iterator[Plan]:
    """Return the plan and random plans that differ from it in one fact, which are most easily confused with it."""
    rng = np.random.default_rng(zlib.crc32(canonical(plan).encode()))
    first, second = plan.parts
    yield plan
    yield Plan((second, first), plan.relation, plan.background)
    for changed in (
        dataclasses.replace(first, kind=str(rng.choice(world.KINDS))),
        dataclasses.replace(first, count=int(rng.choice(world.COUNTS))),
        dataclasses.replace(first, color=str(rng.choice(world.COLORS))),
        dataclasses.replace(first, size=str(rng.choice(world.SIZES))),
    ):
        yield Plan((changed, second), plan.relation, plan.background)
    yield Plan(plan.parts, str(rng.choice(world.RELATIONS)), plan.background)
    yield Plan(plan.parts, plan.relation, str(rng.choice(world.BACKGROUNDS)))


def test_the_page_is_there_in_languages_of_both_directions() -> None:
    assert len(PAGE) >= 9
    assert {"en", "sw", "am", "ar"} <= set(PAGE)
    assert {code for code in PAGE if langs.load_language(code).direction == "rtl"} == {"ar", "fa", "he"}


@pytest.mark.parametrize("code", PAGE)
def test_texts_of_the_page_are_in_the_script_of_the_language_and_differ(code: str) -> None:
    lang = langs.load_language(code)
    assert lang.page
    texts = list(lang.page.model_dump().values())
    letter = letters_of(lang.script)
    assert letter
    for text in texts:
        assert text == unicodedata.normalize("NFC", clean(text))
        assert not set(text) & set("<>&{}|")
        assert all(letter.fullmatch(char) for char in text if char.isalpha()), text
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("code", STARTER)
def test_a_plan_has_several_wordings_of_caption_length(code: str) -> None:
    lang, rng = langs.load_language(code), np.random.default_rng(3)
    plans = list(random_plans(200))
    assert np.mean([len({word(plan, lang, rng) for _ in range(8)}) for plan in plans]) >= 3.5
    assert 7 <= np.mean([len(word(plan, lang, rng).split()) for plan in plans]) <= 14


@pytest.mark.parametrize("code", STARTER)
def test_no_word_is_listed_under_two_facts(code: str) -> None:
    starter = langs.load_language(code).starter
    for section in ("kinds", "colors", "sizes", "counts", "relations", "backgrounds"):
        owner: dict[str, str] = {}
        for key, value in starter[section].items():
            for entry in value if isinstance(value, list) else [value]:
                assert owner.setdefault(repr(entry), key) == key
