"""Vectors of the queries of several threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from polyalign.evaluation.encoders import Vectors
from polyalign.serving.index import Vector

_KEPT = 1024  # 2 MiB of vectors at 512 dimensions


class Queries:
    """Encodes queries: those that arrive while others are encoded make up the next batch; the last 1,024 are kept."""

    def __init__(self, encode: Callable[[Sequence[str]], Vectors]) -> None:
        """Encode with a function that is not called by two threads at once, as fast tokenizers require."""
        self._encode = encode
        self._listing, self._encoding = threading.Lock(), threading.Lock()
        self._known: dict[str, Future[Vector]] = {}
        self._waiting: dict[str, Future[Vector]] = {}

    def vector(self, query: str) -> Vector:
        """Return the vector ``(D,)`` of a query."""
        with self._listing:
            future = self._known.get(query)
            if future is None:
                future = self._known[query] = self._waiting[query] = Future()
                if len(self._known) > _KEPT:
                    del self._known[next(iter(self._known))]
        if not future.done():
            with self._encoding:
                self._encode_waiting()
        return future.result()

    def _encode_waiting(self) -> None:
        with self._listing:
            batch, self._waiting = self._waiting, {}
        if not batch:
            return
        try:
            vectors = self._encode(list(batch))
        except BaseException as error:
            for query, future in batch.items():
                self._known.pop(query, None)
                future.set_exception(error)
            raise
        for future, vector in zip(batch.values(), vectors, strict=True):
            future.set_result(vector)
