"""Reading parallel text in its formats, and mistakes in it."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from polyalign.config.schema import Recipe
from polyalign.data.load import load_table
from polyalign.data.parallel import language_of, load_parallel
from polyalign.utils.errors import UserError
from tests import tiny

EN = ["a red house", "two cats", "the sea at night"]
DE = ["ein rotes Haus", "zwei Katzen", "das Meer bei Nacht"]
HI = ["लाल घर", "दो बिल्लियाँ", "रात में समुद्र"]


def recipe(text: object, **settings: object) -> Recipe:
    return tiny.resolved(parallel={"text": str(text), **settings})


def tsv(path: Path, *rows: tuple[str, ...], header: tuple[str, ...] = ()) -> Path:
    lines = ["\t".join(row) for row in ([header] if header else []) + list(rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


ROWS = list(zip(EN, DE, strict=True))


def test_a_header_names_the_languages_and_the_run_is_the_pivot(tmp_path):
    path = tsv(tmp_path / "text.tsv", *zip(DE, EN, HI, strict=True), header=("deu_Latn", "en", "hin"))
    text = load_parallel(recipe(path))
    assert text.langs == ("en", "de", "hi")
    assert text.rows == tuple(zip(EN, DE, HI, strict=True))
    assert load_parallel(recipe(path, langs=["hi", "de"], pivot="de")).langs == ("de", "hi")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("de-en.tsv", {}),
        ("corpus.tsv", {"langs": ["de", "en"]}),
        ("OpenSubtitles.deu-eng.tsv", {"langs": ["de", "en"]}),
    ],
)
def test_without_a_header_the_file_name_or_the_recipe_names_the_languages(name, settings, tmp_path):
    path = tsv(tmp_path / name, *zip(DE, EN, strict=True))
    assert load_parallel(recipe(path, **settings)).rows == tuple(ROWS)


def test_the_numbers_of_tatoeba_are_left_out(tmp_path):
    rows = [(str(10 + i), de, str(90 + i), en) for i, (en, de) in enumerate(ROWS)]
    assert load_parallel(recipe(tsv(tmp_path / "de-en.tsv", *rows))).rows == tuple(ROWS)


def test_line_aligned_files(tmp_path):
    (tmp_path / "corpus.en").write_text("\n".join(EN) + "\n")
    with gzip.open(tmp_path / "corpus.de.gz", "wt") as file:
        file.write("\r\n".join(DE))
    (tmp_path / "corpus.readme").write_text("nothing")
    assert load_parallel(recipe(tmp_path / "corpus")).rows == tuple(ROWS)


def test_a_folder_in_the_form_of_flores(tmp_path):
    for name, lines in {"eng_Latn.dev": EN, "deu_Latn.dev": DE, "hin_Deva.dev": HI, "xxx_Latn.dev": EN}.items():
        (tmp_path / name).write_text("\n".join(lines))
    assert load_parallel(recipe(tmp_path)).langs == ("en", "de", "hi")
    assert load_parallel(recipe(tmp_path, langs=["hi", "en"])).rows == tuple(zip(EN, HI, strict=True))


@pytest.mark.parametrize("nested", [True, False])
def test_a_hugging_face_dataset(nested, tmp_path):
    columns = {"en": EN, "de": DE}
    rows = [{"en": en, "de": de} for en, de in ROWS]
    Dataset.from_dict({"translation": rows} if nested else columns).save_to_disk(tmp_path / "set")
    assert load_parallel(recipe(f"hub:{tmp_path / 'set'}")).rows == tuple(ROWS)


def test_captions_of_an_image_in_two_languages_are_parallel_and_test_images_are_not_used(tmp_path):
    text = load_parallel(recipe("captions", langs=["en", "de"]))
    train = load_table(recipe("captions"), "train")
    assert text.rows == tuple((caption, " ".join(caption.split()[::-1])) for caption in train.captions)
    with pytest.raises(UserError, match=r"name the languages of the captions with --set parallel\.langs"):
        load_parallel(recipe("captions"))


def test_the_starter_world_says_other_scenes_than_those_trained_on():
    found = load_parallel(recipe("starter", langs=["sw", "en"], sentences=50))
    assert (found.langs, len(found)) == (("en", "sw"), 50)
    more = load_parallel(recipe("starter", langs=["sw", "en"], sentences=80))
    assert set(found.rows) < set(more.rows)


def test_rows_with_a_caption_of_the_test_set_are_left_out(tmp_path, caplog):
    test = load_table(recipe("captions"), "test")
    path = tsv(tmp_path / "en-de.tsv", *ROWS, (test.captions[0].upper(), "ein Testbild"))
    with caplog.at_level("INFO"):
        assert load_parallel(recipe(path), [test]).rows == tuple(ROWS)
    assert "left out 1 rows with a caption of dev or test" in caplog.text


def test_rows_with_an_empty_sentence_are_left_out_and_counted(tmp_path, caplog):
    path = tsv(tmp_path / "en-de.tsv", *ROWS, ("alone", "  "), ("", "allein"))
    with caplog.at_level("INFO"):
        assert len(load_parallel(recipe(path))) == 3
    assert "left out 2 of 5 rows with an empty sentence" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("en-de.tsv", b"a\tb\nc\td\te\n", r"line 2 has 3 columns, the first line has 2"),
        ("en-de.tsv", b"one\ntwo\n", r"line 1 has no tab"),
        ("en-de.tsv", b"", "is empty"),
        ("en-de.tsv", b"\n\n", "is empty"),
        ("en-de.tsv", "a\tü\n".encode("latin-1"), "UTF-8"),
        ("en-de.tsv", b"a\tb\n", "needs two rows or more"),
        ("text.tsv", b"a\tb\nc\td\n", "states no languages: add a first line of language codes"),
        ("xx-yy.tsv", b"a\tb\nc\td\n", 'unknown language "xx"'),
        ("text.tsv", b"en\ten\na\tb\nc\td\n", "two columns in the language en"),
        ("en-de.tsv", b"a\tb\tc\nd\te\tf\n", "has 3 columns and states no languages"),
    ],
)
def test_a_malformed_file_is_one_line(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_parallel(recipe(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_files_of_unequal_length_and_missing_ones_are_one_line(tmp_path):
    (tmp_path / "corpus.en").write_text("\n".join(EN))
    with pytest.raises(UserError, match="there is no parallel text at"):
        load_parallel(recipe(tmp_path / "corpus"))
    (tmp_path / "corpus.de").write_text("\n".join(DE[:2]))
    with pytest.raises(UserError, match=r"corpus.en has 3 lines, .*corpus.de has 2: line-aligned"):
        load_parallel(recipe(tmp_path / "corpus"))
    with pytest.raises(UserError, match=r"has no sentences in sw: it has de, en"):
        load_parallel(recipe(tmp_path / "corpus", langs=["en", "sw"]))
    (tmp_path / "corpus.de").write_text("\n".join(DE))
    with pytest.raises(UserError, match=r"parallel\.pivot: .* has no sentences in sw"):
        load_parallel(recipe(tmp_path / "corpus", pivot="sw"))


def test_languages_in_the_wrong_order_are_noticed_by_their_script(tmp_path):
    path = tsv(tmp_path / "hi-en.tsv", *zip(EN, HI, strict=True))
    with pytest.raises(UserError, match=r"in en are not in its script \(Latn\): are the languages in the wrong order"):
        load_parallel(recipe(path))


def test_languages_in_the_wrong_order_are_noticed_by_captions(tmp_path):
    spoken = load_table(recipe("captions"), "train")  # red, green, blue ...
    english = [" ".join(caption.split()[::-1]) for caption in spoken.captions]
    german = [f"ein Bild mit Nummer {number} und sonst noch etwas" for number in range(len(english))]
    swapped = tsv(tmp_path / "en-de.tsv", *zip(german, english, strict=True))
    with pytest.raises(UserError, match="in de resemble the captions in en more than those in en do"):
        load_parallel(recipe(swapped), spoken=[spoken])
    right = tsv(tmp_path / "de-en.tsv", *zip(german, english, strict=True))
    assert len(load_parallel(recipe(right), spoken=[spoken])) == len(english)


def test_more_sentences_than_there_are_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"has 3 rows, fewer than parallel\.sentences = 4"):
        load_parallel(recipe(tsv(tmp_path / "en-de.tsv", *ROWS), sentences=4))


@pytest.mark.parametrize(
    ("name", "code"), [("quy_Latn", "qu"), ("swh", "sw"), ("DE", "de"), ("klingon", None), ("", None)]
)
def test_names_of_languages(name, code):
    assert language_of(name) == code


sentence = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8)


@given(st.lists(st.tuples(sentence, sentence), min_size=2, max_size=20))
def test_what_is_written_is_read(tmp_path_factory, rows):
    rows = [(f"the {en}", f"der {de}") for en, de in rows]
    path = tsv(tmp_path_factory.mktemp("text") / "en-de.tsv", *rows)
    assert load_parallel(recipe(path)).rows == tuple(rows)


cell = st.one_of(sentence, st.sampled_from(["en", "de", "hin", "1", "", " ", "\x00", "\u202e", "a\rb", '"']))
lines = st.lists(st.lists(cell, min_size=1, max_size=5).map("\t".join), max_size=12).map("\n".join)
damaged = st.one_of(st.binary(max_size=200), lines.map(lambda text: text.encode("utf-8", "surrogatepass")))


@given(damaged, st.sampled_from(["en-de.tsv", "text.tsv", "xx-yy.tsv"]), st.booleans())
def test_any_file_is_read_or_refused_in_one_line(tmp_path_factory, content, name, named):
    path = tmp_path_factory.mktemp("any") / name
    path.write_bytes(content)
    settings = {"langs": ["en", "de"]} if named else {}
    try:
        found = load_parallel(recipe(path, **settings))
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert len(found) >= 2
        assert all(sum(map(bool, row)) >= 2 and len(row) == len(found.langs) for row in found.rows)
