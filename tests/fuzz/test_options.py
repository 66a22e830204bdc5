"""Every command with every option, given what its type suggests and what it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from polyalign import cli
from tests.fuzz.harness import cases, sandbox
from tests.fuzz.mutate import strings


def commands(group: Any = None, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Find every command, including those in groups."""
    found = []
    for name, command in (group or typer.main.get_command(cli.app)).commands.items():
        found += commands(command, (*path, name)) if hasattr(command, "commands") else [((*path, name), command)]
    return found


COMMANDS = commands()

PLACES = (
    "run",
    "photos",
    "photos/captions.csv",
    "eval",
    "texts.txt",
    "run/recipe.toml",
    "recipes/starter.toml",
    ".",
    "absent",
    "new/run",
)
NAMES = (
    "en", "sw", "all", "en,sw", ",", "starter", "lilt-bert", "lilt", "projection", "projection,lilt",
    "retrieval", "zeroshot",
    "retention", "text-by-retrieval", "karpathy", "test", "dev", "train", "both", "vision", "text", "last:1",
    "all", "4-pairs",
    "1k-pairs,2k-pairs", "1s", "1GiB", "folder", "xtd", "photos:dev", "photos:x:y", "run:test", "openai",
    "hf:run", "mclip:run",
    "open_clip:run",
)  # fmt: skip
SETS = (
    "optim.lr", "optim", "source.root", "source", "source.name", "strategy", "strategy.name", "text.model",
    "vision.image_px",
    "vision.mean", "train.evals", "data.keep_out", "data.budget", "test.languages", "cache.dtype", "task.k",
    "task", "root", "name", "x",
    "lr", "epochs", "model", "projection.dim", "text.pooling", "source.captions", "source.images",
    "source.dev_share", "lang",
)  # fmt: skip
# In a real command line, no argument has a NUL.
words = (st.sampled_from(PLACES) | st.sampled_from(NAMES) | strings).map(lambda text: text.replace("\0", ""))
settings = st.builds(
    "{}={}".format, st.sampled_from(SETS), words | st.sampled_from(("[]", "{}", "[1]", "{a = 1}", "-1", "1e99"))
)


def value_of(param: Any) -> st.SearchStrategy[str]:
    """Suggest values for a parameter: of its type mostly, anything sometimes."""
    kind = param.type_descriptor.annotation
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind)) | words
    if "set" in param.name:
        return settings | words
    if kind is int:
        return st.integers(-1, 5).map(str) | st.sampled_from((str(10**30), "1.5", "", "x"))
    return words


@st.composite
def command_lines(draw: st.DrawFn, path: tuple[str, ...], command: Any) -> tuple[list[str], tuple[str, ...]]:
    """Draw arguments, and where they say to write."""
    arguments, written = [], ["runs", "eval", "data"]
    for param in command.params:
        if param.name == "help":
            continue
        is_argument = not param.opts[0].startswith("-")
        wanted = draw(st.integers(0, 19)) > 0 if param.required else draw(st.integers(0, 3)) == 0
        for _ in range(draw(st.integers(1, 2)) if param.multiple and wanted else int(wanted)):
            if getattr(param, "is_flag", False):
                arguments.append(draw(st.sampled_from([*param.opts, *param.secondary_opts])))
                continue
            value = draw(value_of(param))
            if param.name in ("out", "root"):
                written.append(value)
            arguments += (
                [value]
                if is_argument
                else [f"{param.opts[0]}={value}"]
                if draw(st.booleans())
                else [param.opts[0], value]
            )
    if draw(st.integers(0, 9)) == 0:
        arguments.insert(
            draw(st.integers(0, len(arguments))), draw(st.sampled_from(("--help", "--nonsense", "--", "-x", "extra")))
        )
    return [*path, *arguments], tuple(written)


def test_the_commands_are_found() -> None:
    assert len(COMMANDS) > 10


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=["-".join(path) for path, _ in COMMANDS])
@cases(14)
@given(data=st.data())
def test_any_options(world: Path, path: tuple[str, ...], command: Any, data: st.DataObject) -> None:
    arguments, written = data.draw(command_lines(path, command))
    with sandbox(world) as box:
        box.run(*arguments, may_write=written, idle=True)


@cases(60)
@given(arguments=st.lists(words | st.sampled_from([path[0] for path, _ in COMMANDS]), max_size=4))
def test_any_words(world: Path, arguments: list[str]) -> None:
    with sandbox(world) as box:
        box.run(*arguments, may_write=("runs", "eval", "data"), idle=True)
