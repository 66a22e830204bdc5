"""Sentences written by hand: the grammar must be able to say each, and never its wrong neighbour."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from polyalign.config import language as langs
from polyalign.data.starter.grammar import KEEP, Part, Plan, choose, say, word
from polyalign.data.starter.lexicon import expand
from polyalign.data.starter.world import Scene, Thing
from polyalign.utils.errors import UserError

SCENE = Scene("grass", (Thing("house", "red", "small", 2), Thing("tree", "green", "large", 1)), "left", 0)


def part(text: str) -> Part:
    """Read "2 small red house"; size and colour may be missing."""
    count, *adjectives, kind = text.split()
    size = next((a for a in adjectives if a in ("small", "large")), None)
    color = next((a for a in adjectives if a not in ("small", "large")), None)
    return Part(kind, int(count), color, size)


def wordings(code: str, a: str, relation: str | None, b: str, background: str | None, draws: int = 400) -> set[str]:
    lang, rng = langs.load_language(code), np.random.default_rng(0)
    plan = Plan((part(a), part(b)), relation, background)
    return {word(plan, lang, rng) for _ in range(draws)}


GOLDEN = [
    # English: a/an, is/are, irregular plurals.
    ("en", "1 orange cup", "left", "1 umbrella", None, "there is an orange cup to the left of an umbrella"),
    ("en", "2 fish", "below", "3 large knife", "water", "there are two fish under three large knives in the water"),
    ("en", "1 small house", "above", "2 cat", "snow", "on the snow, one little house above two cats"),
    # German: gender, case, number; mixed adjectives after ein, strong ones after a numeral.
    ("de", "1 small red tree", None, "1 large blue flower", None, "ein kleiner roter Baum und eine große blaue Blume"),
    ("de", "1 small red house", None, "2 black chair", None, "ein kleines rotes Haus und zwei schwarze Stühle"),
    ("de", "1 small red tree", None, "1 grey boat", None, "man sieht einen kleinen roten Baum und ein graues Boot"),
    ("de", "1 yellow clock", None, "1 key", None, "es gibt eine gelbe Uhr und einen Schlüssel"),
    ("de", "1 cat", "left", "1 large green tree", None, "eine Katze links von einem großen grünen Baum"),
    ("de", "1 cat", "left", "1 white bottle", None, "eine Katze links neben einer weißen Flasche"),
    ("de", "1 knife", "above", "1 brown book", "sand", "ein Messer über einem braunen Buch auf dem Sand"),
    ("de", "3 fish", "below", "2 small yellow bird", "water", "drei Fische unter zwei kleinen gelben Vögeln im Wasser"),
    ("de", "2 hat", "right", "3 orange house", None, "rechts von drei orangefarbenen Häusern sind zwei Hüte"),
    ("de", "1 moon", "above", "2 car", "sky", "ein Mond oberhalb von zwei Autos am Himmel"),
    ("de", "1 pink ball", "below", "1 pink cup", None, "ein rosa Ball unter einer rosa Tasse"),
    ("de", "1 mushroom", "left", "2 table", "grass", "auf dem Gras ist ein Pilz links von zwei Tischen"),
    # Swahili: concord of adjective, numeral and connective with every noun class.
    ("sw", "2 red house", None, "1 large tree", None, "nyumba mbili nyekundu na mti mmoja mkubwa"),
    ("sw", "2 black chair", None, "1 black chair", None, "viti viwili vyeusi na kiti kimoja cheusi"),
    ("sw", "3 small tree", None, "3 small house", None, "miti mitatu midogo na nyumba tatu ndogo"),
    ("sw", "1 red car", None, "2 red car", None, "gari moja jekundu na magari mawili mekundu"),
    ("sw", "1 small flower", None, "3 large flower", None, "ua moja dogo na maua matatu makubwa"),
    ("sw", "1 white cat", None, "2 large white fish", None, "paka mmoja mweupe na samaki wawili wakubwa weupe"),
    ("sw", "3 small bird", None, "1 green bird", None, "ndege watatu wadogo na ndege mmoja wa kijani"),
    ("sw", "1 small key", None, "2 small key", None, "ufunguo mmoja mdogo na funguo mbili ndogo"),
    ("sw", "1 white key", None, "3 large white key", None, "ufunguo mmoja mweupe na funguo tatu kubwa nyeupe"),
    ("sw", "2 yellow cup", None, "1 blue car", None, "vikombe viwili vya manjano na gari moja la buluu"),
    ("sw", "2 grey table", None, "1 brown table", None, "meza mbili za kijivu na meza moja ya kahawia"),
    ("sw", "2 pink ball", None, "1 orange knife", None,
     "mipira miwili ya rangi ya waridi na kisu kimoja cha machungwa"),
    ("sw", "2 red umbrella", "right", "1 boat", "water", "miavuli miwili myekundu kulia kwa mashua moja kwenye maji"),
    ("sw", "1 star", "above", "1 small book", "sky", "kuna nyota juu ya kitabu kidogo angani"),
    # Hindi: gender and number, oblique before a postposition, the copula.
    ("hi", "1 small blue star", None, "2 large yellow banana", None, "एक छोटा नीला तारा और दो बड़े पीले केले"),
    ("hi", "1 large black cat", None, "3 green bird", None, "एक बड़ी काली बिल्ली और तीन हरी चिड़ियाँ"),
    ("hi", "1 red house", "left", "1 large blue star", None, "एक बड़े नीले तारे के बाईं ओर एक लाल घर"),
    ("hi", "2 book", "right", "3 small black star", None, "तीन छोटे काले तारों के दाएँ दो किताबें हैं"),
    ("hi", "1 book", "above", "2 small chair", None, "दो छोटी कुर्सियों के ऊपर एक किताब है"),
    ("hi", "1 knife", "below", "2 brown bird", "grass", "घास पर दो भूरी चिड़ियों के नीचे एक चाकू"),
    ("hi", "1 moon", "above", "1 white boat", "water", "पानी में एक सफ़ेद नाव के ऊपर एक चाँद है"),
    ("hi", "2 fish", None, "2 knife", None, "दो मछलियाँ और दो चाकू हैं"),
    ("hi", "1 ladder", "left", "3 large umbrella", None, "तीन बड़े छातों के बाएँ एक सीढ़ी"),
    # Turkish: no plural after a numeral, "bir" next to the noun, genitive and possessive.
    ("tr", "1 small red house", "left", "2 large tree", None, "iki büyük ağacın solunda küçük kırmızı bir ev"),
    ("tr", "3 cat", "below", "1 blue table", "grass", "çimlerde mavi bir masanın altında üç kedi var"),
    ("tr", "1 flower", "above", "1 fish", "water", "suda bir balığın üstünde bir çiçek"),
    ("tr", "2 book", None, "1 key", None, "iki kitap ve bir anahtar"),
    # Indonesian: classifiers, nothing inflects.
    ("id", "1 small cat", "left", "2 fish", None, "seekor kucing kecil di sebelah kiri dua ekor ikan"),
    ("id", "1 red flower", None, "1 knife", None, "setangkai bunga merah dan sebilah pisau"),
    ("id", "2 large grey house", "above", "1 pink ball", "sand",
     "dua rumah besar berwarna abu-abu di atas sebuah bola merah muda di pasir"),
    # Amharic: plural noun and adjective after a numeral, the verb, the prefixed preposition.
    ("am", "1 small red house", "left", "2 large tree", None, "ከሁለት ትልልቅ ዛፎች በስተግራ አንድ ትንሽ ቀይ ቤት"),
    ("am", "2 white cat", "above", "1 table", None, "ከአንድ ጠረጴዛ በላይ ሁለት ነጭ ድመቶች አሉ"),
    ("am", "1 bird", "right", "3 star", "sky", "በሰማይ ላይ ከሦስት ኮከቦች በስተቀኝ አንድ ወፍ አለ"),
    # Yoruba: everything follows the noun, the numeral last; tone marks.
    ("yo", "2 red house", "left", "1 tree", None, "ilé pupa méjì ní apá òsì igi kan"),
    ("yo", "1 small blue bird", "above", "3 fish", "water", "ẹyẹ kékeré aláwọ̀ búlúù kan wà lókè ẹja mẹ́ta nínú omi"),
    ("yo", "1 large black knife", None, "2 chair", None, "ọ̀bẹ ńlá dúdú kan àti àga méjì"),
    # Quechua: genitive and locative suffixes, the noun last in its phrase.
    ("qu", "2 small red house", "left", "1 tree", None, "huk sachapa lluqi lawninpi iskay uchuy puka wasi kachkan"),
    ("qu", "1 black cat", "above", "3 star", "sky", "hanaq pachapi kimsa quyllurpa hawanpi huk yana misi"),
    ("qu", "1 white bird", None, "2 flower", "sand", "aqupi huk yuraq pisqu iskay waytawan"),
    # Guarani: numeral, noun, size, colour; postpositions.
    ("gn", "2 small red house", "left", "1 tree", None, "mokõi óga michĩ pytã peteĩ yvyramáta asu gotyo"),
    ("gn", "1 black cat", "below", "3 large table", "sand", "oĩ peteĩ mbarakaja hũ mbohapy mesa guasu guýpe yvyku'ípe"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "a", "relation", "b", "background", "sentence"), GOLDEN)
def test_it_says_what_a_speaker_would(
    code: str, a: str, relation: str | None, b: str, background: str | None, sentence: str
) -> None:
    said = wordings(code, a, relation, b, background)
    assert sentence in said, sorted(said)[:20]


@pytest.mark.parametrize(
    ("code", "a", "b", "wrong"),
    [
        ("sw", "2 red house", "1 large tree", ["nyekundu mbili", "wawili", "mti mkubwa mmoja", " moja"]),
        ("sw", "2 large fish", "3 black cat", ["kubwa samaki", "mbili", "tatu na", "nyeusi"]),
        ("de", "2 red tree", "1 small cup", ["roten", "kleiner", "Baum ", "kleines"]),
        ("hi", "2 large star", "1 small chair", ["बड़ा", "छोटा", "तारों", "कुर्सियाँ"]),
        ("tr", "3 cat", "2 house", ["kediler", "evler"]),
        ("en", "1 orange cup", "2 knife", ["a orange", "knifes", "cups"]),
    ],
)
def test_it_never_says_what_a_speaker_would_not(code: str, a: str, b: str, wrong: list[str]) -> None:
    said = wordings(code, a, None, b, None)
    assert not [(bad, sentence) for bad in wrong for sentence in said if bad in sentence]


def test_the_swahili_concords_are_complete() -> None:
    said = {
        kind: wordings("sw", f"2 red {kind}", None, f"1 green {kind}", None)
        for kind in ("tree", "flower", "key", "bird")
    }
    expected = {
        "tree": "miti miwili myekundu na mti mmoja wa kijani",
        "flower": "maua mawili mekundu na ua moja la kijani",
        "key": "funguo mbili nyekundu na ufunguo mmoja wa kijani",
        "bird": "ndege wawili wekundu na ndege mmoja wa kijani",
    }
    assert all(sentence in said[kind] for kind, sentence in expected.items())


def test_the_same_state_of_chance_gives_the_same_sentence() -> None:
    lang = langs.load_language("sw")
    said = [say(SCENE, lang, np.random.default_rng(7)) for _ in range(2)]
    assert said[0] == said[1]


def test_a_relation_is_said_from_either_side() -> None:
    said = wordings("en", "1 cat", "above", "1 table", None)
    assert "a cat above a table" in said
    assert "a table below a cat" in said
    assert not {"a table above a cat", "a cat below a table"} & said


def test_facts_are_left_out_as_often_as_promised_and_kinds_and_counts_never() -> None:
    rng = np.random.default_rng(0)
    plans = [choose(SCENE, rng) for _ in range(4000)]
    assert {(part.kind, part.count) for plan in plans for part in plan.parts} == {("house", 2), ("tree", 1)}
    kept = np.array(
        [
            [fact is not None for fact in (a.color, b.color, a.size, b.size, plan.relation, plan.background)]
            for plan in plans
            for a, b in [plan.parts]
        ]
    )
    assert np.allclose(kept.mean(axis=0), KEEP, atol=0.03)
    assert np.corrcoef(kept.T)[0, 1] == pytest.approx(0, abs=0.05)


def test_alternatives_in_a_key_are_spelt_out() -> None:
    assert expand("dat m|n") == [frozenset({"dat", "m"}), frozenset({"dat", "n"})]
    assert expand("") == [frozenset()]


def broken(change: dict[str, Any], *, drop: tuple[str, str] | None = None) -> langs.Lang:
    lang = langs.load_language("en")
    starter = copy.deepcopy(lang.starter)
    for section, value in change.items():
        starter[section] = {**starter[section], **value} if isinstance(value, dict) else value
    if drop:
        del starter[drop[0]][drop[1]]
    return lang.model_copy(update={"code": "xx", "starter": starter})


@pytest.mark.parametrize(
    ("lang", "message"),
    [
        (broken({}, drop=("kinds", "ladder")), r"langs/xx\.toml: \[starter\.kinds\] lacks ladder"),
        (broken({"colors": {"gray": "gray"}}), r'langs/xx\.toml: \[starter\.colors\] has "gray": did you mean "grey"'),
        (broken({"kinds": {"cup": {"stem": "cup", "like": "es"}}}), r'\[starter\.kinds\] cup is like "es"'),
        (broken({"kinds": {"cup": {"steem": "cup"}}}), r"langs/xx\.toml: \[starter\] kinds\.cup\.0\.steem"),
        (broken({"sentences": ["{a} {rell} {b}"]}), r'unknown slot "rell"'),
        (broken({"sentences": ["{a} {rel"]}), r"stray bracket"),
        (broken({"sentences": ["{is@c} {a}"]}), r'agrees with a or b, not "c"'),
        (broken({"rewrites": [["(", ""]]}), r"rewrites\.0\.0: .*regular expression"),
        (broken({"sentences": ["{a} {rel}"]}), r"no template says exactly \{a\} \{b\}"),
        (broken({"kinds": {"cup": {"forms": {"pl": "cups"}}}}), r"kinds\] cup: no form fits the tags '1 sg'"),
        (broken({"kinds": {"cup": {"forms": {"1": "x", "sg": "y"}}}}), r"forms \['x', 'y'\] fit equally well"),
        (broken({"words": {"is": {"forms": {"pl": "are"}}}}), r"\[starter\.words\] is: no form fits"),
        (broken({}).model_copy(update={"starter": {}}), r"langs/xx\.toml has no \[starter\] table"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_is_named(lang: langs.Lang, message: str) -> None:
    scene = Scene("grass", (Thing("cup", "red", "small", 1), Thing("cup", "red", "small", 1)), "left", 0)
    with pytest.raises(UserError, match=message):
        assert all(say(scene, lang, np.random.default_rng(seed)) for seed in range(20))


def test_a_new_language_is_one_table() -> None:
    lang = langs.load_language("en").model_copy(update={"code": "xx"})
    assert say(SCENE, lang, np.random.default_rng(0))
