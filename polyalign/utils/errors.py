"""The one error a user is meant to read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. The command line shows it as one line and exits with code 2.

    The message says what is wrong and what to do about it; nothing below the command line catches it.
    """


class AbsentError(UserError):
    """Files that the user was to place are not there; a suite may be told to go on without them."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Give ``did you mean "x"?`` for the nearest known name, else the list of all known names."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if near:
        return f'did you mean "{near[0]}"? (known: {", ".join(names)})'
    return f"known: {', '.join(names) or 'none'}"
