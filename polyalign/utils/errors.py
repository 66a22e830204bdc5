"""The exception for errors that a user can cause, and name suggestions."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM)
"""Numbers of the errors of a disk rather than of what is written to it."""


class UserError(Exception):
    """Bad input. The command line shows it as one line and exits with code 2.

    The message says what is wrong and how to fix it.
    """


class AbsentError(UserError):
    """Files that the user has to provide are missing; a suite can skip them."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text that is not empty, or the name of its class."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``did you mean "x"?`` with the closest known name, followed by all known names."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if near:
        return f'did you mean "{near[0]}"? (known: {", ".join(names)})'
    return f"known: {', '.join(names) or 'none'}"
