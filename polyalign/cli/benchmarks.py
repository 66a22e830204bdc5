"""``polyalign datasets``, ``leakage`` and ``zeroshot``: what there is to test on, whether training saw it, classes."""

from __future__ import annotations

from typing import Annotated

import typer

from polyalign.cli.options import (
    Json,
    Offline,
    app,
    comma_separated,
    console,
    go_offline,
    print_json,
    source_table,
)


@app.command(epilog="Example: polyalign datasets xm3600")
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
    from polyalign.data import leakage as leaks

    first = source_table(train, train_set, train_lang, "train")
    second = source_table(test, test_set, test_lang, "test")
    from polyalign.utils.progress import progress_bars

    with progress_bars():
        found = leaks.check(first, second, pixels=pixels)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        print(found.describe())
    if found.leaks:
        raise typer.Exit(1)


@app.command(epilog="Example: polyalign zeroshot runs/my-run ./imagenet/val --lang sw,am --names babel_imagenet.json")
def zeroshot(
    run: Annotated[str, typer.Argument(help="Folder of a run; or open_clip:NAME/PRETRAINED, hf:NAME, mclip:NAME.")],
    images: Annotated[
        str,
        typer.Argument(
            help="A folder with a folder for each class; imagenet, cars, caltech101, food101, cub, aircraft or pets "
            "(see `polyalign datasets NAME`); or another Hugging Face dataset."
        ),
    ],
    lang: Annotated[
        str | None,
        typer.Option(
            help="Languages of the prompts, separated by commas; the run's own when not given; all of Babel-ImageNet's."
        ),
    ] = None,
    names: Annotated[
        str | None,
        typer.Option(
            help="Names of the classes: a .tsv, a .json or Babel-ImageNet's file; openai for CLIP's own of ImageNet."
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="A template with {} for the class; the language's own when not given; openai for CLIP's 80."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Which split of a Hugging Face dataset; test, or what a known one calls it.")
    ] = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Classify images by the prompt they are nearest to: top-1, top-5 and the mean over classes."""
    go_offline(offline)
    from polyalign.evaluation import tables
    from polyalign.experiments import run_folders as runs

    results = runs.classify(run, images, list(comma_separated(lang)), names, split, tuple(prompt or ()))
    if as_json:
        print_json([result.model_dump(mode="json") for result in results])
    else:
        console().print(tables.zeroshot_table(results))
