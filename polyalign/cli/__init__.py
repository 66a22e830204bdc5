"""The command line. Heavy libraries are imported only when a command needs them."""

from __future__ import annotations

import logging
import os
import re
import sys

import typer

from polyalign.cli.options import app
from polyalign.utils.errors import DISK_ERRORS, UserError
from polyalign.utils.parent import end_with_parent
from polyalign.utils.text import clean

# isort: off
# The order of the commands in `polyalign --help`.
from polyalign.cli import training, recipes, plan, averaging, pretraining, trimming  # noqa: F401
from polyalign.cli import experiments, evaluation, show, data, languages, serving, serve, export, maintenance  # noqa: F401
# isort: on

__all__ = ["app", "main"]


class _StandardError(logging.Handler):
    """Print messages to the current ``sys.stderr``, which progress bars replace."""

    def emit(self, record: logging.LogRecord) -> None:
        print(clean(self.format(record)), file=sys.stderr, flush=True)


_MESSAGES = _StandardError()


def main() -> None:
    """Run the command line; invalid input gives one line on standard error and exit code 2, Ctrl-C exit code 130."""
    end_with_parent()
    messages = logging.getLogger("polyalign")
    messages.addHandler(_MESSAGES)
    messages.setLevel(logging.INFO)
    try:
        _refuse_empty(sys.argv[1:])
        code = app(prog_name="polyalign", standalone_mode=False)
        sys.stdout.flush()
    except (UserError, typer.TyperException) as error:
        message = error.format_message() if isinstance(error, typer.TyperException) else str(error)
        code = _fail(message)  # empty if a group of commands has shown its help
    except (KeyboardInterrupt, typer.Abort):  # Abort: at a prompt, also the end of the input
        code = 130
    except SystemExit as stop:
        if not isinstance(stop.__context__, BrokenPipeError):  # which typer turns into exit code 1
            raise
        code = _discard_output()
    except BrokenPipeError:
        code = _discard_output()
    except OSError as error:
        if error.filename is None and error.errno not in DISK_ERRORS:
            raise
        if error.filename is None:
            _discard_output()
        code = _fail(f"{clean(error.filename or 'standard output', 200)}: {error.strerror}")
    sys.exit(code)


def _fail(message: str) -> int:
    """Show an error and return its exit code."""
    if message:
        print(f"error: {clean(message)}", file=sys.stderr)
    return 2


def _refuse_empty(words: list[str]) -> None:
    """Refuse empty arguments, which a shell makes of variables that are not set; ``--out ''`` would be this folder."""
    for before, word in zip(["", *words], words, strict=False):
        if any("\ud800" <= letter <= "\udfff" for letter in word):
            raise UserError(f"{word} is not UTF-8: use a name that is")
        if not word.strip() or "\0" in word or re.fullmatch("--[a-z-]+=", word):
            name = word.rstrip("=") if word.startswith("--") else before if before.startswith("-") else "an argument"
            raise UserError(f"{name} is empty: give a value, or leave it out")


def _discard_output() -> int:
    """Discard what is left to print, which Python would otherwise try again at its end; return the exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
