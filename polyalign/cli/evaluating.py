"""``polyalign eval``, ``knowledge`` and ``search``: what a trained run can do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from polyalign.cli.options import (
    AllowMissing,
    DataOption,
    Images,
    Json,
    Offline,
    Set,
    app,
    comma_separated,
    console,
    go_offline,
    overrides,
    print_json,
)
from polyalign.utils.errors import UserError, did_you_mean


@app.command("eval", epilog="Example: polyalign eval runs/starter-sw-lilt-10k-pairs-s0 --lang sw,de,hi")
def evaluate(
    run: Annotated[str, typer.Argument(help="Folder of a run; or open_clip:NAME/PRETRAINED, hf:NAME, mclip:NAME.")],
    lang: Annotated[
        str | None, typer.Option(help="Languages, separated by commas; the run's own when not given; all in a suite.")
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            help="Several benchmarks in one table: translated-flickr, translated-coco, crossmodal-3600, karpathy, "
            "one of your ./suites, or a path to a TOML file."
        ),
    ] = None,
    root: Annotated[Path, typer.Option(help="Folder in which a suite's benchmarks lie.")] = Path(),
    allow_absent: Annotated[
        bool, typer.Option("--allow-absent", help="Leave out benchmarks of the suite that are not at hand.")
    ] = False,
    data: DataOption = None,
    images: Images = None,
    allow_missing: AllowMissing = False,
    split: Annotated[str, typer.Option(help="Which split: test, dev or train.")] = "test",
    evaluator: Annotated[
        str,
        typer.Option(
            help="retrieval, or text-by-retrieval: chrF of the caption an image retrieves against its other captions. "
            "The commands zeroshot and knowledge are the others."
        ),
    ] = "retrieval",
    set_: Set = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Measure retrieval of a trained run or another model in languages, on its own data, other data or a suite."""
    go_offline(offline)
    from polyalign.evaluation import suites, tables
    from polyalign.experiments import run_folders as runs

    kinds: dict[str, tuple[Any, Any]] = {
        "retrieval": (runs.evaluate, tables.retrieval_overview),
        "text-by-retrieval": (runs.evaluate_texts, tables.text_by_retrieval_table),
    }
    if evaluator not in kinds:
        raise UserError(f'unknown evaluator "{evaluator}": {did_you_mean(evaluator, kinds)}')
    if suite is not None:
        if data is not None or set_ or split != "test" or evaluator != "retrieval":
            raise UserError(
                "a suite names its data and measures retrieval: leave out --data, --set, --split, --evaluator"
            )
        asked = suites.load(suite).within(root, images, allow_missing=allow_missing)
        found = runs.evaluate_suite(run, asked, list(comma_separated(lang)), allow_absent=allow_absent)
        if as_json:
            print_json(found.model_dump(mode="json"))
        else:
            console().print(suites.render(found))
        return
    changes = overrides(set_, data=data, images=images, allow_missing=allow_missing)
    measure, show = kinds[evaluator]
    results = measure(run, list(comma_separated(lang)), split, changes)
    if as_json:
        print_json([result.model_dump(mode="json") for result in results])
    else:
        console().print(show(results))


@app.command(epilog="Example: polyalign knowledge runs/my-run --lang en,de")
def knowledge(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    lang: Annotated[
        str | None,
        typer.Option(
            help="Other languages to ask in, separated by commas; those the run was tested in when not given."
        ),
    ] = None,
    data: DataOption = None,
    images: Images = None,
    allow_missing: AllowMissing = False,
    set_: Set = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Measure what a run's towers could do before training and still can: translations found, a probe, distances."""
    go_offline(offline)
    from polyalign.evaluation import tables
    from polyalign.experiments import run_folders as runs

    changes = overrides(set_, data=data, images=images, allow_missing=allow_missing)
    kept = runs.retention(run, list(comma_separated(lang)), changes)
    if as_json:
        print_json(kept.model_dump(mode="json"))
    else:
        console().print(tables.retention_table(kept))


@app.command(epilog='Example: polyalign search runs/my-run "mbwa mweusi kwenye nyasi" --images ./photos')
def search(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    query: Annotated[str, typer.Argument(help="What the photo should show, in the run's language.")],
    images: Annotated[Path, typer.Option(help="Folder of photos.")],
    top: Annotated[int, typer.Option(min=1, help="How many to show.")] = 10,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Find the photos of a folder that best fit a sentence."""
    from dataclasses import asdict

    go_offline(offline)
    from polyalign.serving import search as searching
    from polyalign.utils.progress import progress_bars

    with progress_bars():
        found = searching.search(run, images, query, top)
    if as_json:
        print_json([asdict(photo) for photo in found])
        return
    for photo in found:
        print(f"{photo.score:.3f}  {photo.path}")
