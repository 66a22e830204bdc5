"""What all commands use: the app, common options, and output."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import typer

from polyalign.utils.errors import UserError
from polyalign.utils.text import clean, json_text


class App(typer.Typer):
    """A Typer app whose help shows each paragraph of a docstring as one, and switches without a type."""

    def __init__(self, **settings: Any) -> None:
        """Make an app, see ``typer.Typer``; ``-h`` also shows the help."""
        super().__init__(context_settings={"help_option_names": ["-h", "--help"]}, **settings)

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Any], Any]:
        """Register a function as a command, see ``typer.Typer.command``."""

        def register(function: Any) -> Any:
            for hint in get_type_hints(function, include_extras=True).values():
                if get_args(hint)[:1] == (bool,):
                    get_args(hint)[1].metavar = ""
            text = re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.getdoc(function) or "")
            return super(App, self).command(name, **{"help": text, **settings})(function)

        return register


app = App(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Align frozen vision and text towers on few image-caption pairs, and compare ways of training.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        import polyalign

        print(f"polyalign {polyalign.__version__}")
        raise typer.Exit


@app.callback(help=app.info.help)
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, metavar="", help="Show the version.")
    ] = False,
) -> None:
    pass


# Panels of `polyalign --help`.
TRAIN, EVALUATE, DATA, USE, MAINTAIN = "Train", "Evaluate", "Data", "Use", "Maintain"


def by_name(text: str | None) -> str | None:
    """Replace names of languages by their codes, in a list separated by commas or plus signs: ``quechua`` is ``qu``."""
    from polyalign.config.language import code_of

    return text and re.sub(r"[^,+]+", lambda part: code_of(part[0].strip()), text)


Lang = Annotated[str, typer.Option(callback=by_name, help="Language: a code such as sw, or a name such as Swahili.")]
Langs = Annotated[
    str | None,
    typer.Option(
        callback=by_name,
        help="Language: a code such as sw, or a name such as Swahili; each is a file in langs/. Several, separated by "
        "commas, are trained on together.",
    ),
]
Recipe = Annotated[str, typer.Option(help="A shipped recipe, one in ./recipes, or the path of a TOML file.")]


def _finished(folder: Path | list[Path] | None) -> Path | list[Path] | None:
    """Check the folders of finished runs."""
    from polyalign.config.run_files import check_finished

    for one in folder if isinstance(folder, list) else [folder] if folder is not None else []:
        check_finished(one)
    return folder


def finished_or_external(model: str | None) -> str | None:
    """Check the folder of a finished run; names of external models have a colon."""
    if model is not None and (":" not in model or Path(model).exists()):
        _finished(Path(model))
    return model


FinishedRun = Annotated[Path, typer.Argument(callback=_finished, help="Folder of a finished run.")]
FinishedRuns = Annotated[
    list[Path],
    typer.Argument(callback=_finished, help="Folders of finished runs that differ in seed or learning rate."),
]
FinishedParent = Annotated[
    Path | None,
    typer.Option(
        "--from",
        callback=_finished,
        help="Folder of a finished run to go on from, with its towers, strategy and settings: on new data, in another "
        "language, or with parallel text.",
    ),
]
Teacher = Annotated[
    str,
    typer.Option(
        callback=finished_or_external,
        help="Folder of a finished run in a language of the parallel text; or open_clip:NAME/PRETRAINED, hf:NAME.",
    ),
]
Model = Annotated[
    str,
    typer.Argument(
        callback=finished_or_external, help="Folder of a run; or open_clip:NAME/PRETRAINED, hf:NAME, mclip:NAME."
    ),
]
RecipeFile = Annotated[Path, typer.Argument(help="A resolved recipe: recipe.toml in the folder of a run.")]
Strategy = Annotated[str | None, typer.Option(help="What to train; see `polyalign strategies`.")]
Budget = Annotated[
    str | None,
    typer.Option(
        help="Pairs or time to train with: 1k-pairs, 20min, 10k-pairs+20min; of single languages: "
        "qu=1k-pairs,es=10k-pairs. Default: that of the recipe; with --data, all pairs."
    ),
]
Towers = Annotated[str | None, typer.Option(help="Towers to adapt: both, vision or text.")]
Layers = Annotated[str | None, typer.Option(help="Layers to adapt: all, or last:k.")]
TextTower = Annotated[str, typer.Option(help="A Hugging Face encoder: a hub name or a local folder.")]
DataOption = Annotated[
    str | None, typer.Option("--data", help="A folder with captions and images, or the name of a source.")
]
ParallelText = Annotated[
    str | None,
    typer.Option(
        "--parallel",
        help="Sentences with their translations: a TSV file, the common path of line-aligned files, a folder in the "
        "form of FLORES-200, captions, starter, or hub:NAME. If the text does not state its languages: "
        "--set parallel.langs=[...].",
    ),
]
Images = Annotated[
    Path | None, typer.Option("--images", help="Folder with the photos of a benchmark, under their published names.")
]
AllowMissing = Annotated[bool, typer.Option("--allow-missing", help="Skip missing photos and their captions.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Change any key of the recipe: --set optim.lr=3e-4.")]
Seed = Annotated[int | None, typer.Option(help="Seed of initialisation and batches.")]
Out = Annotated[
    Path | None, typer.Option(help="Folder of the run. Default: a folder in ./runs named after the settings.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete the existing run and start over.")]
Track = Annotated[
    Literal["tensorboard", "wandb", "trackio", "mlflow"] | None,
    typer.Option(help="Also send the metrics of the training, which are in metrics.jsonl, to this tracker."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Offline = Annotated[bool, typer.Option("--offline", help="Use only local folders and files downloaded before.")]


def resolve(recipe: str, lang: str, strategy: str | None, sets: list[str] | None, **options: Any) -> Any:
    """Resolve a recipe with the options of a command."""
    from polyalign.config.resolve import resolve as resolve_recipe

    return resolve_recipe(recipe, lang, strategy, overrides(sets, **options))


def overrides(sets: list[str] | None, **options: Any) -> dict[str, Any]:
    """Gather ``--set`` and other options that change a recipe into one table."""
    from polyalign.config.resolve import gather_overrides

    return gather_overrides(sets or [], **options)


def source_table(text: str, sets: list[str] | None, lang: str, split: str) -> Any:
    """Load the pairs of a source or a folder, given as NAME or NAME:SPLIT, with its options."""
    from polyalign.config import source_spec
    from polyalign.config.resolve import parse_set
    from polyalign.data.load import load_source

    spec, named = source_spec.parse(text, parse_set(sets or []))
    return load_source(spec, lang, named or split)


def comma_separated(text: str | None) -> tuple[str, ...]:
    """Split at commas; None gives no parts.

    Raises:
        UserError: nothing is between the commas.
    """
    if text is None:
        return ()
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    if not parts:
        raise UserError(f'"{text}" is an empty list: give a value, or leave it out')
    return parts


def go_offline(offline: bool, track: str | None = None) -> None:
    """Switch the hub libraries to offline mode; call this before they are imported.

    Raises:
        UserError: the tracker is one that may send over the network.
    """
    if offline and track not in (None, "tensorboard"):
        raise UserError(f"--track {track} may use the network: leave out --offline, or use --track tensorboard")
    if offline:
        os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"


def say(line: str) -> None:
    """Print a message on standard error."""
    print(clean(line), file=sys.stderr, flush=True)


@contextmanager
def interruptible(advice: str) -> Iterator[None]:
    """On Ctrl-C, print the advice and exit with code 130."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"interrupted; {advice}")
        raise typer.Exit(130) from None


def print_json(value: Any) -> None:
    """Print a result as JSON, with null for NaN and infinity, and control characters as escapes."""
    import json

    finite = json.loads(json.dumps(value), parse_constant=lambda _: None)
    print(json_text(json.dumps(finite, indent=2, ensure_ascii=False)))


def console() -> Any:
    """Return a console for results: as wide as the terminal or ``COLUMNS``, else 120 columns, as in a pipe."""
    from rich.console import Console

    return Console(emoji=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120)
