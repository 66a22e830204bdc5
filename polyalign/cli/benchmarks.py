"""``polyalign datasets`` and ``leakage``: what there is to train and test on, and whether the two share photos."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from polyalign.cli.shared import Json, app, console, print_json


@app.command(epilog="Example: polyalign datasets xm3600")
def datasets(
    name: Annotated[str | None, typer.Argument(help="One of them, to be told in full.")] = None,
    as_json: Json = False,
) -> None:
    """List the published datasets that can be read: languages, size, licence, where to get them."""
    from polyalign import catalogue

    if as_json:
        known = catalogue.infos() if name is None else {name: catalogue.info(name)}
        print_json({key: info.model_dump() for key, info in known.items()})
    elif name is None:
        console().print(catalogue.render(catalogue.infos()))
    else:
        print(catalogue.describe(name))


@app.command(epilog="Example: polyalign leakage ./my-photos xtd --test-set root=./xtd10 --test-set images=./coco")
def leakage(
    train: Annotated[str, typer.Argument(help="A source or a folder; NAME:SPLIT for another split than train.")],
    test: Annotated[str, typer.Argument(help="A source or a folder; NAME:SPLIT for another split than test.")],
    train_set: Annotated[list[str] | None, typer.Option(help="An option of the first: root=./flickr8k.")] = None,
    test_set: Annotated[list[str] | None, typer.Option(help="An option of the second: root=./xtd10.")] = None,
    train_lang: Annotated[str, typer.Option(help="Language whose captions say which images the first has.")] = "en",
    test_lang: Annotated[str, typer.Option(help="The same of the second.")] = "en",
    pixels: Annotated[bool, typer.Option(help="Compare what the images look like too, not their ids alone.")] = True,
    as_json: Json = False,
) -> None:
    """Find the images that two sources share, by their ids and by what they look like; exit code 1 if there are any."""
    from polyalign import leakage as leaks
    from polyalign import progress

    first, second = _table(train, train_set, train_lang, "train"), _table(test, test_set, test_lang, "test")
    with progress.display() as report:
        found = leaks.check(first, second, pixels=pixels, progress=report)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        print(found.describe())
    if found.leaks:
        raise typer.Exit(1)


def _table(text: str, sets: list[str] | None, lang: str, split: str) -> Any:
    from polyalign import recipe as recipes
    from polyalign import source_spec

    spec, named = source_spec.parse(text, recipes.parse_set(sets or []))
    return spec.load(lang, named or split)
