"""Drawing a budget of pairs from a table: seeded, and nested from small to large."""

from __future__ import annotations

import hashlib

import numpy as np

from polyalign.config.budget import PairBudget
from polyalign.data.pairs import PairTable
from polyalign.utils.errors import UserError


def draw(table: PairTable, budget: PairBudget, seed: int) -> PairTable:
    """Draw that many pairs: the same for the same seed, and a smaller draw lies inside every larger one.

    A pair's place in the draw depends on the seed, its image id and which of the image's captions it is, and on
    nothing else. So leaving out a corrupt image changes no other choice, and where two languages have one caption an
    image they are drawn the same images.

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
