"""Which rows are in the batch of a step."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


class Batches:
    """Batches of rows, epoch by epoch. A batch depends on the seed and the step alone: a run can be resumed.

    An epoch draws as many rows as there are. With several groups (languages), a group of ``n`` rows gets a share in
    proportion to ``n ** (1 / temperature)``: a small group is repeated, a large one is drawn from in part. The last
    batch of an epoch is dropped if it is not full, unless it is the only one.
    """

    def __init__(self, groups: Rows, size: int, seed: tuple[int, ...], temperature: float = 1.0) -> None:
        """Take the group of each row ``(N,)``, the number of rows in a batch, and the seed of the epochs."""
        self._members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
        self._shares = quotas([len(members) for members in self._members], temperature)
        self._size = size
        self._seed = seed
        self._order: tuple[int, Rows] | None = None
        self.per_epoch = max(1, len(groups) // size)

    def batch(self, step: int) -> Rows:
        """Return the rows of a step, counted from zero."""
        epoch, place = divmod(step, self.per_epoch)
        if self._order is None or self._order[0] != epoch:
            rng = np.random.default_rng((*self._seed, epoch))
            drawn = [_draw(members, share, rng) for members, share in zip(self._members, self._shares, strict=True)]
            self._order = epoch, drawn[0] if len(drawn) == 1 else rng.permutation(np.concatenate(drawn))
        return self._order[1][place * self._size : (place + 1) * self._size]


def quotas(counts: list[int], temperature: float) -> list[int]:
    """Divide ``sum(counts)`` draws among groups in proportion to ``count ** (1 / temperature)``, at least one each."""
    weights = np.array(counts, dtype=np.float64) ** (1 / temperature)
    exact = sum(counts) * weights / weights.sum()
    shares = np.maximum(1, np.floor(exact)).astype(np.int64)
    missing = max(0, sum(counts) - int(shares.sum()))
    for group in np.argsort(np.floor(exact) - exact, kind="stable")[:missing]:
        shares[group] += 1
    return [int(share) for share in shares]


def _draw(members: Rows, share: int, rng: np.random.Generator) -> Rows:
    """Draw rows in random order, none of them once more than another."""
    rounds = -(-share // len(members))
    return np.concatenate([rng.permutation(members) for _ in range(rounds)])[:share]
