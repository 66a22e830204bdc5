"""The formats of the benchmarks one by one, with their traps, on small files of the published form."""

from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyalign.config import language as languages
from polyalign.config import plugins
from polyalign.data.pairs import PairTable
from polyalign.data.readers.benchmark import join_words
from polyalign.utils.errors import UserError


def load(name: str, root: Path, code: str, split: str = "test", **options: Any) -> PairTable:
    module = plugins.load_plugin("sources", name)
    return module.load(module.Config(root=root, **options), languages.load_language(code), split)


def pairs(table: PairTable) -> list[tuple[str, str]]:
    return [(table.image_ids[i], caption) for i, caption in zip(table.image_of, table.captions, strict=True)]


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes({".gz": gzip.compress, ".bz2": bz2.compress}.get(path.suffix, bytes)(content.encode()))


# --- Flickr30k-200 and XTD200


@pytest.mark.parametrize(
    ("name", "names", "english"),
    [("flickr30k-200", "filenames.txt", "eng_captions.txt"), ("xtd200", "test_image_names.txt", "eng_Latn.txt")],
)
def test_flores_files_are_found_by_the_languages_flores_code_and_are_machine_made(tmp_path, name, names, english):
    write(tmp_path / names, "1.jpg\n2.jpg\n")
    write(tmp_path / "swh_Latn.txt", "moja\nmbili\n")
    write(tmp_path / english, "one\ntwo\n")
    table = load(name, tmp_path, "sw")
    assert (pairs(table), table.origin) == ([("1.jpg", "moja"), ("2.jpg", "mbili")], "machine")
    assert load(name, tmp_path, "en").origin == "human"
    module = plugins.load_plugin("sources", name)
    assert module.languages(module.Config(root=tmp_path)) == ["en", "sw"]
    with pytest.raises(UserError, match=r"no captions in am \(.*amh_Ethi\.txt\): .*swh_Latn"):
        load(name, tmp_path, "am")
    with pytest.raises(UserError, match="there is no folder"):
        load(name, tmp_path / "none", "sw")


def test_a_language_without_a_flores_code_is_told_so(tmp_path):
    write(tmp_path / "filenames.txt", "1.jpg\n")
    module = plugins.load_plugin("sources", "flickr30k-200")
    nameless = languages.load_language("sw").model_copy(update={"flores": None})
    with pytest.raises(UserError, match=r'langs/sw\.toml has no "flores"'):
        module.load(module.Config(root=tmp_path), nameless, "test")


# --- Multi30k


@pytest.fixture(params=["task1/raw", "task1"])
def multi30k(request, tmp_path):
    splits = tmp_path / "task1" / "image_splits" if request.param == "task1/raw" else tmp_path / "image_splits"
    write(splits / "test_2016_flickr.txt", "1.jpg\n2.jpg\n")
    write(
        splits / "test_2017_mscoco.txt",
        "COCO_train2014_000000117071.jpg#367178\nCOCO_val2014_000000398076.jpg#657409\n",
    )
    write(splits / "val.txt", "3.jpg\n")
    task = tmp_path / request.param
    write(task / "test_2016_flickr.de.gz", "eins\nzwei\u2028!\n")
    write(task / "test_2016_flickr.en.gz", "one\ntwo\n")
    write(task / "test_2017_mscoco.de.gz", "a\nb\n")
    write(task / "val.de.gz", "drei\n")
    for n in range(1, 6):
        write(tmp_path / request.param.replace("1", "2") / f"test_2016.{n}.de.gz", f"{n} eins\n{n} zwei\n")
    return tmp_path


def test_multi30k_lines_belong_to_the_split_list(multi30k):
    assert pairs(load("multi30k", multi30k, "de")) == [("1.jpg", "eins"), ("2.jpg", "zwei\u2028!")]
    assert pairs(load("multi30k", multi30k, "de", "dev")) == [("3.jpg", "drei")]


def test_multi30k_mscoco_names_lose_their_caption_number(multi30k):
    table = load("multi30k", multi30k, "de", test="2017-mscoco")
    assert table.image_ids == ("COCO_train2014_000000117071.jpg", "COCO_val2014_000000398076.jpg")
    assert table.name == "multi30k-task1-test_2017_mscoco"


