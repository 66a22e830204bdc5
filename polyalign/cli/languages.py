"""``polyalign lang``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from polyalign.cli.options import DATA, App, Json, app, console, print_json
from polyalign.utils.errors import UserError
from polyalign.utils.text import clean

lang_app = App(no_args_is_help=True, help="List the languages, or add one.")
app.add_typer(lang_app, name="lang", rich_help_panel=DATA)


@lang_app.command("list", epilog="Example: polyalign lang list")
def list_(as_json: Json = False) -> None:
    """List the languages, including those in ./langs."""
    from rich import box

    from polyalign.config.language import language_codes, load_language
    from polyalign.utils.plain_table import PlainTable

    found = [load_language(code) for code in language_codes()]
    columns = ("code", "name", "english_name", "script", "flores", "low_resource")
    if as_json:
        print_json([{key: getattr(lang, key) for key in columns} for lang in found])
        return
    table = PlainTable("code", "name", "English name", "script", "FLORES-200", "low-resource", box=box.SIMPLE_HEAD)
    for lang in found:
        scarce = "yes" if lang.low_resource else ""
        table.add_row(lang.code, lang.name, lang.english_name, lang.script, lang.flores or "", scarce)
    console().print(table)


@lang_app.command(
    epilog='Example: polyalign lang new ay --name "Aymar aru" --script Latn --flores ayr_Latn --low-resource'
)
def new(
    code: Annotated[str, typer.Argument(help="Language code of BCP-47, such as ay.")],
    name: Annotated[str | None, typer.Option(help="Name of the language in the language itself.")] = None,
    english_name: Annotated[str | None, typer.Option(help="English name. Default: that of the code.")] = None,
    script: Annotated[str | None, typer.Option(help="ISO 15924 code of its writing system, such as Latn.")] = None,
    flores: Annotated[str | None, typer.Option(help="Its code in FLORES-200, which NLLB's encoder needs.")] = None,
    low_resource: Annotated[
        bool | None, typer.Option(help="Whether there is little data in it. Default outside of a terminal: no.")
    ] = None,
    from_text: Annotated[
        Path | None, typer.Option(help="A text in the language, from which --script is found.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Write ./langs/CODE.toml, which makes a language known. In a terminal, what is not given is asked for."""
    from polyalign.config.language import language_codes
    from polyalign.config.shipped import is_shipped
    from polyalign.data import new_language as languages

    path = Path("langs") / f"{code}.toml"
    if code in language_codes() and is_shipped("langs", code):
        raise UserError(f"polyalign has the language {code} already: choose another code, such as qaa")
    english = english_name or _ask("English name", "--english-name", languages.english_name_of(code))
    if not overwrite and code in language_codes():
        raise UserError(f"{path} exists already: replace it with --overwrite, or choose another code, such as qaa")
    if from_text is not None and script is not None:
        raise UserError("--from-text finds the script: leave out --script")
    name = name or _ask("Name in the language itself", "--name")
    seen = languages.detect_script(from_text) if from_text is not None else flores and flores[4:]
    script = script or _ask("Script (ISO 15924)", "--script", seen)
    if flores is None and sys.stdin.isatty():
        near = languages.flores_codes(code, english, script)
        perhaps = f" (perhaps {', '.join(near[:3])})" if len(near) > 1 else ""
        flores = (
            typer.prompt(f"FLORES-200 code, or nothing{perhaps}", default=near[0] if len(near) == 1 else "") or None
        )
    if low_resource is None:
        low_resource = sys.stdin.isatty() and typer.confirm("Is there little data in it?", default=True)
    lang = languages.new_language(
        code, name=name, english_name=english, script=script, flores=flores, low_resource=low_resource
    )
    from polyalign.utils import storage

    storage.write_text(path, languages.describe(lang))
    print(f"{clean(path)}\nnext:\n  polyalign data check --lang {code} --data FOLDER")


def _ask(what: str, option: str, default: str | None = None) -> str:
    """Ask for a value in a terminal; elsewhere, take the default.

    Raises:
        UserError: there is no terminal and no default.
    """
    if sys.stdin.isatty():
        return str(typer.prompt(what, default=default))
    if default is None:
        raise UserError(f"{option} is missing: {what}")
    return default
