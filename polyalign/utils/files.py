"""Files before they are read."""

from __future__ import annotations

from pathlib import Path

from polyalign.utils.errors import UserError
from polyalign.utils.text import clean


def check_is_file(path: Path, what: str = "") -> None:
    """Check that a path, if it exists, is a plain file: reading a pipe or a device could take forever.

    Raises:
        UserError: it is something else; ``what`` it should be stands before the path in the message.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"cannot read {what}{clean(path)}: it is not a file but a folder, pipe or device")
