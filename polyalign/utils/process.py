"""The process of a run: its place among several, delayed Ctrl-C, time and peak memory."""

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

import torch
from accelerate import PartialState
from accelerate.utils import broadcast, parse_flag_from_env

_TIMEOUT = timedelta(days=7)


def processes() -> PartialState:
    """Join the processes started by torchrun or accelerate, if any, and return this process's place among them.

    Without a GPU, Accelerate treats torchrun's processes as independent runs unless it is told to use the CPU, and it
    reads the variable of ``accelerate launch --cpu`` too late. The timeout covers the time one process may take to
    fill the cache: torch's default of half an hour would end a run on many photos.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return PartialState(
        cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or (several and not torch.accelerator.is_available()),
        timeout=_TIMEOUT,
    )


@contextmanager
def one_first() -> Iterator[None]:
    """Run the body in the main process first, then in one process per machine, then in all others.

    What the first computes into the cache the others find, whether machines share a folder or each have their own.
    """
    every = PartialState()
    with every.main_process_first(), every.local_main_process_first():
        yield


def from_main_process(value: float) -> float:
    """Return the main process's number in every process, so that all of them decide alike."""
    state = PartialState()
    if state.num_processes == 1:
        return value
    sent: torch.Tensor = broadcast(torch.tensor([value], dtype=torch.float64, device=state.device))
    return sent.item()


@dataclass(frozen=True)
class Spent:
    """Wall-clock seconds, and processor seconds over all threads.

    Processor time measures the cost of a run on a CPU whatever else the machine does and however many cores it has.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @staticmethod
    def until_now() -> Spent:
        """Read both clocks of this process; only the difference between two readings is meaningful."""
        return Spent(time.monotonic(), time.process_time())

    def __add__(self, other: Spent) -> Spent:
        """Return the sum of both."""
        return Spent(self.seconds + other.seconds, self.cpu_seconds + other.cpu_seconds)

    def __sub__(self, other: Spent) -> Spent:
        """Return the difference of two readings."""
        return Spent(self.seconds - other.seconds, self.cpu_seconds - other.cpu_seconds)


@contextmanager
def ctrl_c_held_back() -> Iterator[list[int]]:
    """Record Ctrl-C in the yielded list instead of interrupting, so that a state is only saved after a whole step.

    A second Ctrl-C interrupts at once. Outside the main thread, where Ctrl-C does not interrupt, nothing changes.
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

    On Linux ``getrusage`` inherits the parent's peak, which would make a small run started by a large process seem
    large; the process's own high-water mark is in ``/proc``.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file() and (mark := re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(), re.MULTILINE)):
        return int(mark[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
