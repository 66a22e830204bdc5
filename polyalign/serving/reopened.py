"""An index that is opened again after it was updated."""

from __future__ import annotations

import threading
import time

from polyalign.serving.index import Index
from polyalign.utils.errors import UserError

_SECONDS = 2  # between two looks at the folder
_SHARE = 20  # opening takes at most one part in 20 of the time, also while a large index is being updated


class Reopened:
    """The newest state of an index, for several threads."""

    def __init__(self, index: Index) -> None:
        """Begin with an open index."""
        self._index = index
        self._lock = threading.Lock()
        self._next = time.monotonic() + _SECONDS

    def current(self) -> Index:
        """Return the index as it was at most some seconds ago.

        While one thread opens it again, the others get the earlier state.

        Raises:
            UserError: the index is damaged now, or has vectors of another model.
        """
        if time.monotonic() >= self._next and self._lock.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._lock.release()
        return self._index

    def _look(self) -> None:
        if not self._index.is_current:
            began = time.monotonic()
            newer = Index.open(self._index.folder)
            if newer.store.facts["identity"] != self._index.store.facts["identity"]:
                raise UserError(f"{newer.folder} has vectors of another model now: start `polyalign serve` again")
            self._index = newer
            self._next = began + _SHARE * (time.monotonic() - began)
        self._next = max(self._next, time.monotonic() + _SECONDS)
