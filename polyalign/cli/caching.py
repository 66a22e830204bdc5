"""``polyalign cache``."""

from __future__ import annotations

import typer

from polyalign.cli.options import Json, app, print_json

cache_app = typer.Typer(no_args_is_help=True, help="What frozen layers gave, kept on disk to be computed once.")
app.add_typer(cache_app, name="cache")


@cache_app.command("list", epilog="Example: polyalign cache list")
def cache_list(as_json: Json = False) -> None:
    """List what is kept, with its size and what it cost to compute."""
    from dataclasses import asdict

    from polyalign.evaluation import tables
    from polyalign.models import feature_cache as cache

    found = cache.list_entries()
    if as_json:
        print_json([asdict(entry) for entry in found])
        return
    for entry in found:
        cost = tables.duration(entry.seconds)
        print(f"{tables.size(entry.bytes):>10}  {entry.rows:>8,} {entry.what:<9} {cost:>10}  {entry.name}")
    print(f"{tables.size(sum(entry.bytes for entry in found)):>10}  in {cache.folder()}")


@cache_app.command("clear", epilog="Example: polyalign cache clear")
def cache_clear() -> None:
    """Delete all that is kept; it is computed again when it is needed."""
    from polyalign.evaluation import tables
    from polyalign.models import feature_cache as cache

    print(f"{tables.size(cache.clear())} freed in {cache.folder()}")
