"""``polyalign train``, ``repeat`` and ``strategies``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from polyalign.cli import options
from polyalign.cli.options import TRAIN, app
from polyalign.utils.errors import UserError
from polyalign.utils.text import clean


@app.command(rich_help_panel=TRAIN, epilog="Example: polyalign train --lang sw --strategy lilt --budget 1k-pairs")
def train(
    lang: options.Langs = None,
    strategy: options.Strategy = None,
    recipe: options.Recipe = "starter",
    from_: options.FinishedParent = None,
    budget: options.Budget = None,
    towers: options.Towers = None,
    layers: options.Layers = None,
    data: options.DataOption = None,
    images: options.Images = None,
    allow_missing: options.AllowMissing = False,
    parallel: options.ParallelText = None,
    seed: options.Seed = None,
    set_: options.Set = None,
    out: options.Out = None,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    track: options.Track = None,
    offline: options.Offline = False,
    as_json: options.Json = False,
) -> None:
    """Align two frozen towers on image-caption pairs, and test the result."""
    options.go_offline(offline, track)
    changes = {"budget": budget, "towers": towers, "layers": layers, "data": data, "seed": seed, "images": images}
    changes |= {"allow_missing": allow_missing, "parallel": parallel}
    if from_ is not None:
        if strategy is not None or recipe != "starter":
            raise UserError("--from takes the recipe and the strategy of its run: leave out --recipe and --strategy")
        from polyalign.experiments.run_folders import continuation

        resolved = continuation(from_, lang, options.overrides(set_, **changes))
    elif lang is None:
        raise UserError("name the language with --lang, or the run to go on from with --from")
    else:
        resolved = options.resolve(recipe, lang, strategy, set_, **changes)
    from polyalign.config.run_files import RESULT

    if recipe.endswith(".toml") and (run := Path(recipe).parent / RESULT).is_file():
        options.say(f"{recipe} is the recipe of a run: training starts anew (to go on from it: --from {run.parent})")
    from polyalign.experiments.run_folders import default_folder

    file = recipe if from_ is None else None
    folder = out or default_folder(resolved, recipe)
    _train(folder, resolved, file, resume=resume, overwrite=overwrite, track=track, as_json=as_json)


@app.command(
    rich_help_panel=TRAIN,
    epilog="Example: polyalign distill --teacher runs/english --lang qu --parallel qu-en.tsv --strategy lora",
)
def distill(
    teacher: options.Teacher,
    lang: Annotated[
        str, typer.Option(callback=options.by_name, help="Language to teach, or several separated by commas.")
    ],
    parallel: options.ParallelText = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="Recipe with the text tower of a published model's student. Default: xlmr-dinov2."),
    ] = None,
    data: options.DataOption = None,
    strategy: Annotated[str, typer.Option(help="What to train in the text tower; see `polyalign strategies`.")] = "lit",
    layers: options.Layers = None,
    seed: options.Seed = None,
    set_: options.Set = None,
    out: options.Out = None,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    track: options.Track = None,
    offline: options.Offline = False,
    as_json: options.Json = False,
) -> None:
    """Teach a text tower another language from parallel sentences, without images.

    Each sentence is trained to have the vector that the teacher gives to its translation in the pivot language. The
    teacher is a finished run, or a published model such as CLIP. The vision side is that of the teacher; images are
    used only to test the result.

    A model is taken to read English; name another language with --set parallel.pivot=es. The text tower of its student
    is that of --recipe, and --data names the images of the test.
    """
    options.go_offline(offline, track)
    from polyalign.experiments.run_folders import default_folder, distillation

    changes = options.overrides(set_, data=data, parallel=parallel, layers=layers, seed=seed)
    resolved = distillation(teacher, lang, strategy, changes, recipe)
    folder = out or default_folder(resolved, recipe or resolved.name)
    _train(folder, resolved, None, resume=resume, overwrite=overwrite, track=track, as_json=as_json)


@app.command(
    rich_help_panel=TRAIN,
    epilog="Example: polyalign repeat runs/starter-sw-lilt-10k-pairs-s0/recipe.toml --out runs/again",
)
def repeat(
    recipe: options.RecipeFile,
    out: Annotated[Path, typer.Option(help="Folder of the new run.")],
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    track: options.Track = None,
    offline: options.Offline = False,
    as_json: options.Json = False,
) -> None:
    """Repeat a run from its resolved recipe."""
    options.go_offline(offline, track)
    from polyalign.config.resolve import read_recipe

    _train(out, read_recipe(recipe), None, resume=resume, overwrite=overwrite, track=track, as_json=as_json)


@app.command(rich_help_panel=TRAIN, epilog="Example: polyalign strategies --recipe lilt-bert")
def strategies(
    recipe: options.Recipe = "starter",
    lang: options.Lang = "en",
    set_: options.Set = None,
    as_json: options.Json = False,
) -> None:
    """Count the parameters that each strategy trains, without weights and network."""
    from polyalign.models.parameter_count import count, render

    rows = count(recipe, lang, options.overrides(set_))
    if as_json:
        options.print_json([row.model_dump() for row in rows])
    else:
        options.console().print(render(rows, recipe))


def _train(
    folder: Path, recipe: Any, file: str | None, *, resume: bool, overwrite: bool, track: Any, as_json: bool
) -> None:
    """Train and show the result; ``file`` is the recipe file that ``recipe`` was resolved from, if it was."""
    from polyalign.evaluation import tables
    from polyalign.evaluation.verdict import verdict
    from polyalign.experiments.next_steps import next_commands
    from polyalign.experiments.run_folders import train_into

    with options.interruptible(f"continue with the same command and --resume (the state is in {folder})"):
        run = train_into(folder, recipe, resume=resume, overwrite=overwrite, track=track)
    if run is None:  # not the main process of several
        return
    if as_json:
        options.print_json(run.model_dump(mode="json"))
        return
    terminal = options.console()
    before = "untrained" if recipe.parent is None and recipe.teacher is None else "before"
    for own in map(run.in_language, run.langs):
        terminal.print(tables.retrieval_table(own.test[0], own.untrained, label=run.strategy, before=before))
    terminal.print(tables.run_facts(run))
    print()
    for line in verdict(run):
        print(clean(line))
    print(f"\ncheckpoint: {clean(folder)}\nnext:")
    for line in next_commands(folder, recipe, file):
        print(f"  {clean(line)}")
