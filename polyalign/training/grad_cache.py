"""Gradients of a large batch in the memory of a small one (GradCache, Gao et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

Rows = npt.NDArray[np.int64]


def backward(
    rows: Rows,
    seed: int,
    encode: Callable[[Rows, int], Sequence[torch.Tensor]],
    loss_of: Callable[[Sequence[torch.Tensor]], torch.Tensor],
    micro_batch: int | None,
) -> torch.Tensor:
    """Add the gradients of a loss of the embeddings of rows, and return the loss.

    With ``micro_batch`` the embeddings are first computed without gradients, the loss gives the gradient of each
    embedding, and then each part of the batch is run again to propagate its own. Each part is seeded, so that dropout
    is the same both times.

    Args:
        rows: the rows of the batch.
        seed: the seed of the first part; part ``k`` has ``seed + k``.
        encode: returns embeddings ``(B, D)`` of rows, with a seed.
        loss_of: returns the loss of the embeddings of all rows.
        micro_batch: the largest number of rows that are encoded at a time; None for all.
    """
    parts = np.array_split(rows, math.ceil(len(rows) / (micro_batch or len(rows))))
    if len(parts) == 1:
        loss = loss_of(encode(rows, seed))
        torch.autograd.backward(loss)
        return loss.detach()
    with torch.no_grad():
        made = [encode(part, seed + number) for number, part in enumerate(parts)]
    embedded = [torch.cat(embeddings).requires_grad_() for embeddings in zip(*made, strict=True)]
    loss = loss_of(embedded)
    torch.autograd.backward(loss)
    start = 0
    for number, part in enumerate(parts):
        own = slice(start, start + len(part))
        again = zip(encode(part, seed + number), embedded, strict=True)
        taught = [(one, whole.grad[own]) for one, whole in again if one.requires_grad and whole.grad is not None]
        torch.autograd.backward([one for one, _ in taught], [gradient for _, gradient in taught])
        start += len(part)
    return loss.detach()
