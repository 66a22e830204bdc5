from __future__ import annotations

import io
import json
import sys

import pytest
from rich.cells import cell_len

from polyalign.config.language import language_codes, load_language
from polyalign.data import new_language


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def answers(monkeypatch, *lines: str) -> None:
    """Sit in a terminal and give these answers."""
    terminal = io.StringIO("\n".join([*lines, ""]))
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", terminal)


def test_a_new_language_is_known_at_once(run, folder):
    code, out, err = run("lang", "new", "ay", "--name", "Aymar aru", "--flores", "ayr_Latn", "--low-resource")
    assert (code, err) == (0, "")
    assert out.startswith("langs/ay.toml\n")
    lang = load_language("ay")
    assert (lang.name, lang.english_name, lang.script, lang.flores) == ("Aymar aru", "Aymara", "Latn", "ayr_Latn")
    assert lang.low_resource
    assert "ay" in language_codes()


def test_the_file_shows_what_may_be_added(run, folder):
    run("lang", "new", "ts", "--name", "Xitsonga", "--script", "Latn")
    path = folder / "langs" / "ts.toml"
    text = path.read_text(encoding="utf-8")
    assert "perhaps tsn_Latn or tso_Latn" in text
    for line in ('# prompts = ["{}."]', "# [recipe]", "# text.max_tokens = 80"):
        text = text.replace(line, line[2:])
    path.write_text(text, encoding="utf-8")
    lang = load_language("ts")
    assert (lang.prompts, lang.recipe) == (("{}.",), {"text": {"max_tokens": 80}})


def test_in_a_terminal_what_is_not_given_is_asked_for(run, monkeypatch):
    answers(monkeypatch, "", 'A"ymar\\', "Latn", "", "y")
    assert run("lang", "new", "ay")[0] == 0
    lang = load_language("ay")
    assert (lang.name, lang.english_name, lang.flores, lang.low_resource) == ('A"ymar\\', "Aymara", "ayr_Latn", True)


def test_a_language_without_a_code_may_use_a_private_one(run):
    assert "--english-name is missing: English name" in run("lang", "new", "qaa", "--name", "x", "--script", "Latn")[2]
    assert run("lang", "new", "qaa", "--name", "x", "--english-name", "X", "--script", "Latn")[0] == 0


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["aymara"], 'did you mean ay (Aymara), '),
        (["aym"], "did you mean ay (Aymara)?"),
        (["../ay"], "is not a language code of BCP-47"),
        (["ay-../../x", "--name", "x", "--script", "Latn"], "language ay-../../x: code: "),
        (["ay"], "--name is missing: Name in the language itself"),
        (["ay", "--name", "x"], "--script is missing: Script (ISO 15924)"),
        (["ay", "--name", "x", "--script", "Latin"], '"Latin" is not the ISO 15924 code of a script: did you mean'),
        (["ay", "--name", "x", "--script", "Zyyy"], '"Zyyy" is not the ISO 15924 code of a script'),
        (["ay", "--name", "x", "--script", "latn"], "did you mean Latn?"),
        (["ay", "--name", "x", "--flores", "aym_Latn"], "did you mean ayr_Latn"),
        (["ay", "--name", "x", "--flores", "ayr"], "did you mean ayr_Latn"),
        (["ay", "--name", "x", "--from-text", "absent.txt"], "cannot read absent.txt"),
        (["sw", "--name", "x", "--script", "Latn"], "polyalign has the language sw already"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_with_what_was_meant(words, problem, run, folder):
    code, _, err = run("lang", "new", *words)
    assert code == 2
    assert problem in err
    assert not list(folder.rglob("*"))


@pytest.mark.parametrize("words", [(), ("--overwrite",)])
def test_a_shipped_language_is_not_hidden(words, run, folder):
    code, _, err = run("lang", "new", "sw", "--name", "Kiswahili", "--script", "Latn", *words)
    assert (code, err.count("\n")) == (2, 1)
    assert "polyalign has the language sw already: choose another code" in err
    assert not list(folder.rglob("*"))


def test_the_end_of_the_input_at_a_prompt_ends_the_command(run, folder, monkeypatch):
    answers(monkeypatch)
    sys.stdin.read()
    code, _, err = run("lang", "new", "ay")
    assert (code, "Traceback" in err) == (130, False)
    assert not list(folder.rglob("*"))


def test_an_existing_file_is_replaced_only_if_asked_for(run, folder):
    words = ("lang", "new", "ay", "--script", "Latn", "--name")
    assert run(*words, "one")[0] == 0
    code, _, err = run(*words, "two")
    assert (code, load_language("ay").name) == (2, "one")
    assert "langs/ay.toml exists already: replace it with --overwrite" in err
    assert run(*words, "two", "--overwrite")[0] == 0
    assert load_language("ay").name == "two"


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Jutkiwa uta.", "Latn"), ("ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ hello", "Cher"), ("猫が木の下に", "Jpan"), ("고양이가 나무", "Kore"),
        ("ድመት ከዛፍ በታች", "Ethi"), ("ߞߊ߲", "Nkoo"), ("گربه زیر درخت 123", "Arab"),
    ],
)  # fmt: skip
def test_the_script_is_found_in_a_text(text, script, folder):
    (folder / "text.txt").write_text(text, encoding="utf-8")
    assert new_language.detect_script(folder / "text.txt") == script


@pytest.mark.parametrize(("text", "problem"), [("12 ?", "has no letters"), ("猫在樹下", "--script Hans")])
def test_a_text_that_does_not_tell_the_script_is_refused(text, problem, run, folder):
    (folder / "text.txt").write_text(text, encoding="utf-8")
    code, _, err = run("lang", "new", "yue", "--name", "x", "--from-text", "text.txt")
    assert code == 2
    assert problem in err


def test_the_shipped_languages_would_pass():
    for code in language_codes():
        lang = load_language(code)
        assert new_language.english_name_of(code)
        fields = lang.model_dump(include={"code", "name", "english_name", "script", "flores", "low_resource"})
        assert new_language.new_language(**fields).script == lang.script


def test_the_list_fits_a_terminal_and_has_own_languages(run, monkeypatch):
    run("lang", "new", "ay", "--name", "Aymar aru", "--script", "Latn")
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run("lang", "list")
    assert code == 0
    assert "Aymar aru" in out
    assert max(cell_len(line.rstrip()) for line in out.splitlines()) <= 80
    listed = json.loads(run("lang", "list", "--json")[1])
    assert {one["code"] for one in listed} == set(language_codes())
