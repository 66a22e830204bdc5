"""A lock on a folder, so that two processes never write into it at the same time."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from polyalign.utils.errors import UserError
from polyalign.utils.storage import cannot_write, write_text
from polyalign.utils.text import clean

LOCK, OWNER = ".polyalign.lock", ".polyalign.owner.json"
LOCK_FILES = (LOCK, OWNER)
"""The files that ``locked`` may leave in a folder."""


class InUseError(UserError):
    """A folder that another process has locked."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is created if necessary; the operating system releases it if the process dies.

    Folders that were created and are left empty are deleted again.

    Raises:
        InUseError: another process holds it; the message names its host and process id, and since when it holds it.
        UserError: the folder cannot be written to.
    """
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, blocking=False)
        lock.acquire()
    except Timeout:
        raise InUseError(f"{folder} is in use{_owner(folder)}: wait until it ends, or choose another folder") from None
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": since}
        write_text(folder / OWNER, json.dumps(owner))
        yield
    finally:
        (folder / OWNER).unlink(missing_ok=True)
        with suppress(OSError):  # deleted or filled by others
            if new and [path.name for path in folder.iterdir()] == [LOCK]:
                (folder / LOCK).unlink()
                for place in new:
                    place.rmdir()
        lock.release()


def _owner(folder: Path) -> str:
    """Describe the process that holds the lock, as far as it is known."""
    try:
        facts = json.loads((folder / OWNER).read_text(encoding="utf-8"))
        return f" by process {facts['pid']:d} on {clean(facts['host'], 80)} since {clean(facts['since'], 40)}"
    except (OSError, ValueError, TypeError, KeyError):
        return ""
