"""``polyalign trim``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from polyalign.cli import options
from polyalign.cli.options import TRAIN, app
from polyalign.utils.errors import UserError
from polyalign.utils.text import binary_size, clean


@app.command(
    rich_help_panel=TRAIN,
    epilog="Example: polyalign trim --lang sw --text-tower xlm-roberta-base --data ./photos --out ./xlmr-sw",
)
def trim(
    lang: Annotated[str, typer.Option(callback=options.by_name, help="Languages to keep, separated by commas.")],
    text_tower: options.TextTower,
    out: Annotated[Path, typer.Option(help="Folder to write the smaller tower into.")],
    corpus: Annotated[
        list[Path] | None,
        typer.Option(
            help="Files with one sentence per line in these languages. Default: the training captions of --data, or of "
            "the recipe."
        ),
    ] = None,
    keep: Annotated[
        int | None, typer.Option(min=1, help="Keep only this number of the most frequent vocabulary pieces.")
    ] = None,
    recipe: options.Recipe = "starter",
    data: options.DataOption = None,
    set_: options.Set = None,
    offline: options.Offline = False,
    as_json: options.Json = False,
) -> None:
    """Make a text tower smaller by keeping only the vocabulary that some languages use."""
    options.go_offline(offline)
    from polyalign.config.language import load_language
    from polyalign.config.tower import TextSpec
    from polyalign.data.load import load_table
    from polyalign.models.vocabulary import read_sentences, trim_tower
    from polyalign.utils.progress import progress_bars

    codes = [load_language(code).code for code in options.comma_separated(lang)]
    sentences = read_sentences(corpus or [])
    for code in () if corpus else codes:
        resolved = options.resolve(recipe, code, "projection", set_, data=data)
        if resolved.source["name"] == "starter" and not {data, text_tower} & {"starter"}:
            raise UserError(
                "only the vocabulary of the sentences that it is given is kept: give some thousand in your language "
                "with --corpus FILE, or your captions with --data FOLDER"
            )
        sentences += load_table(resolved, "train").captions
    with progress_bars():
        done = trim_tower(TextSpec(model=text_tower), sentences, out, langs=codes, keep=keep)
    if as_json:
        options.print_json(done.model_dump(mode="json"))
        return
    alike = f"{done.sentences_alike:,} of {done.sentences:,} sentences are tokenized and embedded as before"
    print(f"pieces      {done.pieces[0]:,} -> {done.pieces[1]:,}")
    print(f"parameters  {done.parameters[0]:,} -> {done.parameters[1]:,}")
    print(f"weights     {binary_size(done.bytes[0])} -> {binary_size(done.bytes[1])}")
    print(f"unknown     {done.unknown_rate[0]:.2%} of the pieces of these sentences -> {done.unknown_rate[1]:.2%}")
    print(f"checked     {alike} (largest difference {done.max_difference:g})")
    print(f"use it with {shlex.join(('--set', f'text.model={clean(out)}'))}")