def test_multi30k_task_2_has_five_captions_an_image(multi30k):
    table = load("multi30k", multi30k, "de", task=2)
    assert len(table) == 10
    assert [caption for image, caption in pairs(table) if image == "2.jpg"] == [f"{n} zwei" for n in range(1, 6)]
    with pytest.raises(UserError, match="no task 2 captions for test_2017_mscoco"):
        load("multi30k", multi30k, "de", task=2, test="2017-mscoco")


def test_multi30k_says_which_languages_a_test_set_has(multi30k):
    with pytest.raises(UserError, match=r'no test_2016_flickr captions in "cs" .*known: de, en'):
        load("multi30k", multi30k, "cs")
    module = plugins.load_plugin("sources", "multi30k")
    assert module.languages(module.Config(root=multi30k)) == ["de", "en"]
    with pytest.raises(UserError, match="no list of the test_2018_flickr images"):
        load("multi30k", multi30k, "de", test="2018-flickr")
    for path in multi30k.glob("task1/**/val.*.gz"):
        path.unlink()
    with pytest.raises(UserError, match=r"there is no val\.<language>\.gz in .*task1 or .*raw"):
        load("multi30k", multi30k, "de", "dev")


def test_a_broken_gzip_file_is_named(multi30k):
    path = next(multi30k.glob("task1/**/test_2016_flickr.de.gz"))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"cannot read .*test_2016_flickr\.de\.gz"):
        load("multi30k", multi30k, "de")
    path.write_bytes(b"no gzip")
    with pytest.raises(UserError, match=r"cannot read .*test_2016_flickr\.de\.gz"):
        load("multi30k", multi30k, "de")


# --- xFlickr&CO

XFLICKR = [
    {
        "sentences": ["耳ピアスをした1男が、3メガネをかけて1２人いる。"],
        "id": "1007129816",
        "img_path": "1007129816.jpg",
    },
    {"sentences": ["2頭のヤギ"], "id": 413120, "img_path": "COCO_val2014_000000413120.jpg"},
]


def jsonl(rows: list[Any]) -> str:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


def test_xflickrco_can_be_taken_in_halves(tmp_path):
    write(tmp_path / "ja" / "test.jsonl", jsonl(XFLICKR))
    assert load("xflickrco", tmp_path, "ja").image_ids == ("1007129816.jpg", "COCO_val2014_000000413120.jpg")
    assert load("xflickrco", tmp_path, "ja", part="coco").captions == ("2頭のヤギ",)
    assert load("xflickrco", tmp_path, "ja", part="flickr").name == "xflickrco-flickr-test"


def test_xflickrco_entity_digits_go_and_numbers_stay(tmp_path):
    write(tmp_path / "ja" / "test.jsonl", jsonl(XFLICKR))
    clean = load("xflickrco", tmp_path, "ja", clean=True)
    assert clean.captions == ("耳ピアスをした男が、メガネをかけて２人いる。", "2頭のヤギ")
    assert clean.name == "xflickrco-test-clean"
    assert load("xflickrco", tmp_path, "ja").captions[0] == XFLICKR[0]["sentences"][0]


def test_xflickrco_trains_on_a_few_shots(tmp_path):
    write(tmp_path / "tr" / "train_5.jsonl", jsonl([{"sentences": ["bir", "iki"], "id": "1", "img_path": "1.jpg"}]))
    assert pairs(load("xflickrco", tmp_path, "tr", "train", shots=5)) == [("1.jpg", "bir"), ("1.jpg", "iki")]
    with pytest.raises(
        UserError, match=r'no file of captions in tr: .*train_100\.jsonl is not there: did you mean "train_5'
    ):
        load("xflickrco", tmp_path, "tr", "train")


@pytest.mark.parametrize(
    "row", [{"sentences": ["x"]}, {"img_path": "1.jpg", "sentences": "x"}, {"img_path": 1, "sentences": []}]
)
def test_xflickrco_of_another_form_is_refused(tmp_path, row):
    write(tmp_path / "tr" / "test.jsonl", jsonl([row]))
    with pytest.raises(UserError, match="line 1 is not of the form"):
        load("xflickrco", tmp_path, "tr")


# --- Crossmodal-3600


