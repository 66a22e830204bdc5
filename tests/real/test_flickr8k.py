from __future__ import annotations

import pytest

from polyalign.config import budget
from polyalign.config import language as languages
from polyalign.data import image_check, leakage
from polyalign.data.load import draw
from polyalign.data.sources import flickr8k
from polyalign.utils.errors import UserError

SPLITS = ("train", "dev", "test")


@pytest.fixture(scope="module")
def root(real_data):
    return real_data / "data" / "flickr8k"


def load(root, code, split, **options):
    return flickr8k.load(flickr8k.Config(root=root, **options), languages.load_language(code), split)


@pytest.mark.parametrize(
    ("code", "each", "images"),
    [("en", 5, (6000, 1000, 1000)), ("de", 1, (5176, 867, 871)), ("qu", 1, (5176, 867, 871))],
)
def test_every_split_has_the_published_number_of_images_and_captions(root, code, each, images):
    tables = [load(root, code, split) for split in SPLITS]
    assert tuple(len(table.images) for table in tables) == images
    assert tuple(len(table) for table in tables) == tuple(each * n for n in images)


def test_the_images_that_every_language_has_are_as_many_as_published(root):
    tables = {split: load(root, "en", split, images="common") for split in SPLITS}
    assert [len(table.images) for table in tables.values()] == [5176, 867, 871]
    assert set(tables["test"].image_ids) == set(load(root, "gn", "test", images="common").image_ids)


def test_a_caption_belongs_to_its_photo(root):
    table = load(root, "de", "train")
    first = table.captions.index("Ein kleines Mädchen klettert in ein Spielhaus aus Holz.")
    assert table.image_ids[table.image_of[first]] == "1000268201_693b08cb0e.jpg"
    assert table.images[table.image_of[first]].open().size == (160, 160)


def test_every_photo_opens(root):
    table, report = image_check.check_images(load(root, "en", "test"))
    assert (len(table.images), report.bad) == (1000, ())


def test_the_official_splits_share_no_photo_by_id_or_by_pixels(root):
    train, test = load(root, "en", "dev"), load(root, "en", "test")
    report = leakage.find_leaks(train, test)
    assert (report.train_images, report.test_images, report.leaks) == (1000, 1000, ())


def test_a_budget_is_drawn_from_all_pairs(root):
    table = load(root, "en", "train")
    assert len(draw(table, budget.PairBudget(pairs=10_000), 0)) == 10_000
    with pytest.raises(UserError, match="30,000 pairs"):
        draw(table, budget.PairBudget(pairs=30_001), 0)
