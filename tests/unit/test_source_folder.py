from __future__ import annotations

import csv
import io
import json
import os
import re
import unicodedata
from pathlib import Path
from typing import Any

import openpyxl
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from polyalign.config import language as languages
from polyalign.data.pairs import PairTable
from polyalign.data.readers import sheet
from polyalign.data.sources import folder
from polyalign.utils.errors import UserError

EN = languages.load_language("en")
SW = languages.load_language("sw")


def pairs(table: PairTable) -> list[tuple[str, str]]:
    return [(table.image_ids[i], caption) for i, caption in zip(table.image_of, table.captions, strict=True)]


def load(root: Path, split: str = "train", lang: languages.Lang = EN, **options: Any) -> list[tuple[str, str]]:
    """Load with every image in the training split unless the options say otherwise."""
    shares = {"dev_share": 0, "test_share": 0}
    return pairs(folder.load(folder.Config(root=root, **(shares | options)), lang, split))


TWO = [("a.jpg", "a dog"), ("b.jpg", "a cat")]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_separator_byte_order_mark_and_line_ends_are_found_out(tmp_path, separator, mark, end, last):
    lines = [f"image{separator}caption", f"a.jpg{separator}a dog", f"b.jpg{separator}a cat"]
    (tmp_path / "any.csv").write_bytes((mark + end.join(lines) + (end if last else "")).encode())
    assert load(tmp_path) == TWO


@pytest.mark.parametrize(("in_table", "on_disk"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_in_file_names_match_in_either_unicode_form(tmp_path, in_table, on_disk):
    named, stored = (unicodedata.normalize(form, "ñandú.png") for form in (in_table, on_disk))
    Image.new("RGB", (4, 4)).save(tmp_path / stored)
    (tmp_path / "captions.csv").write_text(f"image,caption\n{named},a bird\n", encoding="utf-8")
    table = folder.load(folder.Config(root=tmp_path, dev_share=0, test_share=0), EN, "train")
    assert table.images[0].open().size == (4, 4)
    assert table.image_ids == (unicodedata.normalize("NFC", named),)


def test_each_format_gives_the_same_pairs(tmp_path):
    rows = [{"image": image, "caption": caption} for image, caption in TWO]
    frame = pd.DataFrame(rows)
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    frame.to_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    for ending in ("csv", "tsv", "parquet", "jsonl"):
        assert load(tmp_path, captions=f"a.{ending}") == TWO


captions = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).map(str.strip).filter(bool)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(captions, min_size=1, max_size=6), st.sampled_from([",", ";", "\t"]))
def test_what_a_csv_writer_writes_is_read_back(tmp_path, texts, separator):
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=separator)
    writer.writerow(["image", "caption"])
    writer.writerows([f"{i}.jpg", text] for i, text in enumerate(texts))
    (tmp_path / "a.csv").write_bytes(out.getvalue().encode())
    assert load(tmp_path) == [(f"{i}.jpg", text) for i, text in enumerate(texts)]


def test_a_quoted_caption_may_hold_separators_quotes_and_line_ends(tmp_path):
    (tmp_path / "a.csv").write_text('image,caption\na.jpg,"a dog, ""Rex"",\nrunning"\n')
    assert load(tmp_path) == [("a.jpg", 'a dog, "Rex",\nrunning')]


def test_with_tabs_a_quote_inside_a_caption_is_a_letter_like_any_other(tmp_path):
    (tmp_path / "a.tsv").write_text(
        'image\tcaption\na.jpg\t"Stop" says the sign\nb.jpg\ta 5" disk\nc.jpg\t"a ""dog"""\n'
    )
    assert load(tmp_path) == [("a.jpg", '"Stop" says the sign'), ("b.jpg", 'a 5" disk'), ("c.jpg", 'a "dog"')]


def test_words_that_pandas_would_take_for_nothing_are_captions(tmp_path):
    (tmp_path / "a.csv").write_text("image,caption\na.jpg,NA\nb.jpg,null\nc.jpg,123\n")
    assert [caption for _, caption in load(tmp_path)] == ["NA", "null", "123"]


