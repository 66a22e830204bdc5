from __future__ import annotations

import re
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from polyalign.config import language as languages
from polyalign.config.resolve import resolve
from polyalign.config.schema import Data
from polyalign.data import check as data_check
from polyalign.data.check import DataReport, Finding
from polyalign.data.pairs import FileImage, PairTable
from polyalign.utils.errors import UserError


def table(captions: list[tuple[int, str]], folder: Path = Path("nowhere")) -> PairTable:
    images = 1 + max((i for i, _ in captions), default=-1)
    return PairTable(
        name="photos",
        lang="en",
        origin="human",
        image_ids=tuple(f"{i}.png" for i in range(images)),
        images=tuple(FileImage(folder / f"{i}.png") for i in range(images)),
        captions=tuple(caption for _, caption in captions),
        image_of=np.array([i for i, _ in captions], dtype=np.int64),
    )


def check(captions: list[tuple[int, str]], code: str = "en") -> DataReport:
    return data_check.check(table(captions), languages.load_language(code))


class Words:
    """A tokenizer with one subword per letter, q unknown, and two special tokens."""

    unk_token_id = 0

    def num_special_tokens_to_add(self) -> int:
        return 2

    def __call__(self, texts: list[str], *, add_special_tokens: bool, verbose: bool) -> dict[str, list[list[int]]]:
        assert not add_special_tokens
        return {"input_ids": [[0 if c == "q" else ord(c) for c in text if not c.isspace()] for text in texts]}


def test_counts_images_and_captions():
    report = check([(0, "a"), (0, "b"), (1, "c")])
    assert (report.images.images, report.captions, report.captions_per_image) == (2, 3, (1, 1.5, 2))


def test_missing_and_corrupt_images_are_told_apart(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "0.png")
    (tmp_path / "1.png").write_bytes(b"\x89PNG broken")
    report = data_check.check(table([(0, "a"), (1, "b"), (2, "c")], tmp_path), languages.load_language("en"))
    assert [bad.image_id for bad in report.images.corrupt] == ["1.png"]
    assert [bad.image_id for bad in report.images.missing] == ["2.png"]


def test_empty_repeated_and_shared_captions():
    report = check([(0, "A dog."), (0, " a  dog. "), (1, "a dog."), (1, "a cat"), (2, ""), (2, " ")])
    assert report.empty == Finding(count=2, examples=("2.png: ", "2.png:  "))
    assert report.repeated == Finding(count=1, examples=("0.png:  a  dog. ",))
    assert report.shared.count == 3


@pytest.mark.parametrize(
    ("script", "good", "bad"),
    [
        ("Latn", "Mbwa mwekundu ñ ọ́", "собака бежит"),
        ("Cyrl", "собака бежит", "dog"),
        ("Ethi", "ውሻ ይሮጣል", "wisha"),
        ("Deva", "एक कुत्ता", "ek kutta"),
        ("Arab", "كلب يجري", "kalb"),
        ("Hans", "一个女人", "いぬがはしる"),
        ("Jpan", "犬が走るコーヒー", "개가 달린다"),
        ("Kore", "개가 달린다", "犬が走っているところ"),
        ("Thai", "สุนัขวิ่ง", "sunak"),
        ("Olck", "ᱥᱮᱛᱟ", "seta"),
        ("Tglg", "ᜀᜐᜓ", "aso"),
    ],
)
def test_another_script_is_noticed(script, good, bad):
    lang = languages.load_language("en").model_copy(update={"script": script})
    mostly = f"{good} {good} iPad"
    report = data_check.check(table([(0, good), (1, bad), (2, "123 !"), (3, mostly), (4, "")]), lang)
    assert [example.split(".")[0] for example in report.other_script.examples] == ["1", "2"]
    assert report.other_script.count == 2


def test_a_script_that_is_not_known_is_not_checked():
    lang = languages.load_language("en").model_copy(update={"script": "Zzzz"})
    report = data_check.check(table([(0, "a")]), lang)
    assert report.other_script is None
    assert "not checked" in shown(report)


