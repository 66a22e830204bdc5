"""The command line: parse, call, show. Heavy imports wait until a command needs them."""

from __future__ import annotations

import logging
import sys

import typer

from polyalign.cli.options import app
from polyalign.utils.errors import UserError

# isort: off
# In this order the commands stand in `polyalign --help`.
from polyalign.cli import training, comparing, evaluating, benchmarks, inspecting, caching, pretraining, trimming  # noqa: F401
# isort: on

__all__ = ["app", "main"]


class _StandardError(logging.Handler):
    """Print messages on whatever standard error is now: progress bars put their own in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


def main() -> None:
    """Run the command line; bad input is one line on standard error and exit code 2."""
    messages = logging.getLogger("polyalign")
    messages.handlers[:] = [_StandardError()]  # once, however often it is called
    messages.setLevel(logging.INFO)
    try:
        sys.exit(app(prog_name="polyalign", standalone_mode=False))
    except (UserError, typer.TyperException) as error:
        message = error.format_message() if isinstance(error, typer.TyperException) else str(error)
        if message:  # a group of commands without one of them has shown its help
            print(f"error: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)
