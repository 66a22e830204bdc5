"""``polyalign pretrain``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from polyalign.cli.options import TRAIN, Offline, Resume, TextTower, app, by_name, go_offline, interruptible
from polyalign.utils.errors import UserError
from polyalign.utils.text import clean


@app.command(
    rich_help_panel=TRAIN,
    epilog="Example: polyalign pretrain --text-tower xlm-roberta-base --texts sw.txt --lang sw --out ./xlmr-sw",
)
def pretrain(
    text_tower: TextTower,
    texts: Annotated[
        list[Path], typer.Option(help="UTF-8 file with one sentence per line; may be given several times.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write the tower into.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a setting: --set lr=1e-4, --set epochs=10, --set batch_size=64."),
    ] = None,
    lang: Annotated[
        str | None,
        typer.Option(
            callback=by_name, help="Language code of the text, for the check of its script and the model card."
        ),
    ] = None,
    lora_rank: Annotated[
        int | None, typer.Option(min=1, help="Train low-rank updates of this rank, and merge them in the end.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    resume: Resume = False,
    offline: Offline = False,
) -> None:
    """Continue the pretraining of a text tower on text in your language (masked language modelling, no images)."""
    go_offline(offline)
    from pydantic import ValidationError

    from polyalign.config.language import describe_error
    from polyalign.config.resolve import parse_set
    from polyalign.training.pretrain import Config, pretrain_text
    from polyalign.utils.progress import progress_bars

    named = {"model": text_tower, "texts": texts, "lang": lang, "lora_rank": lora_rank, "seed": seed}
    try:
        config = Config.model_validate(named | parse_set(set_ or []))
    except ValidationError as error:
        raise UserError(describe_error(error)) from error
    with interruptible("continue with the same command and --resume"), progress_bars():
        done = pretrain_text(config, out, resume=resume)
    print(f"sentences   {done.sentences[0]:,} trained on, {done.sentences[1]:,} held out")
    print(f"dev loss    {done.loss[0]:.3f} -> {done.loss[1]:.3f}")
    print(f"perplexity  {done.perplexity[0]:.1f} -> {done.perplexity[1]:.1f}")
    print(f"use it with {shlex.join(('--set', f'text.model={clean(out)}'))}")