def test_tokens_are_counted_without_cutting():
    report = data_check.check(
        table([(0, "ab q"), (1, "abcdef"), (2, "qq abc")]), languages.load_language("en"), Words(), 6
    )
    tokens = report.tokens
    assert tokens.too_long == Finding(count=2, examples=("1.png: abcdef", "2.png: qq abc"))
    assert tokens.longest == 8
    assert tokens.unknown_rate == pytest.approx(3 / 14)
    assert tokens.subwords_per_word == pytest.approx(14 / 5)
    assert tokens.subwords_per_character == 1.0


def test_a_script_without_spaces_has_no_words():
    lang = languages.load_language("en").model_copy(update={"script": "Hans"})
    assert data_check.check(table([(0, "一个女人")]), lang, Words()).tokens.subwords_per_word is None


def test_towers_are_ranked_by_subwords_and_many_unknown_tokens_come_last():
    def tokenizer(*pieces: str) -> PreTrainedTokenizerFast:
        vocab = {piece: index for index, piece in enumerate(("[UNK]", *pieces))}
        inner = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", continuing_subword_prefix="##"))
        inner.pre_tokenizer = pre_tokenizers.Whitespace()
        return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]")

    whole = tokenizer("mbwa", "mweusi")
    split = tokenizer("m", "##b", "##w", "##a", "##e", "##u", "##s", "##i")
    ignorant = tokenizer("mbwa")
    lang = languages.load_language("sw")
    fits = data_check.rank_towers(
        table([(0, "mbwa mweusi")]), lang, {("c", "C"): ignorant, ("b", "B"): split, ("a", "A"): whole}
    )
    assert [(fit.recipe, fit.subwords_per_word, fit.unknown_rate) for fit in fits] == [
        ("a", 1.0, 0.0),
        ("b", 5.0, 0.0),
        ("c", 1.0, 0.5),
    ]
    assert "recommended: --recipe a" in str(data_check.render_towers(fits, lang).caption)
    assert data_check.render_towers([], lang).caption is None


def test_an_empty_table_is_no_crash():
    report = data_check.check(table([]), languages.load_language("en"), Words())
    assert (report.captions, report.images.images) == (0, 0)
    assert "0" in shown(report)


def test_the_report_goes_through_json():
    report = data_check.check(table([(0, "ab q"), (0, "犬")]), languages.load_language("en"), Words())
    assert DataReport.model_validate_json(report.model_dump_json()) == report


def test_progress_is_told(news):
    data_check.check(
        table([(0, "a")]),
        languages.load_language("en"),
        Words(),
        6,
    )
    assert set(news) == {("checking images", 1, 1), ("tokenizing photos", 1, 1)}


def shown(report: DataReport) -> str:
    out = StringIO()
    Console(file=out, width=100).print(data_check.render(report))
    return out.getvalue()


def test_the_table_shows_counts_shares_and_examples_as_they_are():
    report = data_check.check(
        table([(0, "[bold]q"), (1, ""), (2, "x" * 500), (3, "собака")]), languages.load_language("en"), Words(), 6
    )
    text = shown(report)
    assert re.search(r"empty captions .* 1 \(25\.0%\)", text)
    assert "[bold]q" in text
    assert "x" * 40 in text
    assert max(map(len, text.splitlines())) <= 100
    assert re.search(r"captions not in Latn script .* 1 \(25\.0%\) .* 3\.png: собака", text)
    assert re.search(r"missing images .* 4 .* 0\.png", text)


def test_a_recipes_three_splits_are_checked():
    from polyalign.config import resolve as recipes

    overrides = recipes.parse_set([f"source.{split}_images=3" for split in ("train", "dev", "test")])
    reports, errors = data_check.check_recipe(recipes.resolve("starter", "sw", "projection", overrides), Words())
    assert [report.name for report in reports] == ["starter-train", "starter-dev", "starter-test"]
    assert not errors
    assert all(report.tokens and not report.images.bad and not report.other_script.count for report in reports)


