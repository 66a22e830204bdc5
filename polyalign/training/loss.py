"""The contrastive loss, over one process or many."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F


def positives(image_of: torch.Tensor, caption_of: torch.Tensor | None = None) -> torch.Tensor:
    """Return ``(B, B)``: whether two pairs share their image, or their caption where ``caption_of`` is given.

    ``image_of`` and ``caption_of`` ``(B,)`` number the images and the distinct captions of the pairs.
    """
    same = image_of.unsqueeze(0) == image_of.unsqueeze(1)
    return same if caption_of is None else same | (caption_of.unsqueeze(0) == caption_of.unsqueeze(1))


def info_nce(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """Symmetric InfoNCE with several positives.

    ``image`` and ``text`` are ``(B, D)`` unit vectors, pair by pair; ``same`` ``(B, B)`` comes from ``positives``.
    Pairs that share an image or a caption are positives of each other, with equal weight, and never negatives (as
    ALBEF does for images). Without such pairs this is CLIP's loss (Radford et al. 2021).
    """
    target = same / same.sum(1, keepdim=True)
    logits = scale * image @ text.T
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def sigmoid(
    image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, same: torch.Tensor
) -> torch.Tensor:
    """Pairwise sigmoid loss (SigLIP, Zhai et al. 2023): each image and caption are a binary classification.

    Arguments as for ``info_nce``, and a learned ``bias`` on the logits. It does not normalise over the
    batch, so it suffers less from small batches. Summed over a row's captions, averaged over rows, as published.
    """
    logits = scale * image @ text.T + bias
    return -F.logsigmoid(torch.where(same, logits, -logits)).sum(1).mean()


def squared_distance(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Mean squared distance of ``(B, D)`` unit vectors, pair by pair, which is ``2 - 2 * cosine``."""
    return (one - other).square().sum(1).mean()


def gather(x: torch.Tensor) -> torch.Tensor:
    """Stack every process's ``(B, ...)`` to ``(world * B, ...)``; gradients flow back to where a row was made.

    In one process this is ``x`` itself. Each process computes the loss of the global batch, so a row's gradient
    arrives once from every process; averaging parameter gradients over processes then gives exactly the gradient of
    one process on the global batch.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    if not x.is_floating_point():
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)
    return torch.cat(_AllGather.apply(x))


class _AllGather(torch.autograd.Function):
    """All-gather whose backward sums over processes."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return tuple(parts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: torch.Tensor) -> torch.Tensor:
        total = torch.stack(grads)
        dist.all_reduce(total)
        return total[dist.get_rank()]
