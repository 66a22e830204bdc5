"""``polyalign cache`` and ``memory``."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from polyalign.cli.options import MAINTAIN, App, Json, Offline, RecipeFile, app, go_offline, print_json
from polyalign.utils.text import binary_size, clean

cache_app = App(no_args_is_help=True, help="List or delete the cached outputs of frozen layers.")
app.add_typer(cache_app, name="cache", rich_help_panel=MAINTAIN)


@cache_app.command("list", epilog="Example: polyalign cache list")
def cache_list(as_json: Json = False) -> None:
    """List what is cached: size, rows, the tower or model and photo folder, the time taken, the last use, and a name.

    Features of one tower and cut are one entry, whatever data they are of.
    """
    from polyalign.evaluation import tables
    from polyalign.serving import cache
    from polyalign.utils import storage

    found = cache.entries()
    if as_json:
        print_json([vars(entry) for entry in found])
        return
    for entry in found:
        cost = "" if entry.seconds is None else tables.duration(entry.seconds)
        used = datetime.fromtimestamp(entry.used).astimezone().strftime("%Y-%m-%d %H:%M")
        of = " of ".join(clean(part) for part in (entry.model, entry.folder) if part)
        cut = f", cut {entry.cut}" if entry.cut is not None else ""
        print(f"{binary_size(entry.bytes):>10}  {entry.rows:>8,} {entry.what:<9} {cost:>10}  {used}  {entry.name}")
        if of:
            print(f"{'':>12}{of}{cut}")
    print(f"{binary_size(sum(entry.bytes for entry in found)):>10}  in {storage.cache_folder()}")


@cache_app.command("clear", epilog="Example: polyalign cache clear")
def cache_clear(
    name: Annotated[str | None, typer.Argument(help="What to delete, by its name in `cache list`.")] = None,
) -> None:
    """Delete cached features and the vectors kept for `polyalign search`; they are computed again when needed."""
    from polyalign.serving import cache
    from polyalign.utils import storage

    print(f"{binary_size(cache.clear(name))} freed in {storage.cache_folder()}")


@cache_app.command("prune", epilog="Example: polyalign cache prune --max-gib 10")
def cache_prune(
    max_gib: Annotated[float, typer.Option(min=0, max=1e6, help="Size of the cache folder afterwards, in GiB.")],
) -> None:
    """Delete what was not used for longest, until the cache has at most a given size."""
    from polyalign.serving import cache
    from polyalign.utils import storage

    freed = cache.prune(int(max_gib * 2**30))
    for name, size in freed:
        print(f"{binary_size(size):>10}  {name}")
    print(f"{binary_size(sum(size for _, size in freed)):>10}  freed in {storage.cache_folder()}")


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
