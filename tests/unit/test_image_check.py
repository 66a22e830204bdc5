from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polyalign.data.image_check import check_images, inspect_images
from polyalign.data.pairs import FileImage, PairTable
from polyalign.utils.errors import UserError


def table(folder: Path, count: int) -> PairTable:
    names = [f"{i}.jpg" for i in range(count)]
    for i, name in enumerate(names):
        Image.new("RGB", (16 + i, 16)).save(folder / name)
    return PairTable(
        name="photos",
        lang="en",
        origin="human",
        image_ids=tuple(names),
        images=tuple(FileImage(folder / name) for name in names),
        captions=tuple(f"{i} {k}" for i in range(count) for k in "ab"),
        image_of=np.repeat(np.arange(count), 2),
    )


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def test_a_sound_table_comes_back_as_it_is(tmp_path):
    whole = table(tmp_path, 3)
    checked, report = check_images(whole)
    assert checked is whole
    assert report.describe() == "of 3 images none is missing or corrupt"


def test_bad_images_go_with_their_captions_and_no_other_pair_changes(tmp_path):
    whole = table(tmp_path, 4)
    (tmp_path / "0.jpg").unlink()
    truncate(tmp_path / "2.jpg")
    checked, report = check_images(whole, max_corrupt=0.5)
    assert checked.image_ids == ("1.jpg", "3.jpg")
    assert checked.captions == ("1 a", "1 b", "3 a", "3 b")
    assert [checked.images[i].open().width for i in checked.image_of] == [17, 17, 19, 19]
    assert [bad.image_id for bad in report.missing] == ["0.jpg"]
    assert [bad.image_id for bad in report.corrupt] == ["2.jpg"]
    assert "truncated" in report.corrupt[0].reason.lower()


def test_more_than_the_stated_share_is_refused_with_counts_names_and_a_way_out(tmp_path):
    whole = table(tmp_path, 10)
    for i in range(7):
        truncate(tmp_path / f"{i}.jpg")
    with pytest.raises(UserError) as raised:
        check_images(whole, max_corrupt=0.6)
    message = str(raised.value)
    assert "photos: of 10 images 7 corrupt (0.jpg: " in message
    assert "4.jpg" in message
    assert "5.jpg" not in message
    assert "70.0%" in message
    assert "data.max_corrupt = 0.6" in message
    assert "\n" not in message


def test_exactly_the_stated_share_passes(tmp_path):
    whole = table(tmp_path, 10)
    truncate(tmp_path / "3.jpg")
    assert len(check_images(whole, max_corrupt=0.1)[0].images) == 9


def test_a_wrong_folder_is_suspected_when_nothing_is_there(tmp_path):
    whole = table(tmp_path, 2)
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(UserError, match="check the image folder"):
        check_images(whole, max_corrupt=0.5)


def test_progress_ends_at_the_number_of_images(tmp_path, news):
    inspect_images(table(tmp_path, 3))
    assert news == [("checking images", n, 3) for n in (1, 2, 3)]
