from __future__ import annotations

import io
from typing import Any

import datasets
import pytest
from PIL import Image

from polyalign.config import language as languages
from polyalign.data.pairs import CorruptImageError, EncodedImage, PairTable
from polyalign.data.sources import hub
from polyalign.utils.errors import UserError

EN = languages.load_language("en")
ALL = {"dev_share": 0, "test_share": 0}


@pytest.fixture(autouse=True)
def _quiet():
    datasets.disable_progress_bars()


def pairs(table: PairTable) -> list[tuple[str, str]]:
    return [(table.image_ids[i], caption) for i, caption in zip(table.image_of, table.captions, strict=True)]


def png(width: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, 1)).save(out, "PNG")
    return out.getvalue()


def cells(*widths: int, names: list[str | None] | None = None) -> list[dict[str, Any]]:
    return [{"bytes": png(w), "path": name} for w, name in zip(widths, names or [None] * len(widths), strict=True)]


def dataset(**columns: Any) -> datasets.Dataset:
    made = datasets.Dataset.from_dict(columns)
    return made.cast_column("image", datasets.Image()) if isinstance(made[0]["image"], dict) else made


def load(folder: Any, split: str = "train", **options: Any) -> PairTable:
    return hub.load(hub.Config(dataset=str(folder), **options), EN, split)


def test_bytes_saved_to_disk_are_read_row_by_row(tmp_path):
    dataset(image=cells(3, 5), caption=[["a", "b"], ["c"]]).save_to_disk(tmp_path / "ds")
    table = load(tmp_path / "ds", **ALL)
    assert pairs(table) == [("train/0", "a"), ("train/0", "b"), ("train/1", "c")]
    assert [image.open().width for image in table.images] == [3, 5]
    assert isinstance(table.images[0], EncodedImage)
    assert table.images[0].open_small(1).width == 3
    assert table.images[0].key() == load(tmp_path / "ds", **ALL).images[0].key() != table.images[1].key()


def test_files_named_by_path_are_read_as_an_image_or_a_plain_column(tmp_path):
    paths = [tmp_path / f"{name}.png" for name in "ab"]
    for width, path in enumerate(paths, start=3):
        path.write_bytes(png(width))
    plain = datasets.Dataset.from_dict({"image": [str(p) for p in paths], "caption": ["x", "y"]})
    plain.save_to_disk(tmp_path / "plain")
    plain.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "images")
    for name in ("plain", "images"):
        table = load(tmp_path / name, **ALL)
        assert pairs(table) == [("a.png", "x"), ("b.png", "y")]
        assert [image.open().width for image in table.images] == [3, 4]


def test_rows_that_name_the_same_file_are_captions_of_one_image(tmp_path):
    dataset(image=cells(3, 3, 5, names=["a.png", "a.png", "b.png"]), caption=["x", "y", "z"]).save_to_disk(
        tmp_path / "ds"
    )
    assert pairs(load(tmp_path / "ds", **ALL)) == [("a.png", "x"), ("a.png", "y"), ("b.png", "z")]


def test_a_name_that_all_images_share_is_no_id(tmp_path):
    dataset(image=cells(3, 5, names=["image.png"] * 2), caption=["x", "y"]).save_to_disk(tmp_path / "ds")
    assert pairs(load(tmp_path / "ds", **ALL)) == [("train/0", "x"), ("train/1", "y")]


def test_an_id_column_is_found_by_name_or_taken_as_said(tmp_path):
    dataset(image=cells(3, 3), caption=["x", "y"], image_id=[7, 7], other=["p", "q"]).save_to_disk(tmp_path / "ds")
    assert pairs(load(tmp_path / "ds", **ALL)) == [("7", "x"), ("7", "y")]
    assert pairs(load(tmp_path / "ds", id_column="other", **ALL)) == [("p", "x"), ("q", "y")]


def parts(**captions: list[str]) -> datasets.DatasetDict:
    return datasets.DatasetDict(
        {
            name: dataset(
                image=cells(*range(1, len(texts) + 1)),
                caption=texts,
                image_id=[f"{name}{i}" for i in range(len(texts))],
            )
            for name, texts in captions.items()
        }
    )


def test_parts_with_the_usual_names_are_the_splits(tmp_path):
    parts(train=["a"], validation=["b"], test=["c"]).save_to_disk(tmp_path / "ds")
    assert [load(tmp_path / "ds", s).captions for s in ("train", "dev", "test")] == [("a",), ("b",), ("c",)]


def test_a_part_with_another_name_is_taken_when_said(tmp_path):
    parts(train=["a"], held_out=["b"], test=["c"]).save_to_disk(tmp_path / "ds")
    assert load(tmp_path / "ds", "dev", dev_split="held_out").captions == ("b",)
    with pytest.raises(UserError, match=r'no split "heldout" \(source\.dev_split\): it has train, held_out, test'):
        load(tmp_path / "ds", "dev", dev_split="heldout")


