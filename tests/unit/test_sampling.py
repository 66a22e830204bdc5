"""Batches of several languages."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyalign.training.sampling import Batches, quotas


@pytest.mark.parametrize(
    ("counts", "temperature", "shares"),
    [
        ([100, 900], 1, [100, 900]),
        ([100, 900], 2, [250, 750]),  # 10 : 30
        ([1, 99], 1e6, [50, 50]),
        ([7], 3.33, [7]),
        ([1, 1, 1000], 1, [1, 1, 1000]),
    ],
)
def test_shares_by_hand(counts, temperature, shares):
    assert quotas(counts, temperature) == shares


@given(st.lists(st.integers(1, 5_000), min_size=1, max_size=8), st.floats(1, 1e6))
def test_shares_add_up_and_leave_no_language_out(counts, temperature):
    shares = quotas(counts, temperature)
    assert min(shares) >= 1
    assert abs(sum(shares) - sum(counts)) <= len(counts)
    order = np.argsort(counts, kind="stable")
    assert all(shares[a] <= shares[b] + 1 for a, b in pairwise(order))


def test_a_small_language_is_repeated_evenly_and_a_large_one_drawn_in_part():
    groups = np.array([0] * 10 + [1] * 90)
    batches = Batches(groups, 10, (3,), 2)
    seen = Counter(np.concatenate([batches.batch(step) for step in range(batches.per_epoch)]).tolist())
    small = [seen[row] for row in range(10)]
    assert sum(small) == 25  # 100 * sqrt(10) / (sqrt(10) + sqrt(90))
    assert set(small) == {2, 3}
    assert max(seen[row] for row in range(10, 100)) == 1


def test_every_epoch_is_another_order_and_a_step_is_always_the_same():
    batches, again = (Batches(np.array([0, 0, 0, 1, 1, 1, 1, 1]), 4, (0,), 3.33) for _ in range(2))
    steps = [batches.batch(step) for step in range(4)]
    assert not np.array_equal(np.concatenate(steps[:2]), np.concatenate(steps[2:]))
    for step in (3, 0, 2, 1):
        np.testing.assert_array_equal(again.batch(step), steps[step])
