"""Pages to look at: one self-contained HTML file each, without scripts and without anything to load."""

from __future__ import annotations

import base64
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from polyalign.utils import storage
from polyalign.utils.errors import UserError
from polyalign.utils.text import clean

_MADE_BY = b'<meta name="generator" content="polyalign">'
_HEAD_BYTES = 1000


def render(template: str, **values: object) -> str:
    """Return a page made from a template of this package.

    Each value is escaped, and shown as one line without control characters, whatever file it comes from.
    """
    return environment(Path(__file__).with_name("templates")).get_template(template).render(**values)


@cache
def environment(folder: Path) -> Environment:
    """Return the environment of the templates in a folder, in which each value is escaped and cleaned."""
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else clean(value),
        trim_blocks=True,
        lstrip_blocks=True,
    )


def data_uri(content: bytes, kind: str) -> str:
    """Return a file as an address that contains it; ``kind`` is its MIME type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def refuse_foreign(path: Path, mark: bytes = _MADE_BY) -> None:
    """Check that a file to be replaced is of the same kind, which has ``mark`` near its beginning: pages by default.

    Raises:
        UserError: it is another file, or a folder.
    """
    if not path.exists() and not path.is_symlink():
        return
    if path.is_file():
        with path.open("rb") as file:
            if mark in file.read(_HEAD_BYTES):
                return
    raise UserError(f"{path} was not written by polyalign: move it away, or choose another name")


def save(path: Path, page: str) -> None:
    """Write a page; only an earlier page is replaced.

    Raises:
        UserError: another file has this name, or the folder cannot be written to.
    """
    refuse_foreign(path)
    storage.write_text(path, page)