def test_several_captions_by_rows_lists_or_columns(tmp_path):
    expected = [("a.jpg", "x"), ("a.jpg", "y"), ("b.jpg", "z")]
    (tmp_path / "rows.csv").write_text("image,caption\na.jpg,x\na.jpg,y\nb.jpg,z\n")
    (tmp_path / "lists.jsonl").write_text(
        '{"image":"a.jpg","captions":["x","y"]}\n\n{"image":"b.jpg","captions":["z"]}\n'
    )
    pd.DataFrame({"image": ["a.jpg", "b.jpg"], "captions": [["x", "y"], ["z"]]}).to_parquet(tmp_path / "lists.parquet")
    (tmp_path / "columns.csv").write_text("image,caption_1,caption_2\na.jpg,x,y\nb.jpg,z,\n")
    for name in ("rows.csv", "lists.jsonl", "lists.parquet", "columns.csv"):
        assert load(tmp_path, captions=name) == expected
    assert load(tmp_path, captions="columns.csv", caption_column=["caption_2"]) == [("a.jpg", "y"), ("b.jpg", "")]


def test_a_blank_caption_is_kept_for_the_data_check_to_count(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"image":"a.jpg","caption":""}\n{"image":"b.jpg","caption":null}\n{"image":"c.jpg","caption":"x"}'
    )
    assert load(tmp_path) == [("a.jpg", ""), ("b.jpg", ""), ("c.jpg", "x")]


def test_a_missing_column_is_an_error_that_lists_those_present(tmp_path):
    (tmp_path / "a.csv").write_text("picture,words,lang\na.jpg,a dog,en\n")
    with pytest.raises(
        UserError, match=r"no column called image or .*columns are picture, words, lang.*source\.image_column"
    ):
        load(tmp_path)
    with pytest.raises(
        UserError, match=r'no column "word" \(caption_column\): did you mean "words"\?.*lang, picture, words'
    ):
        load(tmp_path, image_column="picture", caption_column="word")
    assert load(tmp_path, image_column="picture", caption_column="words") == [("a.jpg", "a dog")]


def test_usual_names_are_known_in_any_case(tmp_path):
    (tmp_path / "a.csv").write_text("File_Name,Text\na.jpg,a dog\n")
    assert load(tmp_path) == [("a.jpg", "a dog")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,caption\na.jpg,a dog, running\n", r"line 2 has 3 fields, the header has 2 .*double quotes"),
        ("image,caption\na.jpg,x\nb.jpg\n", r"line 3 has 1 fields"),
        ('image,caption\na.jpg,"x\nb.jpg,y\n', r"line 3: unexpected end of data"),
        ('image,caption\na.jpg,"x"y\n', r"line 2: .*write a double quote inside"),
        ("image,image\na,b\n", r"duplicate columns"),
        ("image,caption\n", r"has no rows"),
        ("", r"is empty"),
        ("\n\n", r"is empty"),
        ("image,caption\n,a dog\n", r'line 2: "image" must name an image file'),
        ("just text\n", r"no column called image|has no rows"),
        ("image\tcaption\na.jpg\tx\ty\n", r"line 2 has 3 fields.*tab"),
    ],
)
def test_a_malformed_table_is_refused_and_the_line_named(tmp_path, content, message):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"image": "a.jpg"', r"line 1 is not JSON"),
        ('{"image": "a.jpg", "caption": "x"}\n["a"]', r"line 2 is not a JSON object"),
        (
            '{"image": "a.jpg", "caption": "x"}\n{"image": "b.jpg", "text": "y"}',
            r'line 2 has no "caption" \(image, text\)',
        ),
        ('{"image": 7, "caption": "x"}', r'line 1: "image" must name an image file, not 7'),
        ('{"image": "a.jpg", "caption": 7}', r"line 1: a caption must be a string or a list of strings, not 7"),
        ('{"image": "a.jpg", "caption": ["x", null]}', r"a list of strings, not None"),
    ],
)
def test_malformed_json_lines_are_refused_and_the_line_named(tmp_path, content, message):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("größe".encode("latin-1"), "byte 0xf6"),
        ("image,caption".encode("utf-16"), "UTF-16"),
        (b"image,caption\na,\xff", "byte 0xff"),
    ],
)
def test_another_encoding_is_named(tmp_path, content, message):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(UserError, match=rf"is not UTF-8 \(.*{message}\): save it as UTF-8"):
        load(tmp_path)


def test_a_broken_parquet_file_is_refused(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match=r"cannot read .*a\.parquet"):
        load(tmp_path)


