"""``polyalign trim``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polyalign.cli.options import (
    TRAIN,
    DataOption,
    Json,
    Offline,
    Recipe,
    Set,
    app,
    comma_separated,
    go_offline,
    resolve,
)


@app.command(
    rich_help_panel=TRAIN,
    epilog="Example: polyalign trim --lang sw,en --text-tower xlm-roberta-base --out ./xlmr-sw-en",
)
def trim(
    lang: Annotated[str, typer.Option(help="Languages to keep, separated by commas.")],
    text_tower: Annotated[str, typer.Option(help="A Hugging Face encoder by hub name, or a local folder.")],
    out: Annotated[Path, typer.Option(help="Folder to write the smaller tower into.")],
    corpus: Annotated[
        list[Path] | None,
        typer.Option(
            help="Files of one sentence a line in these languages. Default: the training captions of the recipe."
        ),
    ] = None,
    keep: Annotated[
        int | None, typer.Option(min=1, help="Keep only this number of the used pieces, the most frequent ones.")
    ] = None,
    recipe: Recipe = "starter",
    data: DataOption = None,
    set_: Set = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Make a text tower smaller: keep only the vocabulary that some languages use."""
    go_offline(offline)
    from polyalign.config.language import load_language
    from polyalign.config.tower import TextSpec
    from polyalign.data.load import load_table
    from polyalign.evaluation import tables
    from polyalign.models.vocabulary import read_sentences, trim_tower

    codes = [load_language(code).code for code in comma_separated(lang)]
    sentences = read_sentences(corpus or [])
    for code in () if corpus else codes:
        sentences += load_table(resolve(recipe, code, "projection", set_, data=data), "train").captions
    from polyalign.utils.progress import progress_bars

    with progress_bars():
        done = trim_tower(TextSpec(model=text_tower), sentences, out, langs=codes, keep=keep)
    if as_json:
        print(done.model_dump_json(indent=2))
        return
    alike = f"{done.sentences_alike:,} of {done.sentences:,} sentences are cut and embedded as before"
    print(f"pieces      {done.pieces[0]:,} -> {done.pieces[1]:,}")
    print(f"parameters  {done.parameters[0]:,} -> {done.parameters[1]:,}")
    print(f"weights     {tables.size(done.bytes[0])} -> {tables.size(done.bytes[1])}")
    print(f"checked     {alike} (largest difference {done.max_difference:g})")
    print(f"use it with --set text.model={out}")
