"""Tables for the terminal, apart from ``text``, which every command imports: rich takes time to import."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from polyalign.utils.text import UNSAFE, clean

_LEAST = 12
"""Width in columns down to which a column that may be folded can shrink."""


class PlainTable(Table):
    """A table for the terminal that shows text as it is, without markup and control characters.

    On a terminal that is too narrow for its numbers, each row is shown as a list of its cells: no number is cut.
    """

    def __init__(self, *headers: Any, title: str | None = None, caption: str | None = None, **options: Any) -> None:
        """Make an empty table, with ``rich.table.Table``'s options; only ``caption`` can have several lines."""
        notes = [escape(clean(line)) for line in caption.split("\n")] if caption else []
        super().__init__(*headers, title=title and escape(clean(title)), caption="\n".join(notes) or None, **options)
        self._texts: list[tuple[str, ...]] = []

    def add_row(self, *cells: Any, **options: Any) -> None:
        """Add a row of texts."""
        self._texts.append(tuple(UNSAFE.sub(" ", cell) for cell in cells))
        super().add_row(*map(Text, self._texts[-1]), **options)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render the table, or its rows as lists if it does not fit."""
        if self._least_width() <= options.max_width:
            yield from super().__rich_console__(console, options)
        else:
            yield from self._as_lists()

    def _least_width(self) -> int:
        widths = []
        for column, cells in zip(self.columns, zip_longest(*self._texts, fillvalue=""), strict=False):
            lines = [line for cell in (str(column.header), *cells) for line in cell.splitlines()]
            longest = max(map(cell_len, lines), default=0)
            widths.append(longest if column.no_wrap else min(longest, column.min_width or _LEAST))
        left, right = self.padding[3], self.padding[1]
        of_box = 0 if self.box is None else len(widths) - 1 + 2 * self.show_edge
        return sum(widths) + (left + right) * len(widths) + of_box

    def _as_lists(self) -> Iterator[Text]:
        if self.title:
            yield Text.from_markup(str(self.title), style="italic")
        names = [" ".join(str(column.header).split()) for column in self.columns]
        width = max(map(cell_len, names[1:]), default=0)
        for first, *others in self._texts:
            yield Text(first.strip(), style="bold")
            for name, cell in zip(names[1:], others, strict=False):
                if cell:
                    yield Text(f"  {name:<{width}}  {cell}")
        if self.caption:
            yield Text.from_markup(str(self.caption), style="dim")