def test_wrong_paths_are_refused_with_what_is_there(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match=r'no folder .*photo .*did you mean "photos"'):
        load(tmp_path / "photo")
    with pytest.raises(UserError, match=r"no folder .* either"):
        load(tmp_path / "far" / "away")
    with pytest.raises(UserError, match=r"has no captions file: put a \.csv"):
        load(tmp_path)
    (tmp_path / "a.csv").write_text("image,caption\na.jpg,x\n")
    assert load(tmp_path / "a.csv") == [("a.jpg", "x")]
    with pytest.raises(UserError, match=r'no captions file: .*b\.csv is not there: did you mean "a\.csv"'):
        load(tmp_path, captions="b.csv")
    with pytest.raises(UserError, match=r"no folder .*pics \(source\.images\)"):
        load(tmp_path, images="pics")
    (tmp_path / "c.csv").write_text("image,caption\na.jpg,y\n")
    with pytest.raises(
        UserError, match=r"several files that may hold the captions \(a\.csv, c\.csv\).*source\.captions"
    ):
        load(tmp_path)
    (tmp_path / "captions.csv").write_text("image,caption\na.jpg,z\n")
    assert load(tmp_path) == [("a.jpg", "z")]


def test_a_folder_made_for_another_source_is_recognised(tmp_path):
    for name in ("captions", "splits"):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=r"looks like Flickr8k: --data flickr8k --set source\.root="):
        load(tmp_path)
    (tmp_path / "state.json").touch()
    with pytest.raises(UserError, match=r"--data hub --set source\.dataset="):
        load(tmp_path)


def test_images_are_found_beside_the_captions_or_in_images_or_where_said(tmp_path):
    (tmp_path / "a.csv").write_text("image,caption\none/a.png,x\n")
    for base, options in (("pics", {"images": "pics"}), ("images", {}), (".", {})):
        (tmp_path / base / "one").mkdir(parents=True)
        Image.new("RGB", (len(base), 1)).save(tmp_path / base / "one" / "a.png")
        table = folder.load(folder.Config(root=tmp_path, dev_share=0, test_share=0, **options), EN, "train")
        assert table.images[0].open().width == len(base)


def test_one_image_spelled_in_several_ways_is_one_image(tmp_path):
    (tmp_path / "a.csv").write_text("image,caption\nx/a.jpg,1\n./x/a.jpg,2\nx\\a.jpg,3\n x/a.jpg ,4\n")
    assert load(tmp_path) == [("x/a.jpg", n) for n in "1234"]


def test_only_rows_of_the_language_are_read(tmp_path):
    (tmp_path / "a.csv").write_text("image,caption,lang\na.jpg,a dog,en\na.jpg,mbwa,SW\nb.jpg,paka,swh_Latn\n")
    assert load(tmp_path, lang=SW) == [("a.jpg", "mbwa"), ("b.jpg", "paka")]
    with pytest.raises(UserError, match=r'no row with lang "de": it has en \(1\), SW \(1\), swh_Latn \(1\)'):
        load(tmp_path, lang=languages.load_language("de"))


def test_a_language_may_have_a_column_or_a_file_of_its_own(tmp_path):
    (tmp_path / "all.csv").write_text("image,en,sw\na.jpg,a dog,mbwa\n")
    assert load(tmp_path, lang=SW, captions="all.csv", caption_column="{lang}") == [("a.jpg", "mbwa")]
    (tmp_path / "usual.csv").write_text("image,caption,caption_sw\na.jpg,a dog,mbwa\n")
    assert load(tmp_path, lang=SW, captions="usual.csv") == [("a.jpg", "mbwa")]
    assert load(tmp_path, captions="usual.csv") == [("a.jpg", "a dog")]
    (tmp_path / "sw.csv").write_text("image,caption\na.jpg,mbwa mmoja\n")
    assert load(tmp_path, lang=SW, captions="{lang}.csv") == [("a.jpg", "mbwa mmoja")]


def test_the_split_column_decides_where_there_is_one(tmp_path):
    (tmp_path / "a.csv").write_text(
        "image,caption,split\na.jpg,1,train\nb.jpg,2,val\nc.jpg,3,TEST\nd.jpg,4,Validation\n"
    )
    assert load(tmp_path, "train") == [("a.jpg", "1")]
    assert load(tmp_path, "dev") == [("b.jpg", "2"), ("d.jpg", "4")]
    assert load(tmp_path, "test") == [("c.jpg", "3")]


