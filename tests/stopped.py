"""The command line, in a process that sends itself a signal in the middle of a training step.

``python tests/stopped.py SIGKILL 6 train --lang en ...``: after the backward pass of step 6, before the weights move.
"""

from __future__ import annotations

import os
import signal
import sys

from polyalign import cli
from polyalign.training import loop


def main(name: str, step: int, arguments: list[str]) -> None:
    """Wait for the step in what a step calls between backward pass and update."""
    whole, calls = loop.average_gradients, []

    def stop(*given: object) -> None:
        calls.append(given)
        if len(calls) == step:
            os.kill(os.getpid(), signal.Signals[name])
        whole(*given)  # type: ignore[arg-type]

    loop.average_gradients = stop  # type: ignore[assignment]
    sys.argv = ["polyalign", *arguments]
    cli.main()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
