"""What all benchmarks share, seen through XTD: images in the user's folder, aligned lines, languages, splits."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from polyalign.config import language as languages
from polyalign.config import plugins
from polyalign.data import image_check, leakage
from polyalign.data.readers.info import Info
from polyalign.data.sources import xtd
from polyalign.utils.errors import UserError

EN, JA, SW = (languages.load_language(code) for code in ("en", "ja", "sw"))
NAMES = ["COCO_train2014_000000000009.jpg", "COCO_train2014_000000000025.jpg", "COCO_val2014_000000000042.jpg"]


def put(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (len(name), 8)).save(path)


@pytest.fixture
def root(tmp_path):
    for folder in ("XTD10", "MIC", "STAIR"):
        (tmp_path / folder).mkdir()
    (tmp_path / "XTD10" / "test_image_names.txt").write_text("\n".join(NAMES) + "\n")
    (tmp_path / "XTD10" / "test_1kcaptions_en.txt").write_text("one\ntwo\nthree\n")
    (tmp_path / "XTD10" / "test_1kcaptions_es.txt").write_bytes("uno \r\ndos\r\ntrés\u2028aún".encode())
    (tmp_path / "MIC" / "test_1kcaptions_de.txt").write_text("eins\nzwei\ndrei\n\n")
    (tmp_path / "STAIR" / "test_1kcaptions_jp.txt").write_text("一\n二\n三\n")
    put(tmp_path / "photos", *NAMES)
    return tmp_path


def load(root, lang=EN, split="test", **options):
    return xtd.load(xtd.Config(root=root, **({"images": root / "photos"} | options)), lang, split)


def test_line_i_belongs_to_image_i(root):
    table = load(root)
    assert table.image_ids == tuple(NAMES)
    assert table.captions == ("one", "two", "three")
    assert table.image_of.tolist() == [0, 1, 2]
    assert [image.path.name for image in table.images] == NAMES


def test_crlf_and_a_missing_last_newline_leave_no_trace_and_other_breaks_end_no_line(root):
    assert load(root, languages.load_language("es")).captions == ("uno", "dos", "trés\u2028aún")


def test_blank_lines_at_the_end_are_no_captions(root):
    assert load(root, languages.load_language("de")).captions == ("eins", "zwei", "drei")


def test_files_of_different_length_are_refused_with_both_lengths(root):
    (root / "XTD10" / "test_1kcaptions_en.txt").write_text("one\ntwo\n")
    with pytest.raises(UserError, match=r"test_image_names\.txt has 3 lines and .*_en\.txt has 2: .* line by line"):
        load(root)


def test_a_datasets_odd_code_stays_inside_its_source(root):
    table = load(root, JA)
    assert (table.lang, table.captions) == ("ja", ("一", "二", "三"))
    assert xtd.languages(xtd.Config(root=root)) == ["de", "en", "es", "ja"]


def test_missing_images_are_an_error_with_count_and_names(root):
    for name in NAMES[:2]:
        (root / "photos" / name).unlink()
    with pytest.raises(
        UserError, match=r"2 of the 3 images of xtd-1k-test are not in .*photos .*000009\.jpg, .*--allow-missing"
    ):
        load(root)


def test_allowed_to_be_missing_they_go_with_their_captions_and_the_others_keep_theirs(root):
    (root / "photos" / NAMES[1]).unlink()
    table = load(root, allow_missing=True)
    assert table.image_ids == (NAMES[0], NAMES[2])
    assert table.captions == ("one", "three")
    assert [image.path.name for image in table.images] == [NAMES[0], NAMES[2]]


def test_a_wrong_folder_is_an_error_even_where_missing_images_are_allowed(root):
    (root / "empty").mkdir()
    with pytest.raises(UserError, match=r"none of the 3 images .* is in .*empty: is this .* \(looked for COCO_"):
        load(root, images=root / "empty", allow_missing=True)
    with pytest.raises(UserError, match=r'no folder .*photo \(source\.images\): did you mean "photos"'):
        load(root, images=root / "photo")


@pytest.mark.parametrize("form", ["train2014/{}", "{}", "deep/er/{}"])
def test_images_are_found_in_sub_folders(root, form, tmp_path):
    put(tmp_path / "other", *(form.format(name) for name in NAMES))
    assert [image.path.name for image in load(root, images=tmp_path / "other").images] == NAMES


def test_images_are_found_under_the_photos_other_names(root, tmp_path):
    put(tmp_path / "other", "000000000009.jpg", "000000000025.tiff", "COCO_train2014_000000000042.JPEG")
    assert load(root, images=tmp_path / "other").image_ids == tuple(NAMES)


def test_a_file_of_the_very_name_is_preferred_to_another_of_the_photo(root):
    put(root / "photos", "a/000000000009.jpg", "COCO_val2014_000000000009.jpg")
    assert [image.path.name for image in load(root).images] == NAMES


def test_without_an_image_folder_captions_can_be_read_and_ids_compared_but_nothing_opened(root):
    table = load(root, images=None)
    assert table.captions == ("one", "two", "three")
    assert leakage.find_leaks(table, load(root)).train_ids == tuple(sorted(NAMES))
    with pytest.raises(UserError, match=r"set the image folder \(source\.images"):
        table.images[0].open()
    with pytest.raises(UserError, match="3 missing"):
        image_check.check_images(table)


def test_the_papers_protocol_parts_the_images_by_where_they_are_from(root):
    train, test = (load(root, split=split, protocol="lilt-200") for split in ("train", "test"))
    assert train.image_ids == tuple(NAMES[:2])
    assert test.image_ids == tuple(NAMES[2:])
    assert test.captions == ("three",)
    assert {load(root).name, train.name, test.name} == {"xtd-1k-test", "xtd-lilt-200-train", "xtd-lilt-200-test"}


def test_unknown_languages_and_splits_are_refused_with_what_there_is(root):
    with pytest.raises(UserError, match=r'xtd has no captions in "sw": .*known: .*es.*ja'):
        load(root, SW)
    with pytest.raises(UserError, match='xtd has no "train" split: it has test'):
        load(root, split="train")
    with pytest.raises(UserError, match='no "dev" split: it has train, test'):
        load(root, split="dev", protocol="lilt-200")
    with pytest.raises(UserError, match=r"no file of captions in fr: .*test_1kcaptions_fr\.txt"):
        load(root, languages.load_language("fr"))
    (root / "XTD10" / "test_1kcaptions_en.txt").write_text("")
    with pytest.raises(UserError, match=r"_en\.txt is empty"):
        load(root)


def test_every_benchmark_says_what_it_is_and_where_to_get_it():
    modules = [plugins.load_plugin("sources", name) for name in plugins.plugin_names("sources")]
    infos = [module.INFO for module in modules if hasattr(module, "INFO")]
    assert len(infos) == len(modules) - 3  # starter, folder and hub are no datasets
    for info in infos:
        assert isinstance(info, Info)
        told = ("title", "folder", "languages", "size", "origin", "licence", "home", "captions", "checked")
        assert all(getattr(info, field) for field in told)
        assert Info.model_validate_json(info.model_dump_json()) == info
