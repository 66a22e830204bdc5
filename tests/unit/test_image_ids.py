from __future__ import annotations

import pytest

from polyalign.data import image_ids


@pytest.mark.parametrize(
    ("image_id", "photo"),
    [
        ("COCO_val2014_000000391895.jpg", "coco:391895"),
        ("COCO_train2014_000000117071.jpg#367178", "coco:117071"),
        ("val2014/COCO_val2014_000000391895.jpg", "coco:391895"),
        ("000000391895.jpg", "coco:391895"),
        ("1007129816.jpg", "flickr:1007129816"),
        ("1007129816_e794419615.jpg", "flickr:1007129816"),
        ("images\\1007129816_e794419615.jpg", "flickr:1007129816"),
        ("667626_18933d713e.jpg", "flickr:667626"),
        ("391895", None),
        ("36979.jpg", None),
        ("beach.jpg", None),
        ("0001.jpg", None),
        ("starter-test-000001", None),
    ],
)
def test_knows_coco_and_flickr_by_the_form_of_the_name(image_id, photo):
    assert image_ids.photo(image_id) == photo


@pytest.mark.parametrize(
    ("image_id", "plain"),
    [
        ("COCO_val2014_000000391895.jpg", "391895"),
        ("391895", "391895"),
        ("a/b/beach.sun.jpg", "beach.sun"),
        ("x_1#2", "x_1"),
    ],
)
def test_reduces_to_the_number_or_the_bare_name(image_id, plain):
    assert image_ids.plain(image_id) == plain
