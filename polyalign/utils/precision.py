"""Choose between float32 and bf16: by the properties of a GPU, or by a measurement on a CPU."""

from __future__ import annotations

import timeit
from functools import cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # recipes are checked before torch is imported
    import torch

Precision = Literal["auto", "fp32", "bf16"]

_GAIN = 1.2  # a smaller speed-up is measurement noise and not worth the lower precision
_ROWS, _WIDTH, _REPEATS = 256, 768, 8


def trains_in_bf16(asked: Precision, device: torch.device) -> bool:
    """Return whether to train in bf16; ``auto`` chooses it on a GPU with bf16 hardware, never on a CPU."""
    return _is_gpu_with_bf16(device) if asked == "auto" else asked == "bf16"


def infers_in_bf16(asked: Precision, device: torch.device) -> bool:
    """Return whether to infer in bf16; ``auto`` chooses it on a GPU with bf16 hardware, or a CPU where it is faster."""
    if asked != "auto":
        return asked == "bf16"
    return _cpu_gains() if device.type == "cpu" else _is_gpu_with_bf16(device)


def _is_gpu_with_bf16(device: torch.device) -> bool:
    import torch

    # PyTorch emulates bf16 on older GPUs, which is slower than float32.
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


@cache
def _cpu_gains() -> bool:
    """Time matrix products in both types, once per process; this takes some hundredths of a second."""
    import torch

    return seconds(torch.float32) > _GAIN * seconds(torch.bfloat16)


def seconds(dtype: torch.dtype) -> float:
    """Return the shortest of several times, in seconds, of a product ``(256, 768) @ (768, 768)`` on the CPU."""
    import torch

    tokens, weights = torch.ones(_ROWS, _WIDTH, dtype=dtype), torch.ones(_WIDTH, _WIDTH, dtype=dtype)
    return min(timeit.repeat(lambda: torch.mm(tokens, weights), number=1, repeat=_REPEATS))