def test_a_split_that_is_not_there_or_not_known_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("image,caption,split\na.jpg,1,train\nb.jpg,2,train\n")
    with pytest.raises(UserError, match=r'no row with split "dev": it has train \(2\)'):
        load(tmp_path, "dev")
    (tmp_path / "a.csv").write_text("image,caption,split\na.jpg,1,train\nb.jpg,2,trian\n")
    with pytest.raises(UserError, match=r'line 3: "trian" is not a split \(did you mean "train"'):
        load(tmp_path, "train")


def write_many(root: Path, count: int, each: int = 1) -> None:
    rows = "".join(f"{i}.jpg,{i} {k}\n" for k in range(each) for i in range(count))
    (root / "a.csv").write_text("image,caption\n" + rows)


def test_hashed_splits_part_the_images_and_keep_each_ones_captions_together(tmp_path):
    write_many(tmp_path, 500, each=2)
    splits = {s: load(tmp_path, s, dev_share=0.2, test_share=0.1) for s in ("train", "dev", "test")}
    images = {s: {image for image, _ in found} for s, found in splits.items()}
    assert sum(len(found) for found in splits.values()) == 1000
    assert sum(len(found) for found in images.values()) == 500
    assert len(images["dev"]) == pytest.approx(100, abs=35)
    assert len(images["test"]) == pytest.approx(50, abs=27)


def test_adding_images_moves_none_to_another_split_and_a_seed_does(tmp_path):
    write_many(tmp_path, 100)
    before = load(tmp_path, "test", test_share=0.3)
    write_many(tmp_path, 200)
    after = load(tmp_path, "test", test_share=0.3)
    assert set(before) <= set(after)
    assert set(before) != set(load(tmp_path, "test", test_share=0.3, split_seed=1))


def test_a_split_that_comes_out_empty_says_how_to_fill_it(tmp_path):
    write_many(tmp_path, 3)
    with pytest.raises(
        UserError, match=r"none of the 3 images .* is assigned to the dev split .*dev_share = 0.*increase that share"
    ):
        load(tmp_path, "dev")


def test_an_id_column_names_the_images(tmp_path):
    (tmp_path / "a.csv").write_text("image,caption,id\na.jpg,x,7\n")
    assert load(tmp_path, id_column="id") == [("7", "x")]


def test_an_unknown_option_is_refused(tmp_path):
    with pytest.raises(ValidationError):
        folder.Config(root=tmp_path, sepparator=",")


def test_a_root_that_is_no_folder_of_data_is_one_line_at_once(tmp_path, run):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "many").mkdir()
    for i in range(3000):
        (tmp_path / "many" / f"{i}.txt").touch()
        (tmp_path / "many" / f"{i}.csv").touch()
    for root, told in (
        ("", "--data is empty"),
        (tmp_path / "pipe", "is not a folder"),
        ("/dev/null", "is not a folder"),
        (tmp_path / "many", "several files that may hold the captions"),
        ("/", "no captions file"),
        ("/proc/self/mem", "is not UTF-8|cannot read"),
    ):
        code, _, err = run("data", "check", "--data", root, "--lang", "en")
        assert (code, err.strip().count("\n")) == (2, 0)
        assert re.search(told, err), err
        assert len(err) < 1000


def test_a_folder_that_may_not_be_read_is_one_line(tmp_path, monkeypatch):
    def iterdir(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(UserError, match=f"cannot read the folder {tmp_path}: Permission denied"):
        load(tmp_path)


def test_a_workbook_is_read_like_a_table(tmp_path):
    book = openpyxl.Workbook()
    for row in (["image", "caption", "id", None], ["a.jpg", "a dog", 1.0, None], [None] * 4, ["b.jpg", "a cat", 2.5]):
        book.active.append(row)
    book.save(tmp_path / "captions.xlsx")
    assert load(tmp_path) == TWO
    assert load(tmp_path, id_column="id") == [("1", "a dog"), ("2.5", "a cat")]
    book.active["B2"] = " "
    book.save(tmp_path / "captions.xlsx")
    with pytest.raises(UserError, match=r'captions.xlsx, row 2: "caption" must name an image'):
        load(tmp_path, image_column="caption")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"image,caption\n"])
def test_a_file_that_is_no_workbook_is_one_line(content, tmp_path):
    (tmp_path / "captions.xlsx").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read .*captions\.xlsx: "):
        load(tmp_path)


def test_a_workbook_that_fills_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sheet, "_LARGEST_WORKBOOK", 100)
    openpyxl.Workbook().save(tmp_path / "captions.xlsx")
    with pytest.raises(UserError, match="GiB of content: save it as CSV"):
        load(tmp_path)