def xm_row(key: str, **captions: Any) -> dict[str, Any]:
    return {"image/key": key} | {
        code: {"caption": texts, "caption/tokenized": ["no"]} for code, texts in captions.items()
    }


def test_xm3600_has_all_captions_or_the_first(tmp_path):
    write(
        tmp_path / "captions.jsonl",
        jsonl([xm_row("00aa", sw=["moja", "mbili"], quz=["huk"]), xm_row("00bb", sw=["tatu"], quz=["iskay"])]),
    )
    assert pairs(load("xm3600", tmp_path, "sw")) == [("00aa", "moja"), ("00aa", "mbili"), ("00bb", "tatu")]
    first = load("xm3600", tmp_path, "sw", captions="first")
    assert (first.captions, first.name) == (("moja", "tatu"), "xm3600-first-test")
    assert load("xm3600", tmp_path, "qu").captions == ("huk", "iskay")


def test_xm3600_images_are_named_by_key(tmp_path):
    write(tmp_path / "captions.jsonl", jsonl([xm_row("00aa", sw=["moja"])]))
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match=r"none of the 1 images .*looked for 00aa\.jpg"):
        load("xm3600", tmp_path, "sw", images=tmp_path / "images")
    (tmp_path / "images" / "00aa.jpg").touch()
    assert load("xm3600", tmp_path, "sw", images=tmp_path / "images").images[0].path.name == "00aa.jpg"


@pytest.mark.parametrize(
    "row", [{"image/key": "a"}, {"sw": {"caption": ["x"]}}, xm_row("a", sw="moja"), {"image/key": "a", "sw": ["x"]}]
)
def test_xm3600_of_another_form_is_refused(tmp_path, row):
    write(tmp_path / "captions.jsonl", jsonl([row]))
    with pytest.raises(UserError, match="line 1"):
        load("xm3600", tmp_path, "sw")


# --- Karpathy's files


def karpathy(count: int, split: str, prefix: str = "COCO_val2014_", each: int = 5) -> list[dict[str, Any]]:
    start = {"train": 0, "restval": 100, "val": 200, "test": 1000}[split]
    return [
        {
            "filename": f"{prefix}{start + i:012d}.jpg",
            "filepath": "val2014",
            "split": split,
            "sentences": [{"raw": f"{split} {i} {k}. "} for k in range(each)],
        }
        for i in range(count)
    ]


def test_coco_trains_on_the_rest_of_val_too(tmp_path):
    images = karpathy(2, "train") + karpathy(3, "restval") + karpathy(1, "val") + karpathy(4, "test", each=6)
    write(tmp_path / "dataset_coco.json", json.dumps({"images": images}))
    assert [len(load("coco-karpathy", tmp_path, "en", split).images) for split in ("train", "dev", "test")] == [5, 1, 4]
    test = load("coco-karpathy", tmp_path, "en")
    assert len(test) == 24
    assert test.captions[0] == "test 0 0."
    assert len(load("coco-karpathy", tmp_path, "en", captions="first-5")) == 20


def test_coco_folds_are_thousands_in_the_files_order(tmp_path):
    write(tmp_path / "dataset_coco.json", json.dumps({"images": karpathy(5000, "test", each=1)}))
    folds = [load("coco-karpathy", tmp_path, "en", protocol="1k", fold=fold) for fold in range(5)]
    assert [len(fold.images) for fold in folds] == [1000] * 5
    assert [image_id for fold in folds for image_id in fold.image_ids] == list(
        load("coco-karpathy", tmp_path, "en").image_ids
    )
    assert folds[3].name == "coco-karpathy-test-1k-fold3"
    assert folds[3].fold_of is None
    whole = load("coco-karpathy", tmp_path, "en", protocol="1k")
    assert whole.name == "coco-karpathy-test-1k"
    for number, fold in enumerate(folds):
        assert [one for one, of in zip(whole.image_ids, whole.fold_of, strict=True) if of == number] == list(
            fold.image_ids
        )
    kept = whole.without_images(whole.image_ids[:1500])
    assert np.bincount(kept.fold_of).tolist() == [0, 500, 1000, 1000, 1000]


