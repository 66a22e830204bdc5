"""``polyalign cache`` and ``memory``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polyalign.cli.options import MAINTAIN, App, Json, Offline, RecipeFile, app, go_offline, print_json
from polyalign.utils.text import binary_size, clean

cache_app = App(no_args_is_help=True, help="List or delete the cached outputs of frozen layers.")
app.add_typer(cache_app, name="cache", rich_help_panel=MAINTAIN)


@cache_app.command("list", epilog="Example: polyalign cache list")
def cache_list(as_json: Json = False) -> None:
    """List cached features, with their size and the time taken to compute them."""
    from polyalign.evaluation import tables
    from polyalign.models.feature_cache import folder, list_entries

    found = list_entries()
    if as_json:
        print_json([{key: getattr(one, key) for key in ("name", "what", "rows", "bytes", "seconds")} for one in found])
        return
    for entry in found:
        cost, what, name = tables.duration(entry.seconds), clean(entry.what), clean(entry.name)
        print(f"{binary_size(entry.bytes):>10}  {entry.rows:>8,} {what:<9} {cost:>10}  {name}")
    print(f"{binary_size(sum(entry.bytes for entry in found)):>10}  in {folder()}")


@cache_app.command("clear", epilog="Example: polyalign cache clear")
def cache_clear() -> None:
    """Delete all cached features and the vectors kept for `polyalign search`; they are computed again when needed."""
    from polyalign.models.feature_cache import clear, folder
    from polyalign.serving.search import clear_kept

    print(f"{binary_size(clear() + clear_kept())} freed in {folder().parent}")


@app.command(rich_help_panel=MAINTAIN, epilog="Example: polyalign memory runs/starter-sw-lilt-10k-pairs-s0/recipe.toml")
def memory(
    recipe: RecipeFile,
    out: Annotated[Path | None, typer.Option(help="File to write the result to, as JSON.")] = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Train two steps with a resolved recipe, and measure the peak memory."""
    import json

    go_offline(offline)
    from polyalign.config.resolve import read_recipe
    from polyalign.experiments.micro_batch import peak_of
    from polyalign.utils import storage
    from polyalign.utils.progress import progress_bars

    with progress_bars():
        held = peak_of(read_recipe(recipe))
    if out is not None:
        storage.write_text(out, json.dumps({"bytes": held}))
    if as_json:
        print_json({"bytes": held})
    else:
        print(binary_size(held))
