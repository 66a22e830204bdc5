"""Checks that a run trains what it says: run once, before the data is read and after the first backward pass."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from polyalign.models.aligner import Aligner
from polyalign.utils.errors import UserError, first_line

logger = logging.getLogger(__name__)


def check_gradients(aligner: Aligner, *, opened: bool = False) -> list[str]:
    """Check after a backward pass that nothing is trained in vain, and return the names of unused pretrained tensors.

    A gradient of zero counts as none if what the strategy inserted is ``opened``; otherwise it is zero where training
    starts behind a closed branch.

    Raises:
        UserError: a parameter that the strategy inserted has no gradient, or no trainable parameter of a tower has one.
    """
    trainable = aligner.trainable()
    missing = [name for name, one in trainable.items() if one.grad is None or (opened and not one.grad.any())]
    idle = [name for name in missing if name in aligner.inserted]
    for tower in (aligner.vision, aligner.text):
        own = {name for name in trainable if name.startswith(f"{tower.kind}.")}
        idle += sorted(own) if own and own <= set(missing) else []
    if idle:
        raise UserError(
            f"{len(idle)} trainable tensors would never train, such as {idle[0]}: the network does not use them; "
            "choose another strategy, such as layernorm, or adapt the other tower only (--towers)"
        )
    return missing


def rehearse(aligner: Aligner) -> list[str]:
    """Run one backward pass on made-up input, before any data is read, and check that nothing is trained in vain.

    What the strategy inserted starts closed, so that the gradient behind it is zero at first. Noise opens it during the
    check: a gradient that is still exactly zero stays so. Pretrained parameters that the network does not use, as some
    do not under ``full``, are named in a message and returned.

    Raises:
        UserError: as ``check_gradients``, or a tower cannot be run with what the strategy put into it.
    """
    trainable = aligner.trainable()
    with torch.random.fork_rng(), _opened(trainable[name] for name in sorted(aligner.inserted)):
        try:
            image = aligner.encode_image(aligner.vision.probe())
            text = aligner.encode_text(aligner.text.probe())
        except Exception as error:  # whatever a network of others raises with what the strategy put into it
            raise UserError(
                f"the towers cannot be run with this strategy: {first_line(error)}; choose another"
            ) from error
        logits = aligner.scale * image @ text.T + (0 if aligner.logit_bias is None else aligner.logit_bias)
        torch.autograd.backward(logits.diagonal().sum())
    if unused := check_gradients(aligner, opened=True):
        logger.info(f"the network does not use {len(unused)} of its pretrained tensors, such as {unused[0]}")
    for parameter in trainable.values():
        parameter.grad = None
    return unused


@contextmanager
def _opened(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Add noise to parameters inside the context, and put their values back to the bit."""
    torch.manual_seed(0)
    before = [(parameter, parameter.detach().clone()) for parameter in parameters]
    with torch.no_grad():
        for parameter, value in before:
            parameter.add_(torch.randn_like(value), alpha=0.02)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in before:
                parameter.copy_(value)
