"""``polyalign eval``, ``zeroshot`` and ``retention``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from polyalign.cli.options import (
    EVALUATE,
    AllowMissing,
    DataOption,
    FinishedRun,
    Images,
    Json,
    Model,
    Offline,
    app,
    by_name,
    comma_separated,
    console,
    go_offline,
    overrides,
    print_json,
)
from polyalign.utils.errors import UserError

SetTask = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Change any key of the recipe, such as cache.precision=bf16, or an option of the task: task.NAME=VALUE.",
    ),
]


@app.command(
    "eval",
    rich_help_panel=EVALUATE,
    epilog="Example: polyalign eval runs/starter-sw-lilt-10k-pairs-s0 --lang sw,de,hi",
)
def evaluate(
    run: Model,
    lang: Annotated[
        str | None,
        typer.Option(
            callback=by_name,
            help="Languages, separated by commas; all: every language of a suite. Default: that of the run.",
        ),
    ] = None,
    task: Annotated[
        str,
        typer.Option(
            help="What to measure: retrieval, text-by-retrieval (chrF of the retrieved caption), zeroshot, retention, "
            "or one of your ./tasks. Set options of the task with --set task.NAME=VALUE."
        ),
    ] = "retrieval",
    suite: Annotated[
        str | None,
        typer.Option(
            help="Several benchmarks in one table: translated-flickr, translated-coco, crossmodal-3600, karpathy, "
            "one of your ./suites, or a path to a TOML file."
        ),
    ] = None,
    root: Annotated[Path, typer.Option(help="Folder that contains the benchmarks of a suite.")] = Path(),
    allow_absent: Annotated[
        bool, typer.Option("--allow-absent", help="Leave out benchmarks of the suite whose files are missing.")
    ] = False,
    data: DataOption = None,
    images: Images = None,
    allow_missing: AllowMissing = False,
    split: Annotated[str, typer.Option(help="Split to measure: test, dev or train.")] = "test",
    set_: SetTask = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Measure a trained run or another model, on its own data, other data or a suite of benchmarks."""
    go_offline(offline)
    langs = comma_separated(lang)
    if suite is None:
        changes = overrides(set_, data=data, images=images, allow_missing=allow_missing)
        _measure(run, task, langs, split, changes, as_json=as_json)
        return
    if data is not None or set_ or split != "test" or task != "retrieval":
        raise UserError("a suite defines its data and measures retrieval: leave out --data, --set, --split and --task")
    from polyalign.evaluation import suites
    from polyalign.evaluation.evaluate import evaluate_suite

    chosen = suites.load(suite).within(root, images, allow_missing=allow_missing)
    found = evaluate_suite(run, chosen, langs, allow_absent=allow_absent)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        console().print(suites.render(found))


@app.command(
    rich_help_panel=EVALUATE,
    epilog="Example: polyalign zeroshot runs/my-run ./imagenet/val --lang sw,am --names babel_imagenet.json",
)
def zeroshot(
    run: Model,
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
            callback=by_name,
            help="Languages of the prompts, separated by commas; all: every language that --names has. "
            "Default: that of the run.",
        ),
    ] = None,
    names: Annotated[
        str | None,
        typer.Option(
            help="Class names: a table (CSV, Excel) with the columns class and name, or class and a code such as sw; "
            "a .tsv or .json file; Babel-ImageNet's file; openai: those of CLIP for ImageNet."
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="A template with {} for the class; openai: the 80 of CLIP. Default: those of the language."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Split of a Hugging Face dataset. Default: test, or the dataset's own name for that split."),
    ] = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Classify images without training: top-1, top-5 and mean per-class accuracy."""
    go_offline(offline)
    options = {"images": images, "names": names, "split": split, "prompts": tuple(prompt or ())}
    _measure(run, "zeroshot", comma_separated(lang), "test", {"task": options}, as_json=as_json)


@app.command(rich_help_panel=EVALUATE, epilog="Example: polyalign retention runs/my-run --lang en,de")
def retention(
    run: FinishedRun,
    lang: Annotated[
        str | None,
        typer.Option(
            callback=by_name, help="Other languages to test, separated by commas. Default: those the run was tested in."
        ),
    ] = None,
    data: DataOption = None,
    images: Images = None,
    allow_missing: AllowMissing = False,
    set_: SetTask = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Measure how much of the towers' original ability is left after training."""
    go_offline(offline)
    changes = overrides(set_, data=data, images=images, allow_missing=allow_missing)
    _measure(str(run), "retention", comma_separated(lang), "test", changes, as_json=as_json)


def _measure(
    run: str, task: str, langs: tuple[str, ...], split: str, changes: dict[str, Any], *, as_json: bool
) -> None:
    from polyalign.evaluation import evaluate as evaluation

    options = changes.pop("task", {})
    results = evaluation.evaluate(run, task, langs=langs, split=split, overrides=changes, options=options)
    render = None if as_json else evaluation.renderer(task)
    if render is None:
        print_json([result.model_dump(mode="json") for result in results])
    else:
        console().print(render(results))
