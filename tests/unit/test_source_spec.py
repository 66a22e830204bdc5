from __future__ import annotations

import pytest

from polyalign.config import resolve as recipe
from polyalign.config import source_spec
from polyalign.config.source_spec import SourceSpec
from polyalign.data import load as data
from polyalign.utils.errors import UserError
from tests import tiny


def test_a_name_may_carry_a_split_and_a_folder_is_read_by_the_source_folder(tmp_path):
    assert source_spec.parse("xtd", {"root": "x"}) == (SourceSpec(name="xtd", options={"root": "x"}), None)
    assert source_spec.parse("flickr8k:dev", {}) == (SourceSpec(name="flickr8k"), "dev")
    here = SourceSpec(name="folder", options={"root": str(tmp_path)})
    assert source_spec.parse(str(tmp_path), {}) == (here, None)
    assert source_spec.parse(f"{tmp_path}:dev", {}) == (here, "dev")
    with pytest.raises(UserError, match='"xdt" is neither a folder nor a source: did you mean "xtd"'):
        source_spec.parse("xdt", {})


def test_a_mistyped_option_and_a_missing_root_say_what_to_do():
    with pytest.raises(UserError, match=r'protcol.*did you mean "protocol"'):
        SourceSpec(name="xtd", options={"root": "x", "protcol": "1k"}).configure()
    with pytest.raises(UserError, match=r"give its place with root=FOLDER images=FOLDER.*COCO train2014"):
        SourceSpec(name="xtd").configure()


@pytest.mark.parametrize("key", ["source.protcol=1k", "strategy.towerz=both"])
def test_a_mistyped_option_in_set_is_answered_with_the_one_that_was_meant(key):
    changes = recipe.gather_overrides(["source.root=x", key], data="xtd")
    with pytest.raises(UserError, match=r'did you mean "(protocol|towers)"'):
        recipe.resolve("starter", "de", "lilt", changes)


def test_a_benchmark_in_a_recipe_without_root_or_photos_says_what_to_place_where(tmp_path):
    with pytest.raises(UserError, match=r"--set source.root=FOLDER.*train2014"):
        recipe.resolve("starter", "de", "lilt", recipe.gather_overrides([], data="xtd"))
    rootless = recipe.gather_overrides([f"source.root={tmp_path}"], data="xtd")
    with pytest.raises(UserError, match="xtd: set the photo folder with --images"):
        data.load_split(recipe.resolve("starter", "de", "lilt", rootless), "test")


def test_photos_are_given_to_benchmarks_and_refused_where_the_root_has_them(tmp_path):
    changes = recipe.gather_overrides([], data="xtd", images=tmp_path, allow_missing=True)
    assert changes["source"] == {"name": "xtd", "images": str(tmp_path), "allow_missing": True}
    with pytest.raises(UserError, match=r'"flickr8k" has its images in its root: --images is for coco-cn, .*, xtd200'):
        recipe.gather_overrides([], data="flickr8k", images=tmp_path)


def test_empty_captions_are_left_out_and_counted(tmp_path, caplog):
    tiny.draw(("red",) * 4).save(tmp_path / "a.png")
    tiny.draw(("blue",) * 4).save(tmp_path / "b.png")
    (tmp_path / "captions.csv").write_text("image,caption\na.png,red\na.png,\nb.png,\n", encoding="utf-8")
    resolved = tiny.resolved(source={"root": str(tmp_path), "test_share": 0.99, "dev_share": 0.0})
    table = data.load_split(resolved, "test")
    assert table.image_ids == ("a.png",)
    assert "test: left out 2 empty captions of 3" in caplog.messages


def test_images_of_another_test_set_are_kept_out_of_training_and_dev(tmp_path, caplog):
    train, dev = tiny.table("train"), tiny.table("dev")
    rows = ["image,caption,split"]
    for image_id, image in ((train.image_ids[3], train.images[3]), (dev.image_ids[0], dev.images[0])):
        image.open().save(tmp_path / f"other-{image_id}")
        rows.append(f"other-{image_id},a scene,test")
    (tmp_path / "captions.csv").write_text("\n".join(rows), encoding="utf-8")
    other = {"keep_out": [{"name": "folder", "root": str(tmp_path)}]}
    tables = data.load_tables(tiny.resolved(data={**other, "leakage": "exclude"}))
    assert train.image_ids[3] not in tables.train.image_ids
    assert dev.image_ids[0] not in tables.dev["en"].image_ids
    assert [line.partition(":")[0] for line in caplog.messages] == ["left out of dev", "left out of training"]
    with pytest.raises(UserError, match="1 of the 2 images"):
        data.load_tables(tiny.resolved(data=other))
    with pytest.raises(UserError, match=r"data\.keep_out.*no name"):
        tiny.resolved(data={"keep_out": [{"root": "x"}]})
