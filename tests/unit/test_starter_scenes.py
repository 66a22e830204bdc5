from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from polyalign.data.starter import world
from polyalign.data.starter.scenes import draw, draw_object, sample_scene
from polyalign.data.starter.shapes import SHAPES


def scene(relation: str = "left", background: str = "sky", seed: int = 5) -> world.Scene:
    things = (world.Thing("cup", "red", "large", 1), world.Thing("cat", "blue", "large", 1))
    return world.Scene(background, things, relation, seed)


def redness(image: np.ndarray) -> np.ndarray:
    pixels = image.astype(int)
    return (pixels[..., 0] > 110) & (pixels[..., 1] < 90) & (pixels[..., 2] < 90)


def blueness(image: np.ndarray) -> np.ndarray:
    pixels = image.astype(int)
    return (pixels[..., 2] > 120) & (pixels[..., 0] < 90) & (pixels[..., 1] < 110)


def test_every_kind_has_a_shape_inside_its_box_and_no_shape_is_without_a_kind() -> None:
    assert set(SHAPES) == set(world.KINDS)
    for patches in SHAPES.values():
        points = np.concatenate([patch.points for patch in patches])
        assert np.isfinite(points).all()
        assert np.abs(points).max() < 1.2
        assert np.ptp(points, axis=0).min() > 0.4


def test_a_scene_is_drawn_the_same_each_time_and_its_seed_changes_the_picture() -> None:
    first, again = np.asarray(draw(scene())), np.asarray(draw(scene()))
    assert first.shape == (64, 64, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, np.asarray(draw(scene(seed=6))))


def test_drawing_leaves_the_global_generator_alone() -> None:
    np.random.seed(1)  # noqa: NPY002 (the global one is what is under test)
    before = np.random.get_state()[1]  # noqa: NPY002
    draw(scene())
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("size", [32, 64, 128, 224])
def test_a_picture_of_any_size_shows_the_same_scene(size: int) -> None:
    image = draw(scene(), size)
    assert image.size == (size, size)
    assert image.mode == "RGB"
    small = np.asarray(image.resize((16, 16)), dtype=float)
    wanted = np.asarray(draw(scene(), 64).resize((16, 16)), dtype=float)
    assert np.abs(small - wanted).mean() < 8


@pytest.mark.parametrize("relation", world.RELATIONS)
def test_the_first_thing_stands_where_the_relation_says(relation: str) -> None:
    right = 0
    for seed in range(20):
        image = np.asarray(draw(scene(relation, "snow", seed)))
        (cup_y, cup_x), (cat_y, cat_x) = (np.argwhere(mask(image)).mean(axis=0) for mask in (redness, blueness))
        offsets = {"left": cat_x - cup_x, "right": cup_x - cat_x, "above": cat_y - cup_y, "below": cup_y - cat_y}
        right += max(offsets, key=offsets.__getitem__) == relation
    assert right == 20


def test_more_and_larger_objects_cover_more_of_the_picture() -> None:
    def cover(count: int, size: str) -> float:
        cup = world.Thing("cup", "red", size, count)
        scenes = [dataclasses.replace(scene(seed=s), things=(cup, scene().things[1])) for s in range(15)]
        return float(np.mean([redness(np.asarray(draw(s))).sum() for s in scenes]))

    assert 1.5 < cover(2, "small") / cover(1, "small") < 2.2
    assert cover(3, "small") > 1.25 * cover(2, "small")
    assert cover(1, "large") > 1.7 * cover(1, "small")


def test_held_out_combinations_are_sampled_only_where_asked_for() -> None:
    rng = np.random.default_rng(0)
    assert not any(sample_scene(rng, held_out=False).is_held_out() for _ in range(500))
    assert all(sample_scene(rng, held_out=True).is_held_out() for _ in range(200))
    share = np.mean([sample_scene(rng).is_held_out() for _ in range(2000)])
    assert 0.22 < share < 0.34


def test_held_out_combinations_leave_most_colours_to_every_kind_and_most_kinds_to_every_colour() -> None:
    assert len(world.HELD_OUT) == 36
    for kind in world.KINDS:
        assert 1 <= sum(k == kind for k, _ in world.HELD_OUT) <= 2
    for color in world.COLORS:
        assert 3 <= sum(c == color for _, c in world.HELD_OUT) <= 5


def test_every_fact_is_sampled_about_equally_often() -> None:
    rng = np.random.default_rng(1)
    scenes = [sample_scene(rng) for _ in range(4000)]
    things = [thing for s in scenes for thing in s.things]
    for values, seen in (
        (world.BACKGROUNDS, [s.background for s in scenes]),
        (world.RELATIONS, [s.relation for s in scenes]),
        (world.KINDS, [t.kind for t in things]),
        (world.COLORS, [t.color for t in things]),
        (world.SIZES, [t.size for t in things]),
        (world.COUNTS, [t.count for t in things]),
    ):
        shares = np.array([seen.count(value) for value in values]) / len(seen) * len(values)
        assert 0.8 < shares.min() <= shares.max() < 1.2
    assert all(s.things[0].kind != s.things[1].kind for s in scenes)


def test_the_same_facts_told_from_the_other_side_are_the_same_facts() -> None:
    there = scene("left")
    back = world.Scene("sky", (there.things[1], there.things[0]), "right", seed=99)
    assert there.facts() == back.facts()
    assert there.facts() != scene("right").facts()
    assert scene("above").facts() != scene("left").facts()


def test_every_kind_is_told_from_every_other_by_its_nearest_template() -> None:
    def look(kind: str, seed: int) -> np.ndarray:
        # Averages over grounds and jitter, as a distance from the ground in grey, small enough to forgive a shift.
        image = draw_object(kind, "black", world.BACKGROUNDS[seed % 5], 26, seed).convert("L").resize((16, 16))
        return np.asarray(image, dtype=float) < 75

    def mirrored(kind: str, seeds: range) -> np.ndarray:
        looks = [look(kind, seed) for seed in seeds]
        return np.mean([*looks, *(a[:, ::-1] for a in looks)], axis=0)

    templates = np.stack([mirrored(kind, range(60)) for kind in world.KINDS])
    queries = np.stack([mirrored(kind, range(100, 112)) for kind in world.KINDS])
    distance = ((queries[:, None] - templates[None]) ** 2).sum(axis=(2, 3))
    assert (distance.argmin(axis=1) == np.arange(len(world.KINDS))).all()


def test_every_colour_is_told_from_every_other_by_the_middle_of_a_star() -> None:
    def middle(color: str, seed: int) -> np.ndarray:
        image = np.asarray(draw_object("star", color, world.BACKGROUNDS[seed % 5], 31, seed), dtype=float)
        return image[27:37, 27:37].mean(axis=(0, 1))

    templates = np.stack([np.median([middle(c, s) for s in range(30)], axis=0) for c in world.COLORS])
    for index, color in enumerate(world.COLORS):
        looks = np.stack([middle(color, s) for s in range(50, 80)])
        nearest = ((looks[:, None] - templates[None]) ** 2).sum(axis=2).argmin(axis=1)
        assert (nearest == index).mean() > 0.8, color
