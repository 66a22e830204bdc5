"""A contact sheet: the photos that were found, as one HTML file without scripts and without other files."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from polyalign.data.pairs import CorruptImageError
from polyalign.serving.search import Answer
from polyalign.serving.thumbnails import thumbnail
from polyalign.utils import storage
from polyalign.utils.text import UNSAFE

_PX = 320
_PAGE = """<!DOCTYPE html>
<html>
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font-family: system-ui, sans-serif; margin: 1.5rem; }}
ol {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(12rem, 1fr)); gap: 1rem; padding: 0; }}
li {{ list-style: none; }}
img, p.no-image {{ width: 100%; height: 12rem; object-fit: contain; background: #eee; margin: 0; }}
li p {{ margin: 0.2rem 0; overflow-wrap: anywhere; font-size: 0.9rem; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def write(path: Path, answers: Sequence[Answer]) -> None:
    """Write the photos found for some queries as an HTML file.

    Raises:
        UserError: the file cannot be written.
    """
    body = "\n".join(f"<h1 dir=auto>{_text(one.query)}</h1>\n<ol>\n{_items(one)}\n</ol>" for one in answers)
    title = _text(", ".join(one.query for one in answers[:3]))
    storage.write_text(path, _PAGE.format(title=title, body=body))


def _items(answer: Answer) -> str:
    items = []
    for found in answer.found:
        path, lines = Path(found.path), "\n".join(found.metadata.values())
        text = f"<p>{found.score:.3f} <span dir=auto>{_text(found.path)}</span></p><p dir=auto>{_text(lines)}</p>"
        items.append(f'<li><a href="{html.escape(path.absolute().as_uri())}">{_picture(path)}</a>{text}</li>')
    return "\n".join(items)


def _picture(path: Path) -> str:
    try:
        data = base64.b64encode(thumbnail(path, _PX)).decode()
    except (OSError, CorruptImageError) as error:
        return f"<p class=no-image>{_text(getattr(error, 'strerror', None) or error)}</p>"
    return f'<img alt="{_text(path.name)}" src="data:image/jpeg;base64,{data}">'


def _text(value: object) -> str:
    """Return text for HTML, with line breaks and without characters that reorder or hide others."""
    return "<br>".join(html.escape(UNSAFE.sub(" ", line)) for line in str(value).split("\n") if line.strip())
