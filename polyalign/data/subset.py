"""Drawing a budget of pairs from a table: seeded, and nested from small to large."""

from __future__ import annotations

import hashlib

import numpy as np

from polyalign.config.budget import PairBudget
from polyalign.data.pairs import PairTable
from polyalign.utils.errors import UserError


def draw(table: PairTable, budget: PairBudget, seed: int) -> PairTable:
    """Return a random subset of pairs; for one seed, a smaller subset is contained in every larger one.

    A pair's place in the draw depends only on the seed, its image id and the rank of the caption among its image's. So
    leaving out a corrupt image changes no other choice, and two languages with one caption per image get the same
    images.

    Raises:
        UserError: the table has fewer pairs.
    """
    if budget.pairs > len(table):
        raise UserError(f"{table.name} has {len(table):,} pairs for {table.lang}, fewer than {budget}: ask for fewer")
    places = np.array([_place(table, c, nth, seed) for c, nth in enumerate(table.caption_ranks())], dtype=np.uint64)
    return table.take_pairs(np.sort(np.argsort(places, kind="stable")[: budget.pairs]))


def _place(table: PairTable, caption: int, nth: int, seed: int) -> int:
    text = f"{seed}\n{table.image_ids[table.image_of[caption]]}\n{nth}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
