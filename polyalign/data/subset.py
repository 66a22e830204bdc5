"""Seeded, nested subsets of pairs for a budget."""

from __future__ import annotations

import hashlib

import numpy as np

from polyalign.config.budget import PairBudget
from polyalign.data.pairs import PairTable
from polyalign.utils.errors import UserError


def draw(table: PairTable, budget: PairBudget, seed: int) -> PairTable:
    """Draw the budgeted number of pairs; with the same seed, smaller subsets are contained in larger ones.

    A pair's rank depends only on the seed, its image id and its index among the image's captions. Leaving out a
    corrupt image therefore does not change the rest of the draw, and languages with one caption per image get the same
    images.

    Raises:
        UserError: the table has fewer pairs than the budget.
    """
    if budget.pairs > len(table):
        raise UserError(
            f"{table.name} has {len(table):,} pairs for {table.lang}, fewer than {budget}: reduce the budget"
        )
    places = np.array([_place(table, c, nth, seed) for c, nth in enumerate(table.caption_ranks())], dtype=np.uint64)
    return table.take_pairs(np.sort(np.argsort(places, kind="stable")[: budget.pairs]))


def _place(table: PairTable, caption: int, nth: int, seed: int) -> int:
    text = f"{seed}\n{table.image_ids[table.image_of[caption]]}\n{nth}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
