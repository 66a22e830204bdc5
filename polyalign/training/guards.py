"""Checks that a run trains what it says: run once, before the data is read and after the first backward pass."""

from __future__ import annotations

import logging

import torch

from polyalign.models.aligner import Aligner
from polyalign.utils.errors import UserError, first_line

logger = logging.getLogger(__name__)


def without_gradient(aligner: Aligner) -> list[str]:
    """Return the names of the trainable parameters that the last backward pass did not reach."""
    return [name for name, parameter in aligner.trainable().items() if parameter.grad is None]


def check_gradients(aligner: Aligner) -> None:
    """Check after a backward pass that nothing is trained in vain.

    Raises:
        UserError: a parameter that the strategy inserted has no gradient, or no trainable parameter of a tower has one.
    """
    missing = without_gradient(aligner)
    idle = [name for name in missing if name in aligner.inserted]
    for tower in (aligner.vision, aligner.text):
        own = {name for name in aligner.trainable() if name.startswith(f"{tower.kind}.")}
        idle += sorted(own) if own and own <= set(missing) else []
    if idle:
        raise UserError(
            f"{len(idle)} trainable tensors would never train, such as {idle[0]}: the network does not use them; "
            "choose another strategy, such as layernorm, or adapt the other tower only (--towers)"
        )


def rehearse(aligner: Aligner) -> None:
    """Run one backward pass on made-up input, before any data is read, and check that nothing is trained in vain.

    Pretrained parameters that the network does not use, as some do not under ``full``, are named in a message.

    Raises:
        UserError: as ``check_gradients``, or a tower cannot be run with what the strategy put into it.
    """
    with torch.random.fork_rng():
        try:
            image = aligner.encode_image(aligner.vision.probe())
            text = aligner.encode_text(aligner.text.probe())
        except Exception as error:  # whatever a network of others raises with what the strategy put into it
            raise UserError(
                f"the towers cannot be run with this strategy: {first_line(error)}; choose another"
            ) from error
        logits = aligner.scale * image @ text.T + (0 if aligner.logit_bias is None else aligner.logit_bias)
        torch.autograd.backward(logits.diagonal().sum())
    check_gradients(aligner)
    if unused := without_gradient(aligner):
        logger.info(f"the network does not use {len(unused)} of its pretrained tensors, such as {unused[0]}")
    for parameter in aligner.trainable().values():
        parameter.grad = None
