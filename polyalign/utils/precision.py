"""Where bf16 computes faster than float32: known of a GPU, measured of a processor."""

from __future__ import annotations

import time
from functools import cache
from typing import Literal

import torch

Precision = Literal["auto", "fp32", "bf16"]

_GAIN = 1.2  # below it the time is noise, and float32 is the better number
_ROWS, _WIDTH, _REPEATS = 256, 768, 8


def trains_in_bf16(asked: Precision) -> bool:
    """Choose bf16 on a GPU that has it; it makes training on a processor slower, and is chosen there only by name."""
    return _gpu_has_it() if asked == "auto" else asked == "bf16"


def infers_in_bf16(asked: Precision, device: torch.device) -> bool:
    """Choose bf16, when it is left to us, on a GPU that has it and on a processor that is faster with it."""
    if asked != "auto":
        return asked == "bf16"
    return _processor_gains() if device.type == "cpu" else device.type == "cuda" and _gpu_has_it()


def _gpu_has_it() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


@cache
def _processor_gains() -> bool:
    """Multiply two matrices of a tower's size in both types, which takes some hundredths of a second."""
    return seconds(torch.float32) > _GAIN * seconds(torch.bfloat16)


def seconds(dtype: torch.dtype) -> float:
    """Give the least time of several products ``(256, 768) @ (768, 768)`` on the processor."""
    tokens, weights = torch.ones(_ROWS, _WIDTH, dtype=dtype), torch.ones(_WIDTH, _WIDTH, dtype=dtype)

    def once() -> float:
        began = time.perf_counter()
        torch.mm(tokens, weights)
        return time.perf_counter() - began

    return min(once() for _ in range(_REPEATS))
