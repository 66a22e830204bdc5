"""Queries of several threads, encoded and searched together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from polyalign.evaluation.encoders import Vectors
from polyalign.serving.index import Hit, Vector

_KEPT = 1024  # 2 MiB of vectors at 512 dimensions


@dataclass(frozen=True)
class _Asked:
    query: str
    skip: int
    answer: Future[list[Hit]] = field(default_factory=Future)


class Queries:
    """Answers queries in batches: those that arrive while others are answered make up the next batch.

    A batch is encoded at once and read through the index at once. Vectors of the last 1,024 queries are kept.
    """

    def __init__(
        self,
        encode: Callable[[Sequence[str]], Vectors],
        search: Callable[[Sequence[Vector], Sequence[int]], list[list[Hit]]],
    ) -> None:
        """Answer with two functions, which are called in a thread of their own, as fast tokenizers require.

        Args:
            encode: the vectors ``(N, D)`` of N sentences.
            search: the best photos for each of N vectors, without as many of the better ones as the number says.
        """
        self._encode, self._search = encode, search
        self._listing, self._worker = threading.Lock(), ThreadPoolExecutor(1)
        self._waiting: list[_Asked] = []
        self._vectors: dict[str, Vector] = {}

    def hits(self, query: str, skip: int = 0) -> list[Hit]:
        """Return the best photos for a query, without the first ``skip``."""
        asked = _Asked(query, skip)
        with self._listing:
            self._waiting.append(asked)
        self._worker.submit(self._answer_waiting)
        return asked.answer.result()

    def _answer_waiting(self) -> None:
        with self._listing:
            batch, self._waiting = self._waiting, []
        if not batch:
            return
        try:
            if new := list(dict.fromkeys(asked.query for asked in batch if asked.query not in self._vectors)):
                self._vectors.update(zip(new, self._encode(new), strict=True))
            found = self._search([self._vectors[asked.query] for asked in batch], [asked.skip for asked in batch])
        except BaseException as error:  # noqa: BLE001 - raised where the answer is awaited
            for asked in batch:
                asked.answer.set_exception(error)
            return
        for asked, hits in zip(batch, found, strict=True):
            asked.answer.set_result(hits)
        while len(self._vectors) > _KEPT:
            del self._vectors[next(iter(self._vectors))]
