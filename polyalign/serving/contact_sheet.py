"""A contact sheet: the photos that were found, as one HTML file without scripts and without other files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polyalign.data.pairs import CorruptImageError
from polyalign.evaluation import html
from polyalign.serving.search import Answer
from polyalign.serving.thumbnails import thumbnail

_PX = 320
_TEMPLATES = Path(__file__).with_name("templates")


def write(path: Path, answers: Sequence[Answer]) -> None:
    """Write the photos found for some queries as an HTML file.

    Raises:
        UserError: another file has this name, or the file cannot be written.
    """
    template = html.environment(_TEMPLATES).get_template("contact_sheet.html")
    shown = [{"query": one.query.splitlines(), "photos": list(map(_photo, one.found))} for one in answers]
    html.save(path, template.render(title=", ".join(one.query for one in answers[:3]), answers=shown))


def _photo(found: Any) -> dict[str, Any]:
    path = Path(found.path)
    picture, problem = None, None
    try:
        picture = html.data_uri(thumbnail(path, _PX), "image/jpeg")
    except (OSError, CorruptImageError) as error:
        problem = getattr(error, "strerror", None) or str(error)
    lines = [line for value in found.metadata.values() for line in value.splitlines() if line.strip()]
    link, score = path.absolute().as_uri(), f"{found.score:.3f}"
    return {"link": link, "path": found.path, "score": score, "lines": lines, "picture": picture, "problem": problem}