def test_a_source_without_all_three_splits_is_checked_as_far_as_it_goes(tmp_path):
    from polyalign.config import resolve as recipes

    (tmp_path / "filenames.txt").write_text("1.jpg\n")
    (tmp_path / "swh_Latn.txt").write_text("mbwa\n")
    overrides = {"source": {"name": "flickr30k-200", "root": str(tmp_path)}}
    (report,), _ = data_check.check_recipe(recipes.resolve("starter", "sw", "projection", overrides), Words())
    assert (report.name, report.captions, len(report.images.missing)) == ("flickr30k-200-test", 1, 1)


def test_an_empty_split_is_reported_beside_the_others(tmp_path):
    from polyalign.config import resolve as recipes

    (tmp_path / "captions.csv").write_text("image,caption,split\na.png,mbwa,train\nb.png,paka,train\n")
    overrides = {"source": {"name": "folder", "root": str(tmp_path)}}
    recipe = recipes.resolve("starter", "sw", "projection", overrides)
    (report,), errors = data_check.check_recipe(recipe, Words())
    assert (report.captions, len(report.images.missing)) == (2, 2)
    told = list(map(str, errors))
    assert ['no row with split "dev"' in told[0], 'no row with split "test"' in told[1]] == [True, True]
    assert "2 missing" in told[2]
    (tmp_path / "captions.csv").write_text("image,caption\na.png\n")
    with pytest.raises(UserError, match="line 2 has 1 fields"):
        data_check.check_recipe(recipe, Words())


def test_looping_captions_lookalikes_and_names_without_their_ending(tmp_path):
    for name in ("1.png", "2.png", "3.png"):
        Image.new("RGB", (8, 8), "red" if name < "3" else "blue").save(tmp_path / name)
    images = [FileImage(tmp_path / name) for name in ("1.png", "2.png", "3")]
    loop = "picha ya ya ya ya ya ya"
    rows = [("1", "mbwa", images[0]), ("2", loop, images[1]), ("3", "ya ya ya", images[2])]
    report = data_check.check(PairTable.from_pairs("t", "sw", "human", rows), languages.load_language("sw"))
    assert report.looping == Finding(count=1, examples=(f"2: {loop}",))
    assert report.lookalike == Finding(count=1, examples=("2 and 1",))
    assert report.unnamed == "3 (there is 3.png)"
    assert data_check.verdict([report]) == (False, "image names lack their ending: 3 (there is 3.png)")
    mended = report.model_copy(update={"unnamed": None})
    usable, sentence = data_check.verdict([mended])
    assert usable
    assert "1 missing or corrupt images, 1 images that look like another, 1 captions of one repeated word" in sentence
    images = mended.images.model_copy(update={"images": 1})
    assert not data_check.verdict([mended.model_copy(update={"images": images})])[0]


def test_what_training_would_refuse_is_an_error_of_the_check(tmp_path):
    noise = np.random.default_rng(0).integers(256, size=(30, 16, 16, 3), dtype=np.uint8)
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"no image")
    splits = ["train"] * 20 + ["dev"] * 5 + ["test"] * 5
    rows = [f"{number}.png,picha {number},{split}" for number, split in enumerate(splits)]
    (tmp_path / "captions.csv").write_text(
        "\n".join(["image,caption,split", *rows, "0.png,picha,test"]), encoding="utf-8"
    )
    recipe = resolve("starter", "sw", "projection", {"source": {"name": "folder", "root": str(tmp_path)}})
    _, errors = data_check.check_recipe(recipe.model_copy(update={"data": Data()}), Words())
    told = " ".join(map(str, errors))
    assert "more than data.max_corrupt = 0.01 allows" in told
    assert "leakage: " in told
    assert len(errors) == 2