def test_flickr30k_has_karpathys_splits(tmp_path):
    write(
        tmp_path / "dataset_flickr30k.json",
        json.dumps({"images": karpathy(2, "train", "1") + karpathy(1, "val", "1") + karpathy(1, "test", "1")}),
    )
    assert [len(load("flickr30k", tmp_path, "en", split)) for split in ("train", "dev", "test")] == [10, 5, 5]
    with pytest.raises(UserError, match='flickr30k has no captions in "de"'):
        load("flickr30k", tmp_path, "de")


@pytest.mark.parametrize(
    "content", ['{"images": [{"filename": "a.jpg"}]}', '{"pictures": []}', "[1]", '{"images": []}', "no json"]
)
def test_karpathys_file_of_another_form_is_refused(tmp_path, content):
    write(tmp_path / "dataset_coco.json", content)
    with pytest.raises(UserError, match=r"dataset_coco\.json"):
        load("coco-karpathy", tmp_path, "en")


# --- STAIR


def test_stair_is_joined_to_coco_by_number_and_takes_karpathys_splits(tmp_path):
    for part, number in (("train", 9), ("val", 42)):
        rows = [
            {"image_id": number, "id": k, "caption": f"{part}の文 {k}", "tokenized_caption": "no"} for k in range(2)
        ]
        write(tmp_path / f"stair_captions_v1.2_{part}.json", json.dumps({"annotations": rows}))
    write(
        tmp_path / "k.json",
        json.dumps({"images": [{"filename": "COCO_val2014_000000000042.jpg", "split": "test", "sentences": []}]}),
    )
    assert load("stair", tmp_path, "ja", "train").image_ids == ("COCO_train2014_000000000009.jpg",)
    assert load("stair", tmp_path, "ja", "dev").captions == ("valの文 0", "valの文 1")
    assert load("stair", tmp_path, "ja", "test", karpathy=tmp_path / "k.json").image_ids == (
        "COCO_val2014_000000000042.jpg",
    )
    with pytest.raises(UserError, match=r"no test split of its own.*source\.karpathy"):
        load("stair", tmp_path, "ja", "test")
    with pytest.raises(UserError, match="no images with split train or restval"):
        load("stair", tmp_path, "ja", "train", karpathy=tmp_path / "k.json")
    write(tmp_path / "stair_captions_v1.2_val.json", json.dumps({"annotations": [{"caption": "x"}]}))
    with pytest.raises(UserError, match="is not of the form annotations"):
        load("stair", tmp_path, "ja", "dev")


# --- COCO-CN


def test_coco_cn_release_has_written_captions_and_translations(tmp_path):
    release = tmp_path / "coco-cn-version1805v1.1"
    write(release / "coco-cn_test.txt", "COCO_val2014_000000000042\n")
    write(release / "coco-cn_train.txt", "COCO_train2014_000000000009\n")
    write(
        release / "imageid.human-written-caption.txt",
        "COCO_train2014_000000000009#0\t甲\nCOCO_val2014_000000000042#0\t乙\n",
    )
    write(release / "imageid.manually-translated-caption.txt", "COCO_val2014_000000000042#0\t丙\n")
    assert pairs(load("coco-cn", tmp_path, "zh", "train")) == [("COCO_train2014_000000000009.jpg", "甲")]
    assert load("coco-cn", tmp_path, "zh").captions == ("乙",)
    assert load("coco-cn", tmp_path, "zh", captions="all").captions == ("乙", "丙")
    assert load("coco-cn", release, "zh").captions == ("乙",)
    write(release / "imageid.human-written-caption.txt", "COCO_val2014_000000000042#0 乙\n")
    with pytest.raises(UserError, match="line 1 is not"):
        load("coco-cn", tmp_path, "zh")


def test_coco_cn_json_is_joined_to_sentences_again(tmp_path):
    images = [{"file_name": "COCO_val2014_000000412975.jpg", "id": 8}]
    annotations = [
        {"source": "cn", "image_id": 8, "id": 5, "caption": "一个 人 用 iPad 2 拍照"},
        {"source": "zhm", "image_id": 8, "id": 1, "caption": "两 个 人"},
    ]
    write(tmp_path / "captions.json", json.dumps({"images": images, "annotations": annotations}))
    assert pairs(load("coco-cn", tmp_path, "zh")) == [("COCO_val2014_000000412975.jpg", "一个人用iPad 2拍照")]
    assert load("coco-cn", tmp_path, "zh", captions="all").captions[1] == "两个人"
    with pytest.raises(UserError, match=r"no list of images: .*coco-cn_train\.txt"):
        load("coco-cn", tmp_path, "zh", "train")
    write(tmp_path / "captions.json", json.dumps({"images": images, "annotations": [{"caption": "x"}]}))
    with pytest.raises(UserError, match="is not of the form images"):
        load("coco-cn", tmp_path, "zh")


