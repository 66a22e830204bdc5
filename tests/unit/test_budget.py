from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyalign.config import budget
from polyalign.config.budget import MemoryBudget, PairBudget, TimeBudget
from polyalign.data.load import draw
from polyalign.data.pairs import FileImage, PairTable
from polyalign.utils.errors import UserError


def table(images: int, each: int = 1, lang: str = "en") -> PairTable:
    return PairTable(
        name="photos",
        lang=lang,
        origin="human",
        image_ids=tuple(f"{i}.jpg" for i in range(images)),
        images=tuple(FileImage(f"{i}.jpg") for i in range(images)),
        captions=tuple(f"{lang} {i} {k}" for i in range(images) for k in range(each)),
        image_of=np.repeat(np.arange(images), each),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10k-pairs", PairBudget(pairs=10_000)),
        ("500-pairs", PairBudget(pairs=500)),
        ("1-pair", PairBudget(pairs=1)),
        ("1.5k-pairs", PairBudget(pairs=1_500)),
        ("1.1k-pairs", PairBudget(pairs=1_100)),
        ("2M-pairs", PairBudget(pairs=2_000_000)),
        (" 10K-Pairs ", PairBudget(pairs=10_000)),
        ("20min", TimeBudget(seconds=1200)),
        ("90s", TimeBudget(seconds=90)),
        ("1.5h", TimeBudget(seconds=5400)),
        ("4GiB", MemoryBudget(bytes=4 * 2**30)),
        ("500MB", MemoryBudget(bytes=500_000_000)),
    ],
)
def test_reads_pairs_time_and_memory(text, expected):
    assert budget.parse_budget(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10k",
        "pairs",
        "-5-pairs",
        "10k-pears",
        "1e3-pairs",
        "4 potatoes",
        "0-pairs",
        "0min",
        "0.5-pairs",
        "10,000-pairs",
    ],
)
def test_what_is_no_budget_is_refused_with_the_text_and_a_way_out(text):
    with pytest.raises(UserError, match=r"(such as|whole number)") as raised:
        budget.parse_budget(text)
    assert f'"{text}"' in str(raised.value)


@given(st.one_of(
    st.builds(PairBudget, pairs=st.integers(1, 10**8)),
    st.builds(TimeBudget, seconds=st.integers(1, 10**6)),
    st.builds(MemoryBudget, bytes=st.integers(1, 10**12).map(lambda n: n * 1024)),
))  # fmt: skip
def test_what_is_written_is_read_back(one):
    assert budget.parse_budget(str(one)) == one


@pytest.mark.parametrize("text", ["10k-pairs", "1.5k-pairs", "999-pairs", "20min", "90s", "4GiB"])
def test_is_written_as_people_write_it(text):
    assert str(budget.parse_budget(text)) == text


@given(st.integers(1, 40), st.integers(1, 3), st.integers(0, 5), st.data())
def test_a_smaller_draw_lies_inside_a_larger_one_and_has_its_size(images, each, seed, data):
    whole = table(images, each)
    large = data.draw(st.integers(1, len(whole)))
    small = data.draw(st.integers(1, large))
    drawn = [draw(whole, PairBudget(pairs=n), seed) for n in (small, large)]
    assert [len(d) for d in drawn] == [small, large]
    assert set(drawn[0].captions) <= set(drawn[1].captions)
    for d in drawn:  # pairs stay pairs, in the table's order
        assert [d.image_ids[i].removesuffix(".jpg") for i in d.image_of] == [c.split()[1] for c in d.captions]
        assert list(d.captions) == [c for c in whole.captions if c in set(d.captions)]


def test_seeds_draw_differently_and_the_same_seed_draws_the_same():
    whole = table(1000)
    first, again, other = (set(draw(whole, PairBudget(pairs=100), seed).captions) for seed in (0, 0, 1))
    assert first == again
    assert len(first & other) == pytest.approx(10, abs=12)


def test_two_languages_with_the_same_images_are_drawn_the_same_images():
    ids = [draw(table(200, lang=lang), PairBudget(pairs=50), 3).image_ids for lang in ("de", "qu")]
    assert ids[0] == ids[1]


def test_leaving_out_an_image_changes_no_other_choice():
    whole = table(200)
    drawn = draw(whole, PairBudget(pairs=50), 0)
    gone = drawn.image_ids[0]
    again = draw(whole.without_images([gone]), PairBudget(pairs=49), 0)
    assert set(again.image_ids) == set(drawn.image_ids) - {gone}


def test_every_pair_is_as_likely_as_any_other():
    whole = table(20, 5)
    counts = np.zeros(100)
    for seed in range(400):
        for caption in draw(whole, PairBudget(pairs=10), seed).captions:
            _, i, k = caption.split()
            counts[int(i) * 5 + int(k)] += 1
    assert counts.mean() == 40
    assert counts.std() == pytest.approx(6, abs=1.5)  # binomial: sqrt(400 * 0.1 * 0.9)


def test_asking_for_more_than_there_is_says_how_many_there_are():
    with pytest.raises(UserError, match="photos has 20 pairs for en, fewer than 1k-pairs"):
        draw(table(20), PairBudget(pairs=1000), 0)
