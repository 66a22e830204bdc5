"""The search page: HTML made on the server, without JavaScript and without requests to other hosts."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from polyalign.config.language import Lang, language_codes, load_language
from polyalign.data.pairs import CorruptImageError
from polyalign.evaluation.encoders import Vectors
from polyalign.evaluation.html import environment
from polyalign.serving.index import Hit, Index, Photo
from polyalign.serving.page_limits import Guarded, Workers
from polyalign.serving.page_queries import Queries
from polyalign.serving.reopened import Reopened
from polyalign.serving.thumbnails import Thumbnails, thumbnail
from polyalign.utils.errors import UserError
from polyalign.utils.text import clean

logger = logging.getLogger(__name__)

PER_PAGE = 24
LAST_PAGE = 100
LONGEST_QUERY = 500  # characters

_TEMPLATES = Path(__file__).parent / "templates"
_THUMBNAIL_PX = 480
_LARGEST_PX = 4096  # of photos in a format that browsers do not show
_CAPTION = 300  # characters
_NUMBER = re.compile("[0-9]{1,15}")

# What browsers show as an image, never as a document.
_TYPES = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "GIF": "image/gif",
    "WEBP": "image/webp",
    "BMP": "image/bmp",
}

_MESSAGES = {404: "not_found", 413: "too_long", 503: "busy"}


@dataclass(frozen=True)
class Card:
    """A photo as the page shows it; ``caption`` is its file name if there is none."""

    id: int
    caption: str
    score: str


def page_language(spoken: str | None, chosen: str | None = None) -> Lang:
    """Return the language of the page's own texts: the chosen one, or that of the run, or English.

    Raises:
        UserError: there are no texts in the chosen language.
    """
    lang = load_language(chosen or (spoken if spoken in language_codes() else None) or "en")
    if chosen and not lang.page:
        raise UserError(f"there are no texts of the page in {lang.english_name}: add [page] to langs/{lang.code}.toml")
    return lang if lang.page else load_language("en")


class Page:
    """The pages and images of an index."""

    def __init__(
        self, index: Index, encode: Callable[[Sequence[str]], Vectors], spoken: str | None, shown: Lang
    ) -> None:
        """Show an index.

        Args:
            index: what to search.
            encode: the vectors of sentences; it is not called by two threads at once.
            spoken: code of the language of sentences and captions, None if it is not known.
            shown: the language of the page's own texts.
        """
        self._opened, self._spoken, self._shown = Reopened(index), spoken, shown
        self._queries = Queries(encode, lambda vectors, skips: self._index.search_many(vectors, skips, PER_PAGE + 1))
        self._thumbnails = Thumbnails(index.folder / ".thumbnails", _THUMBNAIL_PX)
        self._searches, self._images = Workers(threads=8, waiting=64), Workers(threads=os.cpu_count() or 1, waiting=256)
        self._template = environment(_TEMPLATES).get_template("page.html")

    def application(self, hosts: Collection[str] | None = None) -> ASGIApp:
        """Return the ASGI application; for ``hosts`` see ``Guarded``."""
        routes = [
            Route("/", self._results),
            Route("/similar/{id}", self._similar),
            Route("/thumbnail/{id}", self._thumbnail),
            Route("/photo/{id}", self._photo),
            *(_file_route(name, kind) for name, kind in (("page.css", "text/css"), ("icon.svg", "image/svg+xml"))),
        ]
        app = Starlette(
            routes=routes, exception_handlers=dict.fromkeys((HTTPException, UserError, Exception), self._error)
        )
        app.router.redirect_slashes = False  # the address would be made of the request's Host
        return Guarded(app, self._render_error(400), hosts)

    def warm_up(self) -> None:
        """Search once, so that the first request does not wait, and what cannot work fails before there is one.

        Raises:
            UserError: the vectors of the model are not those of the index.
        """
        self._search(self._texts.search, 1)

    async def _results(self, request: Request) -> Response:
        written = request.query_params.get("q", "")
        if len(written) > LONGEST_QUERY:
            raise HTTPException(413)
        query, number = clean(written), _page_number(request)
        if not query:
            return HTMLResponse(self._render(self._texts.search_photos))
        return HTMLResponse(await self._searches.run(self._search, query, number))

    async def _similar(self, request: Request) -> Response:
        return HTMLResponse(await self._searches.run(self._search_similar, _id(request), _page_number(request)))

    async def _thumbnail(self, request: Request) -> Response:
        content = await self._images.run(self._make_thumbnail, _id(request))
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    async def _photo(self, request: Request) -> Response:
        return await self._images.run(self._open_photo, _id(request))

    def _error(self, _: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            return self._render_error(error.status_code, dict(error.headers or {}))
        if isinstance(error, UserError):
            logger.warning(str(error))
        return self._render_error(500)

    def _search(self, query: str, number: int) -> str:
        hits = self._queries.hits(query, skip=(number - 1) * PER_PAGE)
        return self._render_hits(query, hits, number, {"q": query}, query=query)

    def _search_similar(self, photo_id: int, number: int) -> str:
        photo = self._known(photo_id)
        vector = self._index.vector(photo.id)
        hits = self._index.search(vector, top=PER_PAGE + 1, skip=(number - 1) * PER_PAGE, without=photo.id)
        return self._render_hits(self._texts.similar, hits, number, {}, source=self._card(photo))

    def _make_thumbnail(self, photo_id: int) -> bytes:
        try:
            return self._thumbnails.get(self._path(self._known(photo_id)))
        except (OSError, CorruptImageError) as error:
            raise HTTPException(404) from error

    def _open_photo(self, photo_id: int) -> Response:
        """Answer with the file of a photo, its type taken from its content; other formats are converted to JPEG."""
        photo = self._known(photo_id)
        path = self._path(photo)
        try:
            if kind := _type_of(path):
                name = clean(Path(photo.path).name)
                return FileResponse(path, media_type=kind, filename=name, content_disposition_type="inline")
            return Response(thumbnail(path, _LARGEST_PX), media_type="image/jpeg")
        except (OSError, CorruptImageError) as error:
            raise HTTPException(404) from error

    def _known(self, photo_id: int) -> Photo:
        photo = self._index.photo(photo_id)
        if photo is None:
            raise HTTPException(404)
        return photo

    def _path(self, photo: Photo) -> Path:
        """Return the file of a photo. One that a link leads to must be that of the time of indexing."""
        try:
            path = self._index.file(photo).resolve(strict=True)
            facts = path.stat()
        except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
            raise HTTPException(404) from error
        is_as_indexed = any(
            (entry.size, entry.mtime) == (facts.st_size, facts.st_mtime_ns)
            for entry in self._index.store.entries("id = ?", (photo.id,))
        )
        if not (path.is_file() and (is_as_indexed or path.is_relative_to(self._index.root.resolve()))):
            raise HTTPException(404)
        return path

    @property
    def _index(self) -> Index:
        return self._opened.current()

    @property
    def _texts(self) -> Any:
        return self._shown.page

    def _card(self, photo: Photo, score: float = 1.0) -> Card:
        names = ("caption", f"caption_{self._spoken}", *(name for name in photo.metadata if name.startswith("caption")))
        lines = (clean(line, _CAPTION) for name in names for line in photo.metadata.get(name, "").splitlines())
        return Card(photo.id, next(filter(None, lines), clean(Path(photo.path).name, _CAPTION)), f"{score:z.2f}")

    def _render_hits(self, title: str, hits: list[Hit], number: int, parameters: dict[str, Any], **facts: Any) -> str:
        if number > 1 and not hits:
            raise HTTPException(404)
        cards = [self._card(hit.photo, hit.score) for hit in hits[:PER_PAGE]]
        has_next = len(hits) > PER_PAGE and number < LAST_PAGE
        turns = [("previous", number - 1, number > 1), ("next", number + 1, has_next)]
        links = [(rel, parameters | {"page": to}) for rel, to, is_there in turns if is_there]
        return self._render(title, cards=cards, links=links, **facts)

    def _render_error(self, status: int, headers: dict[str, str] | None = None) -> Response:
        message = getattr(self._texts, _MESSAGES.get(status, "failed"))
        return HTMLResponse(self._render(message, status=status), status, headers)

    def _render(self, title: str, **facts: Any) -> str:
        given = {"query": None, "source": None, "cards": None, "links": [], "status": None} | facts
        return self._template.render(
            title=title, texts=self._texts, shown=self._shown, spoken=self._spoken, longest=LONGEST_QUERY, **given
        )


def _id(request: Request) -> int:
    text = request.path_params["id"]
    if not _NUMBER.fullmatch(text):
        raise HTTPException(404)
    return int(text)


def _page_number(request: Request) -> int:
    text = request.query_params.get("page", "1")
    number = int(text) if _NUMBER.fullmatch(text) else 0
    if not 1 <= number <= LAST_PAGE:
        raise HTTPException(404)
    return number


def _type_of(path: Path) -> str | None:
    """Return the type of an image that browsers show, from its content."""
    try:
        with Image.open(path, formats=tuple(_TYPES)) as image:
            return _TYPES.get(image.format or "", "image/jpeg")  # also MPO, the JPEG files of some cameras
    except (OSError, ValueError, Image.DecompressionBombWarning, Image.DecompressionBombError):
        return None


def _file_route(name: str, kind: str) -> Route:
    """Return the route of a file that belongs to the page."""
    content = (_TEMPLATES / name).read_bytes()

    async def answer(_: Request) -> Response:
        return Response(content, media_type=kind, headers={"Cache-Control": "max-age=3600"})

    return Route(f"/{name}", answer)
