"""The contrastive loss, over one process or many."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F


def info_nce(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, image_of: torch.Tensor) -> torch.Tensor:
    """Symmetric InfoNCE with id-aware positives.

    ``image`` and ``text`` are ``(B, D)`` unit vectors, pair by pair; ``image_of`` ``(B,)`` says which image each
    pair has. Pairs that share an image are positives of each other, with equal weight, and never negatives (as in
    ALBEF). Without such pairs this is CLIP's loss (Radford et al. 2021).
    """
    same = image_of.unsqueeze(0) == image_of.unsqueeze(1)
    target = same / same.sum(1, keepdim=True)
    logits = scale * image @ text.T
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def sigmoid(
    image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, image_of: torch.Tensor
) -> torch.Tensor:
    """Pairwise sigmoid loss (SigLIP, Zhai et al. 2023): each image and caption are a binary classification.

    Arguments as for ``info_nce``, and a learned ``bias`` on the logits. It does not normalise over the
    batch, so it suffers less from small batches. Summed over a row's captions, averaged over rows, as published.
    """
    same = image_of.unsqueeze(0) == image_of.unsqueeze(1)
    logits = scale * image @ text.T + bias
    return -F.logsigmoid(torch.where(same, logits, -logits)).sum(1).mean()


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
