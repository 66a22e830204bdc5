"""``polyalign pretrain``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from polyalign.cli.options import app, say
from polyalign.utils.errors import UserError

pretrain_app = typer.Typer(
    no_args_is_help=True, help="Pretrain a tower alone: images without text, or text without images."
)
app.add_typer(pretrain_app, name="pretrain")

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

    from polyalign.config import recipe as recipes
    from polyalign.config.language import describe
    from polyalign.utils import progress, storage

    try:
        config = module.Config.model_validate({**options, **recipes.parse_set(sets or [])})
    except ValidationError as error:
        raise UserError(describe(error)) from error
    storage.check_writable(out)
    try:
        with progress.display() as report:
            folder = module.run(config, out, resume, report)
    except KeyboardInterrupt:
        say("interrupted; continue with the same command and --resume")
        raise typer.Exit(130) from None
    print(f"tower: {folder}\nIts card says how it was made and what it can do: {folder / 'README.md'}")


def _language_file(item: str) -> tuple[str, Path]:
    lang, equals, path = item.partition("=")
    if not equals:
        raise UserError(f'--parallel takes LANG=FILE, as in --parallel sw=captions.sw.txt; got "{item}"')
    return lang, Path(path)
