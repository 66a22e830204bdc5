from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from polyalign.config import language as languages
from polyalign.data import class_names
from polyalign.utils.errors import UserError

SW, EN = languages.load_language("sw"), languages.load_language("en")
NUMBERS = [str(number) for number in range(1000)]


def test_names_are_those_of_the_folders_with_spaces():
    assert class_names.english(["001.Black_footed_Albatross", "apple-pie"]) == (
        (("Black footed Albatross",), ("apple pie",)),
        "the dataset's own",
    )


def test_imagenets_classes_are_known_by_id_by_number_and_by_words():
    names, by = class_names.english(["n01440764", "n02012849"])
    assert (names, by) == ((("tench", "Tinca tinca"), ("crane",)), "WordNet's words, by timm")
    by_number, _ = class_names.english(NUMBERS)
    assert by_number[:2] == (("tench", "Tinca tinca"), ("goldfish", "Carassius auratus"))
    words = [", ".join(one) for one in by_number]
    assert class_names.english(words)[0] == by_number


def test_numbers_that_may_be_anything_are_no_names():
    assert class_names.english(["0", "1"]) == (((), ()), "none")
    assert class_names.english(["n00000000", "n01440764"])[1] == "the dataset's own"


def test_a_name_of_no_class_is_a_slip_of_the_pen_where_a_class_has_none(tmp_path):
    path = tmp_path / "names.tsv"
    path.write_text("redd\trot\nblue\tblau\n")
    with pytest.raises(UserError, match='has a name for "redd", which is not one of the classes: did you mean "red"'):
        class_names.read(str(path), SW, ["red", "blue"])
    path.write_text("red\trot\nblue\tblau\ngreen\tgrün\n")
    assert set(class_names.read(str(path), SW, ["red", "blue"])) == {"red", "blue", "green"}
    path.write_text("blue\tblau\n")
    assert set(class_names.read(str(path), SW, ["red", "blue"])) == {"blue"}


def test_the_languages_of_babel_imagenets_file(tmp_path):
    path = tmp_path / "babel.json"
    path.write_text(json.dumps({"SW": [[0], ["a"]], "TL": [[0], ["b"]], "XX": [[0], ["c"]]}))
    known = [languages.load_language(code) for code in ("de", "fil", "sw")]
    assert class_names.languages(str(path), known) == ["fil", "sw"]
    assert class_names.read(str(path), languages.load_language("fil"), NUMBERS) == {"0": ("b",)}
    path.write_text('{"red": "rot"}')
    with pytest.raises(UserError, match="not the Babel-ImageNet file: choose one language"):
        class_names.languages(str(path), known)
    with pytest.raises(UserError, match="not the Babel-ImageNet file: choose one language"):
        class_names.languages("", known)


def test_clips_own_names_and_prompts_come_with_open_clip(monkeypatch):
    fake = SimpleNamespace(
        IMAGENET_CLASSNAMES=[f"thing {n}" for n in range(1000)],
        OPENAI_IMAGENET_TEMPLATES=(lambda name: f"a photo of a {name}.", lambda name: f"itap of a {name}."),
    )
    monkeypatch.setitem(sys.modules, "open_clip", fake)
    assert class_names.read("openai", EN, NUMBERS)["999"] == ("thing 999",)
    assert class_names.openai_templates() == ("a photo of a {}.", "itap of a {}.")
    with pytest.raises(UserError, match="in English, not in Swahili"):
        class_names.read("openai", SW, NUMBERS)
    with pytest.raises(UserError, match="1,000 classes, not for 2"):
        class_names.read("openai", EN, ["a", "b"])
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match=r"pip install 'polyalign\[peers\]'"):
        class_names.openai_templates()


def test_clips_own_names_are_in_open_clip_as_it_is():
    pytest.importorskip("open_clip")
    assert class_names.read("openai", EN, NUMBERS)["0"] == ("tench",)
    assert len(class_names.openai_templates()) == 80


def test_names_from_tsv_and_json(tmp_path: Path) -> None:
    (tmp_path / "n.tsv").write_bytes("\ufeffa\tpaka\r\nb\tmbwa\na\tnyau\n\n".encode())
    (tmp_path / "n.json").write_text(json.dumps({"a": ["paka", "nyau"], "b": "mbwa"}), encoding="utf-8")
    for name in ("n.tsv", "n.json"):
        assert class_names.read(str(tmp_path / name), SW, ["a", "b"]) == {"a": ("paka", "nyau"), "b": ("mbwa",)}


def test_names_from_tables_with_a_header(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("Class;Name\na;paka\nb;mbwa\na;nyau\nc;\n")
    (tmp_path / "two.csv").write_text('class,en,sw\na,cat,paka\nb,"dog, hound",mbwa\na,,nyau\n')
    (tmp_path / "three.jsonl").write_text('{"class": "a", "name_sw": "paka"}\n{"class": "a", "name_sw": "nyau"}\n')
    both = {"a": ("paka", "nyau"), "b": ("mbwa",)}
    for name, wanted in (("one.csv", both), ("two.csv", both), ("three.jsonl", {"a": ("paka", "nyau")})):
        assert class_names.read(str(tmp_path / name), SW, ["a", "b", "c"]) == wanted
    english = class_names.read(str(tmp_path / "two.csv"), languages.load_language("en"), ["a", "b"])
    assert english == {"a": ("cat",), "b": ("dog, hound",)}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("n.csv", "a,paka\n", "has no rows"),
        (
            "n.csv",
            "kind,name\na,paka\n",
            "needs the columns class and sw or name_sw or name; its",
        ),
        ("n.csv", "class,de\na,Katze\n", "needs the columns class and sw"),
        ("n.csv", "class,name\na,b,c\n", "line 2 has 3 fields"),
        ("n.tsv", "a\n", 'line 1 is not "class<TAB>name"'),
        ("n.tsv", "a\tb\tc\n", 'line 1 is not "class<TAB>name"'),
        ("n.json", "{", "is not JSON"),
        ("n.json", "[1]", "is not of the form"),
        ("none.tsv", None, "cannot read"),
    ],
)
def test_a_bad_file_of_names_is_an_error(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        class_names.read(str(tmp_path / name), SW, ["a"])


def test_babel_imagenet_goes_by_index(tmp_path: Path) -> None:
    path = tmp_path / "babel.json"
    path.write_text(json.dumps({"SW": [[2, 0], ["nyoka", "paka"]], "DE": [[1], ["Hund"]]}))
    classes = [f"n{i:04d}" for i in range(1000)]
    assert class_names.read(str(path), SW, classes) == {"n0002": ("nyoka",), "n0000": ("paka",)}
    with pytest.raises(UserError, match="1000 classes, not for 3"):
        class_names.read(str(path), SW, classes[:3])
    with pytest.raises(UserError, match=r"no names in Hindi \(HI\)"):
        class_names.read(str(path), languages.load_language("hi"), classes)


def test_the_real_babel_imagenet(real_data: Path) -> None:
    path = real_data / "data" / "benchmarks" / "babel-imagenet" / "babel_imagenet.json"
    classes = [f"n{i:08d}" for i in range(1000)]
    found = {
        code: len(class_names.read(str(path), languages.load_language(code), classes)) for code in ("sw", "am", "de")
    }
    assert found == {"sw": 220, "am": 85, "de": 738}
