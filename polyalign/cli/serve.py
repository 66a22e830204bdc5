"""``polyalign serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polyalign.cli.options import USE, Offline, app, by_name, go_offline, say
from polyalign.utils.errors import UserError


@app.command(rich_help_panel=USE, epilog="Example: polyalign serve my.index --open")
def serve(
    index: Annotated[Path, typer.Argument(help="Folder of an index, see `polyalign index build`.")],
    host: Annotated[
        str, typer.Option(help="Address to serve on. Any other than 127.0.0.1 can be reached from other machines.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to serve on; 0 takes a free one.")] = 8000,
    lang: Annotated[
        str | None,
        typer.Option(callback=by_name, help="Language of the page. Default: that of the run, or English."),
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    offline: Offline = False,
) -> None:
    """Show a page in the browser on which photos are found with a sentence, until Ctrl-C.

    The page needs no JavaScript and loads nothing from other hosts. Thumbnails are kept in the folder of the index.
    Photos that `polyalign index update` adds meanwhile are found within some seconds.
    """
    go_offline(offline)
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"the page needs {error.name}: pip install 'polyalign[serve]'") from error
    import torch

    from polyalign.serving import page_server
    from polyalign.serving.page import Page, page_language
    from polyalign.serving.page_limits import LOOPBACK
    from polyalign.serving.search import open_index, text_model
    from polyalign.utils.progress import progress_bars

    photos = open_index(index)
    page_language(None, lang)  # reports a mistake before a large model is loaded
    with page_server.bind(host, port) as opened:
        with progress_bars():
            model = text_model(photos)
        torch.set_num_threads(1)  # requests run side by side, which takes half the time of threads in each
        page = Page(photos, model.encode_text, model.lang, page_language(model.lang, lang))
        page.warm_up()
        is_local = page_server.is_loopback(opened)
        if not is_local:
            say(f"anybody who reaches {host} at this port can see all {len(photos):,} indexed photos")
        page_server.listen(opened)
        address = page_server.address_of(opened)
        print(f"{address} (Ctrl-C to stop)", flush=True)
        if show:
            _open_browser(address)
        names = (*LOOPBACK, host.lower(), opened.getsockname()[0])
        page_server.run(page.application(names if is_local else None), opened)


def _open_browser(address: str) -> None:
    """Open a page in the browser, in a thread, since browsers in the terminal return only when they are closed."""
    import threading
    import webbrowser

    def start() -> None:
        if not webbrowser.open(address):
            say("no browser was found: open the address in one")

    threading.Thread(target=start, daemon=True).start()
