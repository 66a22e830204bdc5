"""``polyalign data``, ``datasets`` and ``leakage``: get data, and check it before training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from polyalign.cli.options import (
    DATA,
    DataOption,
    Json,
    Lang,
    Offline,
    Recipe,
    Set,
    app,
    console,
    go_offline,
    print_json,
    resolve,
    say,
    source_table,
)

data_app = typer.Typer(no_args_is_help=True, help="Download published datasets, and check your own data.")
app.add_typer(data_app, name="data", rich_help_panel=DATA)


@data_app.command("get", epilog="Example: polyalign data get xtd --root data --photos test")
def get(
    name: Annotated[str, typer.Argument(help="A dataset: see `polyalign datasets`.")],
    root: Annotated[Path, typer.Option(help="Folder in which datasets lie side by side, as suites expect.")] = Path(
        "data"
    ),
    photos: Annotated[
        Literal["none", "test", "all"],
        typer.Option(help="Also photos, where anyone may download them: those of the test set, or all (COCO: 19 GB)."),
    ] = "none",
) -> None:
    """Download what of a dataset anyone may download; say what to place where for the rest.

    Interrupted, the same command goes on where it stopped. Files with known hashes are checked against them.
    """
    from polyalign.data.download import download_dataset
    from polyalign.utils.progress import progress_bars

    try:
        with progress_bars():
            told = download_dataset(name, root, photos)
    except KeyboardInterrupt:
        say("interrupted; the same command goes on where it stopped")
        raise typer.Exit(130) from None
    print(told)


@data_app.command(epilog="Example: polyalign data check --data ./my-photos --lang sw")
def check(
    lang: Lang,
    data: DataOption = None,
    recipe: Recipe = "starter",
    set_: Set = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Read every image and caption as training would, and say what is wrong with them."""
    go_offline(offline)
    from polyalign.data.check import check_recipe, render
    from polyalign.models.towers.text import load_tokenizer

    resolved = resolve(recipe, lang, "projection", set_, data=data)
    reports = check_recipe(resolved, load_tokenizer(resolved.text))
    if as_json:
        print_json([report.model_dump(mode="json") for report in reports])
    else:
        console().print(*map(render, reports))


@data_app.command(epilog="Example: polyalign data audit ./machine-made ./by-people --lang de")
def audit(
    candidate: Annotated[str, typer.Argument(help="Captions to score: a source or a folder; NAME:SPLIT but for test.")],
    reference: Annotated[str, typer.Argument(help="Captions of the same images by people, told in the same way.")],
    lang: Lang,
    candidate_set: Annotated[list[str] | None, typer.Option(help="An option of the first: root=./xm3600.")] = None,
    reference_set: Annotated[list[str] | None, typer.Option(help="An option of the second: root=./multi30k.")] = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Score captions, such as machine-made ones, against those of people: chrF++, BLEU and spBLEU."""
    go_offline(offline)
    from polyalign.config.language import load_language
    from polyalign.data.audit import render, score_captions

    scored = source_table(candidate, candidate_set, lang, "test")
    against = source_table(reference, reference_set, lang, "test")
    found = score_captions(scored, against, load_language(lang))
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        console().print(render(found))


@app.command(rich_help_panel=DATA, epilog="Example: polyalign datasets xm3600")
def datasets(
    name: Annotated[str | None, typer.Argument(help="One of them, to be told in full.")] = None,
    as_json: Json = False,
) -> None:
    """List the published datasets that can be read: languages, size, licence, where to get them."""
    from polyalign.data import catalogue

    if as_json:
        known = catalogue.everything() if name is None else {name: catalogue.facts(name)}
        print_json({key: info.model_dump() for key, info in known.items()})
    elif name is None:
        console().print(catalogue.render(catalogue.infos()), catalogue.render_labelled())
    else:
        print(catalogue.describe(name))


@app.command(
    rich_help_panel=DATA,
    epilog="Example: polyalign leakage ./my-photos xtd --test-set root=./xtd10 --test-set images=./coco",
)
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
    from polyalign.data.leakage import find_leaks

    first = source_table(train, train_set, train_lang, "train")
    second = source_table(test, test_set, test_lang, "test")
    from polyalign.utils.progress import progress_bars

    with progress_bars():
        found = find_leaks(first, second, pixels=pixels)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        print(found.describe())
    if found.leaks:
        raise typer.Exit(1)
