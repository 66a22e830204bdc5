"""The command line: parse, call, show. Heavy imports wait until a command needs them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from polyalign.errors import UserError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Align a vision tower with a multilingual text tower on scarce pairs, and see what it is worth.",
)
data_app = typer.Typer(no_args_is_help=True, help="Look at your data before you train on it.")
pretrain_app = typer.Typer(
    no_args_is_help=True, help="Pretrain a tower alone: images without text, or text without images."
)
app.add_typer(data_app, name="data")
app.add_typer(pretrain_app, name="pretrain")
cache_app = typer.Typer(no_args_is_help=True, help="What frozen layers gave, kept on disk to be computed once.")
app.add_typer(cache_app, name="cache")

Lang = Annotated[str, typer.Option(help="Language code, as in langs/.")]
Recipe = Annotated[str, typer.Option(help="A shipped recipe, one of your ./recipes, or a path to a TOML file.")]
Strategy = Annotated[str | None, typer.Option(help="What trains: see `polyalign strategies`.")]
Budget = Annotated[str | None, typer.Option(help="How many pairs to train on, such as 1k-pairs.")]
DataOption = Annotated[
    str | None, typer.Option("--data", help="A folder with captions and images, or the name of a source.")
]
Set = Annotated[list[str] | None, typer.Option("--set", help="Change any key of the recipe: --set optim.lr=3e-4.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON in place of tables.")]
Offline = Annotated[bool, typer.Option(help="Never ask the network: use local folders and what is already downloaded.")]


def main() -> None:
    """Run the command line; bad input is one line on standard error and exit code 2."""
    try:
        sys.exit(app(standalone_mode=False))
    except (UserError, typer.TyperException) as error:
        message = error.format_message() if isinstance(error, typer.TyperException) else str(error)
        if message:  # a group of commands without one of them has shown its help
            print(f"error: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)


@app.command(epilog="Example: polyalign train --lang sw --strategy lilt --budget 1k-pairs")
def train(
    lang: Lang,
    strategy: Strategy = None,
    recipe: Recipe = "starter",
    budget: Budget = None,
    towers: Annotated[str | None, typer.Option(help="Which towers to adapt: both, vision or text.")] = None,
    layers: Annotated[str | None, typer.Option(help="Which layers: all, or last:k.")] = None,
    data: DataOption = None,
    seed: Annotated[int | None, typer.Option(help="Seed of initialisation and batches.")] = None,
    set_: Set = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; named after it in ./runs when not given.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Throw an earlier run in the same folder away.")
    ] = False,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Align two frozen towers on image-caption pairs, and test what came of it."""
    _go_offline(offline)
    from polyalign import runs

    resolved = _resolve(recipe, lang, strategy, set_, budget=budget, towers=towers, layers=layers, data=data, seed=seed)
    _train(out or runs.default_folder(resolved), resolved, resume=resume, overwrite=overwrite, as_json=as_json)


