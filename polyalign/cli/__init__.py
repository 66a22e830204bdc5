"""The command line. Heavy libraries are imported only when a command needs them."""

from __future__ import annotations

import logging
import sys

import typer

from polyalign.cli.options import app
from polyalign.utils.errors import UserError
from polyalign.utils.text import clean

# isort: off
# The order of the commands in `polyalign --help`.
from polyalign.cli import training, pretraining, trimming, experiments, evaluation, data, serving, maintenance  # noqa: F401
# isort: on

__all__ = ["app", "main"]


class _StandardError(logging.Handler):
    """Print messages to the current ``sys.stderr``, which progress bars replace."""

    def emit(self, record: logging.LogRecord) -> None:
        print(clean(self.format(record)), file=sys.stderr, flush=True)


_MESSAGES = _StandardError()


def main() -> None:
    """Run the command line; invalid input gives one line on standard error and exit code 2."""
    messages = logging.getLogger("polyalign")
    messages.addHandler(_MESSAGES)
    messages.setLevel(logging.INFO)
    try:
        sys.exit(app(prog_name="polyalign", standalone_mode=False))
    except (UserError, typer.TyperException) as error:
        message = error.format_message() if isinstance(error, typer.TyperException) else str(error)
        if message:  # empty if a group of commands has shown its help
            print(f"error: {clean(message)}", file=sys.stderr)
        sys.exit(2)