@given(st.lists(st.sampled_from(["一", "人群", "iPad", "2", "，"]), min_size=1))
def test_joining_segments_changes_nothing_but_spaces(words):
    joined = join_words(" ".join(words))
    assert joined.replace(" ", "") == "".join(words)
    assert join_words(joined) == joined


# --- COCO-35L


def coco35l_row(image: str, code: str, source: str, target: str) -> dict[str, str]:
    return {
        "image_id": image,
        "src_lang": "en",
        "trg_lang": code,
        "caption_tokenized": source,
        "translation_tokenized": target,
        "backtranslation_tokenized": "no",
    }


@pytest.mark.parametrize("ending", ["", ".bz2", ".gz"])
def test_coco35l_reads_one_language_and_english_from_the_pivot(tmp_path, ending):
    rows = [
        coco35l_row("57870_0", "de", "A table .", "Ein Tisch ."),
        coco35l_row("57870_0", "sw", "A table .", "Meza ."),
        coco35l_row("57870_1", "de", "A big table .", "Ein großer Tisch ."),
        coco35l_row("57870_1", "sw", "A big table .", "Meza kubwa ."),
        coco35l_row("57870_0", "zh", "A table .", "一张 桌子 。"),
    ]
    write(tmp_path / f"coco_mt_train.jsonl{ending}", jsonl(rows))
    swahili = load("coco35l", tmp_path, "sw", "train")
    assert pairs(swahili) == [("000000057870", "Meza ."), ("000000057870", "Meza kubwa .")]
    assert swahili.origin == "machine"
    english = load("coco35l", tmp_path, "en", "train")
    assert (english.captions, english.origin) == (("A table .", "A big table ."), "human")
    assert load("coco35l", tmp_path, "zh", "train").captions == ("一张桌子。",)


def test_coco35l_images_are_cocos_by_number(tmp_path):
    write(tmp_path / "coco_mt_dev.jsonl", jsonl([coco35l_row("42_0", "sw", "x", "y")]))
    (tmp_path / "val2014").mkdir()
    (tmp_path / "val2014" / "COCO_val2014_000000000042.jpg").touch()
    table = load("coco35l", tmp_path, "sw", "dev", images=tmp_path)
    assert table.images[0].path.name == "COCO_val2014_000000000042.jpg"


def test_coco35l_of_another_form_is_refused(tmp_path):
    write(tmp_path / "coco_mt_dev.jsonl", '{"trg_lang": "sw", "image_id": "x_0"}')
    with pytest.raises(UserError, match="line 1 is not of the form COCO-35L's"):
        load("coco35l", tmp_path, "sw", "dev")
    with pytest.raises(UserError, match="no file of captions"):
        load("coco35l", tmp_path, "sw", "train")
    with pytest.raises(UserError, match='no "test" split: it has train, dev'):
        load("coco35l", tmp_path, "sw", "test")


@pytest.mark.parametrize(
    "name", ["xtd", "xm3600", "coco-karpathy", "flickr30k", "coco-cn", "stair", "coco35l", "xflickrco"]
)
def test_a_wrong_root_is_named_not_what_would_lie_in_it(tmp_path, name):
    lang = {"coco-cn": "zh", "stair": "ja"}.get(name, "en")
    split = "train" if name in ("stair", "coco35l") else "test"
    (tmp_path / "benchmarks").mkdir()
    with pytest.raises(UserError, match=r'^there is no [\w ]+: \S+/benchmark is not there: did you mean "benchmarks"'):
        load(name, tmp_path / "benchmark", lang, split)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^there is no [\w ]+: \S+/file is a file, not a folder"):
        load(name, tmp_path / "file", lang, split)
