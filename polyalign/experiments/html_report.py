"""The report as one HTML file: the tables, sentences and figures of its Markdown pages, with nothing to load."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from polyalign.evaluation import html
from polyalign.experiments import pages
from polyalign.experiments.significance import Comparison
from polyalign.utils.text import safe_stem

NAME = "report.html"

_INTERVAL = re.compile(r"\[[\d.]+, [\d.]+\]")


def page(found: Sequence[Comparison], drawn: Sequence[Path]) -> str:
    """Return the file: the index, a section for each language, and the figures that were ``drawn``."""
    pictures = {path.name: html.data_uri(path.read_bytes(), "image/png") for path in drawn}
    parts = [_from_markdown(pages.index(found), 0, pictures)]
    for lang in dict.fromkeys(comparison.lang for comparison in found):
        own = [comparison for comparison in found if comparison.lang == lang]
        section = _from_markdown(pages.page(lang, own), 1, pictures)
        parts.append(Markup('<section id="{}">\n{}</section>\n').format(safe_stem(lang), section))
    return html.render("report.html", title="Comparison of training strategies", body=Markup().join(parts))


def _from_markdown(text: str, level: int, pictures: dict[str, str]) -> Markup:
    """Return a page with its headings moved down by ``level``; HTML in the text is shown, not used."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(text.replace(pages.NOTICE, ""))
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{int(token.tag[1:]) + level}"
        for inner in token.children or ():
            if inner.type == "image":
                inner.attrs["src"] = pictures[_file(inner, "src").name]
            if inner.type == "link_open":
                inner.attrs["href"] = f"#{_file(inner, 'href').stem}"
    rendered: str = parser.renderer.render(tokens, parser.options, {})
    rendered = _INTERVAL.sub(r'<span class="range">\g<0></span>', rendered)  # stays on one line
    # A table that is wider than the window is scrolled by itself.
    return Markup(rendered.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>"))


def _file(token: Token, attribute: str) -> Path:
    value: Any = token.attrs[attribute]
    return Path(unquote(value))
