from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from polyalign.data import augment as views
from polyalign.data.augment import View, crop
from polyalign.data.pairs import PairTable
from polyalign.models.embed import PairFeatures, prepare
from polyalign.training import train
from polyalign.training.train import Loop
from tests import tiny

PX = 40


@pytest.fixture(scope="module")
def table() -> PairTable:
    return tiny.table().take_pairs(range(20))


def pixels(view: View) -> np.ndarray:
    return np.asarray(view.open())


# One view


@given(st.integers(8, 900), st.integers(8, 900), st.integers(0, 2**32))
def test_a_crop_is_inside_the_picture_and_keeps_most_of_it(width, height, seed):
    left, upper, right, lower = crop(width, height, np.random.default_rng(seed))
    assert 0 <= left < right <= width
    assert 0 <= upper < lower <= height
    across, down = right - left, lower - upper
    assert 3 / 4 - 0.2 < across / down < 4 / 3 + 0.2  # whole pixels round
    if max(width, height) <= 1.5 * min(width, height):
        assert across * down >= 0.45 * width * height


def test_a_very_long_picture_gives_the_largest_box_in_its_middle():
    assert crop(600, 90, np.random.default_rng(0)) == (240, 0, 360, 90)
    assert crop(90, 600, np.random.default_rng(0)) == (0, 240, 90, 360)


def test_a_view_is_the_same_each_time_and_each_number_another(table):
    made = views.of(table, 3, PX, 0, mirror=False)
    assert len(made) == 3 * len(table.images)
    first = [pixels(view) for view in made[:: len(table.images)]]
    assert all(shown.shape == (PX, PX, 3) for shown in first)
    for view, shown in zip(made[:: len(table.images)], first, strict=True):
        assert np.array_equal(pixels(view), shown)
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], first[2])


def test_views_come_image_by_image_and_hang_on_the_id_alone(table):
    whole = views.of(table, 2, PX, 0, mirror=True)
    few = table.take_images([4, 7])
    part = views.of(few, 2, PX, 0, mirror=True)
    wanted = [whole[4], whole[7], whole[10 + 4], whole[10 + 7]]
    assert [view.key() for view in part] == [view.key() for view in wanted]
    assert [view.image for view in part] == [*few.images, *few.images]


def test_whatever_makes_other_pixels_makes_another_key(table):
    keys = {
        views.of(table, 1, px, seed, mirror=mirror)[0].key()
        for px in (PX, PX + 1)
        for seed in (0, 1)
        for mirror in (False, True)
    }
    assert len(keys) == 8
    assert table.images[0].key() not in keys


def test_mirroring_flips_about_half_and_crops_the_same(table):
    plain, mirrored = (views.of(tiny.table(), 3, PX, 0, mirror=mirror) for mirror in (False, True))
    flipped = 0
    for one, other in zip(plain, mirrored, strict=True):
        shown, turned = pixels(one), pixels(other)
        if not np.array_equal(shown, turned):
            assert np.array_equal(shown[:, ::-1], turned)
            flipped += 1
    assert 0.35 < flipped / len(plain) < 0.65


def test_of_a_tower_that_cuts_borders_a_view_loses_no_more_than_a_picture_does():
    tower = tiny.aligner(vision={"crop_pct": 0.8}).vision
    px = int(tower.preprocessing.image_px / tower.preprocessing.crop_pct)
    gradient = Image.fromarray(np.tile(np.arange(px, dtype=np.uint8), (px, 1))).convert("RGB")
    seen = tower.transform(gradient).numpy()
    border = (px - tower.preprocessing.image_px) // 2
    assert np.array_equal(seen[0, 0], np.arange(border, border + tower.preprocessing.image_px))


# Training on them


def test_each_epoch_takes_the_next_view():
    image_of, zeros = np.array([0, 1, 1, 0]), np.zeros(4, np.int64)
    features = PairFeatures(np.zeros((6, 1)), np.zeros((4, 1)), image_of, np.arange(4), zeros, views=3)  # type: ignore[arg-type]
    rows = [features.image_rows(np.array([2, 3]), epoch).tolist() for epoch in range(5)]
    assert rows == [[1, 0], [3, 2], [5, 4], [1, 0], [3, 2]]


def loop_of(name: str, layers: str, data: dict, cache: dict) -> Loop:
    sections = {"strategy": {"layers": layers}, "data": data, "cache": cache}
    recipe = tiny.resolved(name, **sections, optim={"epochs": 3, "batch_size": 64}, train={"evals": 6, "patience": 6})
    return train.set_up(recipe).loop


def losses(loop: Loop, folder) -> list[float]:
    state = loop.run(folder / "state", resume=False)
    return [look.loss for look in state.dev_evaluations]


@pytest.mark.parametrize(("name", "layers"), [("projection", "all"), ("lilt", "last:1"), ("full", "all")])
def test_losses_and_weights_are_the_same_with_and_without_the_cache(name, layers, tmp_path):
    cached, plain = (
        loop_of(name, layers, {"views": 2, "mirror": True}, {"dtype": "float32", "prefix": prefix})
        for prefix in (True, False)
    )
    np.testing.assert_allclose(losses(cached, tmp_path), losses(plain, tmp_path), rtol=1e-5)
    for key, weight in cached.aligner.trainable().items():
        if not key.endswith(("key.bias", "qkv.bias")):  # rounding alone, see test_cache
            other = plain.aligner.trainable()[key].detach().numpy()
            np.testing.assert_allclose(weight.detach().numpy(), other, rtol=1e-3, atol=1e-4, err_msg=key)


def test_views_train_differently_and_dev_and_test_stay_plain(tmp_path):
    viewed, plain = (loop_of("projection", "all", data, {}) for data in ({"views": 2}, {}))
    assert (viewed.features.views, plain.features.views) == (2, 1)
    assert len(viewed.features.images) == 2 * len(plain.features.images)
    assert np.array_equal(viewed.dev[0].images.values, plain.dev[0].images.values)
    assert losses(viewed, tmp_path)[0] != losses(plain, tmp_path)[0]


def test_a_step_of_the_second_epoch_sees_the_second_view(monkeypatch, tmp_path):
    loop = loop_of("projection", "all", {"views": 2}, {})
    seen = []
    whole = loop.features.images.batch
    object.__setattr__(
        loop.features.images, "batch", lambda rows, device: seen.append(set(rows)) or whole(rows, device)
    )
    loop.run(tmp_path / "state", resume=False)
    count = len(loop.features.images) // 2
    epochs = [seen[0] | seen[1], seen[2] | seen[3], seen[4] | seen[5]]
    assert epochs == [set(range(count)), set(range(count, 2 * count)), set(range(count))]


def test_without_views_a_store_is_the_plain_one(table):
    aligner = tiny.aligner()
    recipe = tiny.resolved()
    plain = prepare(aligner, table, recipe.cache)
    same = prepare(aligner, table, recipe.cache, data=recipe.data)
    assert np.array_equal(plain.images.values, same.images.values)
