"""The process of a run: its rank among several processes, delayed Ctrl-C, time and peak memory."""

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


def processes() -> PartialState:
    """Join the processes started by torchrun or accelerate, if any, and return the state of this process.

    Without a GPU, Accelerate treats torchrun's processes as independent runs unless it is told to use the CPU, and it
    reads the variable of ``accelerate launch --cpu`` too late. The timeout is long because the other processes wait
    while one fills the cache: torch's default of half an hour would end a run on many photos.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return PartialState(
        cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or (several and not torch.accelerator.is_available()),
        timeout=timedelta(days=7),
    )


@contextmanager
def one_first() -> Iterator[None]:
    """Run the body in the main process first, then in one process per machine, then in all others.

    The others find in the cache what the first has computed, also if every machine has a cache of its own.
    """
    state = PartialState()
    with state.main_process_first(), state.local_main_process_first():
        yield


def from_main_process(value: float) -> float:
    """Return the value of the main process in every process, so that all take the same decision."""
    state = PartialState()
    if state.num_processes == 1:
        return value
    sent: torch.Tensor = broadcast(torch.tensor([value], dtype=torch.float64, device=state.device))
    return sent.item()


@dataclass(frozen=True)
class Spent:
    """Wall-clock seconds, and processor seconds summed over all threads.

    On a CPU, processor time measures the cost of a run independently of other load and of the number of cores.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @staticmethod
    def until_now() -> Spent:
        """Read both clocks of this process; only the difference between two readings is meaningful."""
        return Spent(time.monotonic(), time.process_time())

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.seconds + other.seconds, self.cpu_seconds + other.cpu_seconds)

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.seconds - other.seconds, self.cpu_seconds - other.cpu_seconds)


@contextmanager
def ctrl_c_held_back() -> Iterator[list[int]]:
    """Record Ctrl-C in the yielded list instead of interrupting, so that the caller can finish its step and save.

    A second Ctrl-C interrupts at once. Outside the main thread, which alone receives Ctrl-C, this does nothing.
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
    """Return the peak memory in bytes, of the GPU if ``device`` is one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # On Linux getrusage() includes the peak of the parent process; the high-water mark in /proc does not.
    status = Path("/proc/self/status")
    if status.is_file() and (mark := re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(), re.MULTILINE)):
        return int(mark[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