@app.command(epilog="Example: polyalign repeat runs/starter-sw-lilt-10k-pairs-s0/recipe.toml --out runs/again")
def repeat(
    recipe: Annotated[Path, typer.Argument(help="A resolved recipe, as it lies in every run's folder.")],
    out: Annotated[Path, typer.Option(help="Folder of the new run.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Throw an earlier run in the same folder away.")
    ] = False,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Train again from a resolved recipe alone."""
    _go_offline(offline)
    from polyalign import recipe as recipes

    _train(out, recipes.from_toml(recipe), resume=resume, overwrite=overwrite, as_json=as_json)


def _train(folder: Path, recipe: Any, *, resume: bool, overwrite: bool, as_json: bool) -> None:
    from polyalign import runs, tables

    try:
        run = runs.train_into(folder, recipe, resume=resume, overwrite=overwrite, say=_say)
    except KeyboardInterrupt:
        _say(f"interrupted; go on with the same command and --resume (the state is in {folder})")
        raise typer.Exit(130) from None
    if run is None:  # not the main process of several
        return
    if as_json:
        print(run.model_dump_json(indent=2))
        return
    console = _console()
    console.print(tables.retrieval_table(run.test[0], run.untrained, label=run.strategy))
    console.print(tables.run_facts(run))
    console.print(f"\ncheckpoint: [bold]{folder}[/]\nnext:")
    for line in runs.next_commands(folder, run):
        console.print(f"  {line}", highlight=False)


@app.command(epilog="Example: polyalign compare --lang sw --budget 1k-pairs,10k-pairs --seeds 3")
def compare(
    lang: Annotated[
        str | None, typer.Option(help="Languages, separated by commas; the recipe's when not given.")
    ] = None,
    budget: Annotated[str | None, typer.Option(help="Budgets, separated by commas: 1k-pairs,10k-pairs.")] = None,
    strategies: Annotated[
        str | None, typer.Option(help="Strategies, separated by commas; those that answer the question when not given.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds of each.")] = 1,
    recipe: Recipe = "starter",
    towers: Annotated[str | None, typer.Option(help="Which towers to adapt: both, vision or text.")] = None,
    layers: Annotated[str | None, typer.Option(help="Which layers: all, or last:k.")] = None,
    data: DataOption = None,
    tune: Annotated[bool, typer.Option("--tune", help="First choose each learning rate on dev.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Runs side by side.")] = 1,
    on: Annotated[Literal["local", "ray"], typer.Option(help="Where the runs go: local, or ray (an extra).")] = "local",
    set_: Set = None,
    out: Annotated[Path, typer.Option(help="Folder of the tables and of every run's JSON.")] = Path("eval"),
    offline: Offline = False,
) -> None:
    """Train every strategy on the same scarce pairs, and write which is worth it."""
    _go_offline(offline)
    from polyalign import compare as comparing
    from polyalign import pool, progress

    overrides = _overrides(set_, towers=towers, layers=layers, data=data)
    grid = comparing.Grid(
        recipe, _split(lang), _split(budget), _split(strategies), seeds, overrides, out, Path("runs") / "compare"
    )
    try:
        with progress.display() as report:
            workshop = pool.Pool(workers, on, report, _say)
            written = comparing.compare(grid, workshop, tune=tune)
    except KeyboardInterrupt:
        _say("interrupted; the same command goes on where it stopped")
        raise typer.Exit(130) from None
    for path in written:
        print(path)


@app.command(epilog="Example: polyalign report --out eval")
def report(out: Annotated[Path, typer.Option(help="Folder with runs/*.json.")] = Path("eval")) -> None:
    """Make the tables and figures again from the JSON of the runs, without training."""
    from polyalign import report as reporting

    for path in reporting.write(out):
        print(path)


@app.command("eval", epilog="Example: polyalign eval runs/starter-sw-lilt-s0 --lang sw,de,hi")
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    lang: Annotated[
        str | None, typer.Option(help="Languages, separated by commas; the run's own when not given.")
    ] = None,
    data: DataOption = None,
    split: Annotated[str, typer.Option(help="Which split: test, dev or train.")] = "test",
    set_: Set = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Measure retrieval of a trained run, in one language or several, on its own data or other."""
    _go_offline(offline)
    from polyalign import runs, tables

    results = runs.evaluate(run, list(_split(lang)), split, _overrides(set_, data=data), _say)
    if as_json:
        _print_json([result.model_dump(mode="json") for result in results])
    else:
        _console().print(tables.retrieval_overview(results))


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

    _go_offline(offline)
    from polyalign import progress
    from polyalign import search as searching

    with progress.display() as report:
        found = searching.search(run, images, query, top, report)
    if as_json:
        _print_json([asdict(photo) for photo in found])
        return
    for photo in found:
        print(f"{photo.score:.3f}  {photo.path}")


@app.command(epilog="Example: polyalign strategies --recipe lilt-bert")
def strategies(recipe: Recipe = "starter", lang: Lang = "en", set_: Set = None, as_json: Json = False) -> None:
    """Count what each strategy trains with a recipe's towers; needs no weights and no network."""
    from polyalign import strategy_table

    rows = strategy_table.count(recipe, lang, _overrides(set_))
    if as_json:
        _print_json([row.model_dump() for row in rows])
    else:
        _console().print(strategy_table.render(rows, recipe))


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
    _go_offline(offline)
    from polyalign import data_check

    resolved = _resolve(recipe, lang, "projection", set_, data=data)
    reports = data_check.check_recipe(resolved)
    if as_json:
        _print_json([report.model_dump(mode="json") for report in reports])
    else:
        _console().print(*map(data_check.render, reports))


@cache_app.command("list", epilog="Example: polyalign cache list")
def cache_list(as_json: Json = False) -> None:
    """List what is kept, with its size and what it cost to compute."""
    from dataclasses import asdict

    from polyalign import cache, tables

    found = cache.entries()
    if as_json:
        _print_json([asdict(entry) for entry in found])
        return
    for entry in found:
        cost = tables.duration(entry.seconds)
        print(f"{tables.size(entry.bytes):>10}  {entry.rows:>8,} {entry.what:<9} {cost:>10}  {entry.name}")
    print(f"{tables.size(sum(entry.bytes for entry in found)):>10}  in {cache.folder()}")


@cache_app.command("clear", epilog="Example: polyalign cache clear")
def cache_clear() -> None:
    """Delete all that is kept; it is computed again when it is needed."""
    from polyalign import cache, tables

    print(f"{tables.size(cache.clear())} freed in {cache.folder()}")


Out = Annotated[Path, typer.Option(help="Folder to write the tower into.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
PretrainSet = Annotated[list[str] | None, typer.Option("--set", help="Change a setting: --set lr=1e-3.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")]


@pretrain_app.command("vision", epilog="Example: polyalign pretrain vision --images ./photos --out ./my-vision-tower")
def pretrain_vision(
    out: Out,
    images: Annotated[
        Path | None, typer.Option(help="Folder of images, or of a folder a class; else the starter world.")
    ] = None,
    seed: Seed = 0,
    set_: PretrainSet = None,
    resume: Resume = False,
) -> None:
    """Pretrain a small timm tower on images alone."""
    from polyalign.pretrain import vision

    _pretrain(vision, out, {"images": images, "seed": seed}, set_, resume=resume)


@pretrain_app.command("text", epilog="Example: polyalign pretrain text --texts sw.txt --out ./my-text-tower")
def pretrain_text(
    out: Out,
    texts: Annotated[
        list[Path] | None, typer.Option(help="Files of one sentence a line; else the starter world.")
    ] = None,
    parallel: Annotated[list[str] | None, typer.Option(help="LANG=FILE; line i of each file says the same.")] = None,
    seed: Seed = 0,
    set_: PretrainSet = None,
    resume: Resume = False,
) -> None:
    """Pretrain a small XLM-R-like tower on text alone."""
    from polyalign.pretrain import text

    by_lang = dict(_language_file(item) for item in parallel or [])
    _pretrain(text, out, {"texts": texts or [], "parallel": by_lang, "seed": seed}, set_, resume=resume)


def _pretrain(module: Any, out: Path, options: dict[str, Any], sets: list[str] | None, *, resume: bool) -> None:
    from pydantic import ValidationError

    from polyalign import progress
    from polyalign import recipe as recipes
    from polyalign.lang import describe

    try:
        config = module.Config.model_validate({**options, **recipes.parse_set(sets or [])})
    except ValidationError as error:
        raise UserError(describe(error)) from error
    try:
        with progress.display() as report:
            folder = module.run(config, out, resume, report)
    except KeyboardInterrupt:
        _say("interrupted; go on with the same command and --resume")
        raise typer.Exit(130) from None
    print(f"tower: {folder}\nIts card says how it was made and what it can do: {folder / 'README.md'}")


def _language_file(item: str) -> tuple[str, Path]:
    lang, equals, path = item.partition("=")
    if not equals:
        raise UserError(f'--parallel takes LANG=FILE, as in --parallel sw=captions.sw.txt; got "{item}"')
    return lang, Path(path)


def _resolve(recipe: str, lang: str, strategy: str | None, sets: list[str] | None, **options: Any) -> Any:
    from polyalign import recipe as recipes

    return recipes.resolve(recipe, lang, strategy, _overrides(sets, **options))


def _overrides(sets: list[str] | None, **options: Any) -> dict[str, Any]:
    from polyalign import recipe as recipes

    return recipes.overrides(sets or [], **options)


def _split(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip()) if text else ()


def _go_offline(offline: bool) -> None:
    """Tell the hub libraries before they are imported, which is when they read it."""
    if offline:
        import os

        os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print_json(value: Any) -> None:
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False))


def _console() -> Any:
    """A console for results; at least 100 columns where it is no terminal, so that tables are not cut in a log."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=120)
