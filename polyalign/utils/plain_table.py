"""Tables for the terminal, apart from ``text``, which every command imports: rich takes time to import."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from polyalign.utils.text import UNSAFE, clean


class PlainTable(Table):
    """A table for the terminal that shows text as it is, without markup and control characters."""

    def __init__(self, *headers: Any, title: str | None = None, caption: str | None = None, **options: Any) -> None:
        """Make an empty table, with ``rich.table.Table``'s options; only ``caption`` can have several lines."""
        notes = [escape(clean(line)) for line in caption.split("\n")] if caption else []
        super().__init__(*headers, title=title and escape(clean(title)), caption="\n".join(notes) or None, **options)

    def add_row(self, *cells: Any, **options: Any) -> None:
        """Add a row of texts."""
        super().add_row(*(Text(UNSAFE.sub(" ", cell)) for cell in cells), **options)
