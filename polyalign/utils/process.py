"""What a run asks of its process: who else is at work, to hold Ctrl-C back till a step is whole, time and memory."""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env

_PATIENCE = timedelta(days=7)

T = TypeVar("T")


def processes() -> PartialState:
    """Join the processes that torchrun or accelerate began, if any.

    Accelerate takes torchrun's processes for runs of their own where there is no GPU, unless it is told to use the
    processor; a processor asked for by ``accelerate launch --cpu`` it looks up too late. They wait for each other for
    as long as one may fill the cache: torch's own patience of half an hour would end a run on many photos.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return PartialState(
        cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or (several and not torch.accelerator.is_available()),
        timeout=_PATIENCE,
    )


@contextmanager
def one_first() -> Iterator[None]:
    """Let the main process do it, then one of every other machine, then all others, which find what it left.

    Machines may share a folder or have each their own: either way nothing is computed twice in the same folder.
    """
    every = PartialState()
    with every.main_process_first(), every.local_main_process_first():
        yield


def from_main_process(value: T) -> T:
    """Return the main process's value in every process, so that all of them decide alike."""
    values = [value]
    if PartialState().num_processes > 1:
        broadcast_object_list(values)
    return values[0]


@dataclass(frozen=True)
class Spent:
    """Seconds on the clock, and seconds of processor time over all threads of this process.

    Processor time says what a run on a processor costs, whatever else the machine is doing and on however many cores.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @staticmethod
    def until_now() -> Spent:
        """Read both clocks; only a difference between two readings means something."""
        return Spent(time.monotonic(), time.process_time())

    def __add__(self, other: Spent) -> Spent:
        """Add both."""
        return Spent(self.seconds + other.seconds, self.cpu_seconds + other.cpu_seconds)

    def __sub__(self, other: Spent) -> Spent:
        """Return the difference of two readings."""
        return Spent(self.seconds - other.seconds, self.cpu_seconds - other.cpu_seconds)


@contextmanager
def ctrl_c_held_back() -> Iterator[list[int]]:
    """Note Ctrl-C in the list given, and go on: a state saved in the middle of a step is no state to go on from.

    A second Ctrl-C interrupts at once. Only where Ctrl-C would interrupt, which is in the main thread.
    """
    pressed: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is not signal.default_int_handler:
        yield pressed
        return

    def note(number: int, _: FrameType | None) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: of the GPU where one is used, else of this process.

    Linux hands a parent's peak on in ``getrusage``, so that a small run begun by a large process would seem large; its
    own high-water mark is in ``/proc``.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file() and (mark := re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(), re.MULTILINE)):
        return int(mark[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
