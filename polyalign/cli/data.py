"""``polyalign data``, ``datasets`` and ``leakage``: get data, and check it before training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from polyalign.cli.options import (
    DATA,
    App,
    DataOption,
    Json,
    Lang,
    Offline,
    Recipe,
    Set,
    app,
    console,
    go_offline,
    interruptible,
    print_json,
    resolve,
    say,
    source_table,
)
from polyalign.utils.errors import UserError
from polyalign.utils.text import clean

data_app = App(no_args_is_help=True, help="Download published datasets, and check your own data.")
app.add_typer(data_app, name="data", rich_help_panel=DATA)


@data_app.command("get", epilog="Example: polyalign data get xtd --root data --photos test")
def get(
    name: Annotated[str, typer.Argument(help="A dataset: see `polyalign datasets`.")],
    root: Annotated[Path, typer.Option(help="Folder that contains all datasets, as suites expect.")] = Path("data"),
    photos: Annotated[
        Literal["none", "test", "all"],
        typer.Option(
            help="Photos to download as well, if freely available: those of the test set, or all (COCO: 19 GB)."
        ),
    ] = "none",
    offline: Offline = False,
) -> None:
    """Download the freely available files of a dataset, and list the files you must obtain yourself.

    If interrupted, run the same command again to continue. Files are checked against their published hashes, if known.
    """
    go_offline(offline)
    from polyalign.data.download import download_dataset
    from polyalign.utils.progress import progress_bars

    with interruptible("run the same command again to continue"), progress_bars():
        told = download_dataset(name, root, photos)
    print(told)


@data_app.command(epilog="Example: polyalign data check --data ./my-photos --lang sw")
def check(
    lang: Lang,
    data: DataOption = None,
    recipe: Recipe = "starter",
    set_: Set = None,
    recommend: Annotated[
        bool,
        typer.Option("--recommend", help="Also rank the recipes' text towers by their tokenizers on your captions."),
    ] = False,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Check every image and caption before training, and report problems.

    The splits that can be loaded are reported. The exit code is 2 if training would refuse the data: a split is empty,
    too many images cannot be read, or an image is in two splits. It is 1 if no image is found under its name.
    """
    go_offline(offline)
    from polyalign.config.language import load_language

    resolved = resolve(recipe, lang, "projection", set_, data=data)
    from polyalign.data.check import check_recipe, rank_towers, render, render_towers, verdict
    from polyalign.data.load import load_table
    from polyalign.models.towers.text_loading import load_tokenizer

    reports, errors = check_recipe(resolved, load_tokenizer(resolved.text))
    language = load_language(lang)
    fits = rank_towers(load_table(resolved, "train"), language, _tokenizers()) if recommend else []
    if as_json:
        splits = [report.model_dump(mode="json") for report in reports]
        towers = [fit.model_dump(mode="json") for fit in fits]
        print_json({"splits": splits, "towers": towers} if recommend else splits)
    else:
        console().print(*map(render, reports), *([render_towers(fits, language)] if recommend else []))
    usable, sentence = verdict(reports)
    if not as_json:
        print(clean(sentence))
    if not usable:
        raise typer.Exit(1)
    if errors:
        raise UserError("; ".join(map(str, errors)))


def _tokenizers() -> dict[tuple[str, str], Any]:
    """Load the tokenizer of every text tower that a recipe names; say which are not available."""
    from polyalign.config.resolve import recipe_languages
    from polyalign.config.resolve import resolve as resolve_recipe
    from polyalign.config.shipped import shipped_names
    from polyalign.models.towers.text_loading import load_tokenizer

    found: dict[tuple[str, str], Any] = {}
    for name in shipped_names("recipes"):
        text = resolve_recipe(name, recipe_languages(name)[0], "projection").text
        if any(model == text.model for _, model in found):
            continue
        try:
            found[name, text.model] = load_tokenizer(text)
        except UserError as error:
            say(f"recipe {name} is left out: {error}")
    return found


@data_app.command(epilog="Example: polyalign data audit ./machine-made ./by-people --lang de")
def audit(
    candidate: Annotated[
        str, typer.Argument(help="Captions to score: a source or a folder. NAME:SPLIT names a split (default: test).")
    ],
    reference: Annotated[str, typer.Argument(help="Human captions of the same images, named in the same way.")],
    lang: Lang,
    candidate_set: Annotated[
        list[str] | None, typer.Option(help="Option of the candidate source: root=./xm3600.")
    ] = None,
    reference_set: Annotated[
        list[str] | None, typer.Option(help="Option of the reference source: root=./multi30k.")
    ] = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Score captions, such as machine translations, against human captions: chrF++, BLEU and spBLEU."""
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
    name: Annotated[str | None, typer.Argument(help="Name of a dataset, for its details.")] = None,
    as_json: Json = False,
) -> None:
    """List the published datasets that polyalign reads: languages, size, licence, address."""
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
    train: Annotated[str, typer.Argument(help="A source or a folder. NAME:SPLIT names a split (default: train).")],
    test: Annotated[str, typer.Argument(help="A source or a folder. NAME:SPLIT names a split (default: test).")],
    train_set: Annotated[list[str] | None, typer.Option(help="Option of the first source: root=./flickr8k.")] = None,
    test_set: Annotated[list[str] | None, typer.Option(help="Option of the second source: root=./xtd10.")] = None,
    train_lang: Annotated[
        str,
        typer.Option(help="Language of the first source: only images with captions in it are compared."),
    ] = "en",
    test_lang: Annotated[str, typer.Option(help="The same for the second source.")] = "en",
    pixels: Annotated[bool, typer.Option(help="Compare images by perceptual hash as well as by id.")] = True,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Find the images that two sources share, by id and by perceptual hash; exit code 1 if there are any."""
    go_offline(offline)
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
