"""What is in a page that polyalign wrote, and what every such page must keep to."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from urllib.parse import unquote

_TAGS = {
    *("html", "head", "meta", "title", "style", "body", "main", "div", "section", "footer", "h1", "h2", "h3", "h4"),
    *("p", "ul", "ol", "li", "dl", "dt", "dd", "a", "b", "strong", "em", "code", "span", "figure", "figcaption", "img"),
    *("table", "thead", "tbody", "tr", "th", "td", "svg", "line", "text", "polyline", "circle", "br"),
}
_ATTRIBUTES = {
    *("charset", "lang", "dir", "http-equiv", "content", "name", "class", "style", "src", "alt", "href", "id"),
    *("viewbox", "role", "aria-label", "x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "r", "points", "fill", "stroke"),
    *("stroke-width", "text-anchor", "font-family"),
}
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class Page(HTMLParser):
    """The text, tags, addresses and identifiers of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.text = ""
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, name: str) -> list[str]:
        """Return the values of an attribute, in order."""
        return [value or "" for _, attrs in self.tags for key, value in attrs.items() if key == name]


def checked(html: str) -> Page:
    """Parse a page, and check that it runs nothing, loads nothing and links to nothing outside."""
    page = Page(html)
    assert {tag for tag, _ in page.tags} <= _TAGS
    assert {key for _, attrs in page.tags for key in attrs} <= _ATTRIBUTES
    assert [attrs.get("content") for tag, attrs in page.tags if attrs.get("http-equiv")] == [_POLICY]
    assert all(re.match(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+\Z", source) for source in page.all("src"))
    assert all(address.startswith("#") and unquote(address[1:]) in page.all("id") for address in page.all("href"))
    assert "url(" not in html
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", html)
    return page