def test_a_split_without_a_part_is_taken_out_of_training_and_only_out_of_it(tmp_path):
    parts(train=[f"{i}" for i in range(200)], test=["t"]).save_to_disk(tmp_path / "ds")
    train, dev, test = (
        set(load(tmp_path / "ds", s, dev_share=0.3, test_share=0.3).captions) for s in ("train", "dev", "test")
    )
    assert test == {"t"}
    assert train | dev == {f"{i}" for i in range(200)}
    assert not train & dev
    assert len(dev) == pytest.approx(60, abs=25)


def test_one_part_of_any_name_is_split_by_its_split_column(tmp_path):
    made = dataset(image=cells(1, 2, 3), caption=["a", "b", "c"], split=["train", "val", "test"])
    datasets.DatasetDict(test=made).save_to_disk(tmp_path / "ds")
    assert [load(tmp_path / "ds", s).captions for s in ("train", "dev", "test")] == [("a",), ("b",), ("c",)]


def test_parts_of_unknown_names_must_be_assigned(tmp_path):
    parts(one=["a"], two=["b"]).save_to_disk(tmp_path / "ds")
    with pytest.raises(UserError, match=r"has the splits one, two: choose .*source\.train_split"):
        load(tmp_path / "ds")
    assert load(tmp_path / "ds", train_split="one", test_split="two", **ALL).captions == ("a",)


def test_a_folder_that_datasets_can_load_needs_no_saving(tmp_path):
    dataset(image=cells(3), caption=["x"]).to_parquet(tmp_path / "ds" / "train.parquet")
    table = load(tmp_path / "ds", **ALL)
    assert table.captions == ("x",)
    assert table.images[0].open().width == 3


def test_a_missing_column_lists_those_present(tmp_path):
    dataset(image=cells(3), words=["x"]).save_to_disk(tmp_path / "ds")
    with pytest.raises(UserError, match=r"no column called caption .*columns are image, words"):
        load(tmp_path / "ds")
    assert load(tmp_path / "ds", caption_column="words", **ALL).captions == ("x",)


@pytest.mark.parametrize("name", ["nobody/nothing", "no such thing", "/nowhere/at/all"])
def test_what_cannot_be_loaded_is_one_line_with_a_way_out(name):
    with pytest.raises(UserError, match=rf'cannot load the dataset "{name}": .*save_to_disk') as raised:
        load(name)
    assert "\n" not in str(raised.value)


def test_a_row_without_an_image_is_corrupt(tmp_path):
    made = datasets.Dataset.from_dict({"image": [{"bytes": png(1), "path": "a"}, None], "caption": ["x", "y"]})
    made.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "ds")
    with pytest.raises(CorruptImageError, match=r"row 1 contains .*, not an image"):
        load(tmp_path / "ds", **ALL).images[1].open()


def test_an_id_of_several_images_is_refused_with_both_rows(tmp_path):
    dataset(image=cells(3, 3, 5), caption=["a", "b", "c"], image_id=["x", "x", "x"]).save_to_disk(tmp_path / "ds")
    with pytest.raises(UserError, match=r'row 2: the id \("image_id"\) is that of another image \(.*row 0\)'):
        load(tmp_path / "ds", **ALL)
    dataset(image=cells(3, 3), caption=["a", "b"], image_id=["x", "x"]).save_to_disk(tmp_path / "same")
    assert pairs(load(tmp_path / "same", **ALL)) == [("x", "a"), ("x", "b")]


@pytest.mark.parametrize(
    "card", ["a: [1, 2\nb: {", "a:\n\t- 1", "configs: 7", "configs:\n- 3", "- 3", "[" * 2000, "a: !!python/object:x {}"]
)
def test_a_damaged_card_is_one_line(tmp_path, card):
    (tmp_path / "README.md").write_text(f"---\n{card}\n---\n")
    (tmp_path / "train.jsonl").write_text('{"image": "a.jpg", "caption": "x"}\n')
    with pytest.raises(UserError, match=f'cannot load the dataset "{tmp_path}": ') as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "files", ["http://127.0.0.1/leak.csv", "zip://a.csv::https://x.example/a.zip", "../../secret.csv", "/etc/passwd"]
)
def test_a_card_that_names_data_outside_of_its_folder_is_refused(files, tmp_path):
    (tmp_path / "README.md").write_text(f'---\nconfigs:\n- config_name: default\n  data_files: "{files}"\n---\n')
    with pytest.raises(UserError, match="names data outside of its folder"):
        hub.load_parts(str(tmp_path))
