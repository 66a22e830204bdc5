"""Checks that a run trains what it says: run once, before the data is read and after the first backward pass."""

from __future__ import annotations

import logging

import torch

from polyalign.models.aligner import Aligner
from polyalign.utils.errors import UserError

logger = logging.getLogger(__name__)


def without_gradient(aligner: Aligner) -> list[str]:
    """Return the names of the trainable parameters that the last backward pass did not reach."""
    return [name for name, parameter in aligner.trainable().items() if parameter.grad is None]


def check_gradients(aligner: Aligner) -> None:
    """Check after a backward pass that nothing is trained in vain.

    Pretrained parameters that the network does not use, as under ``full``, are named in a message.

    Raises:
        UserError: a parameter that the strategy inserted has no gradient, or none of those of a tower has.
    """
    missing = without_gradient(aligner)
    trainable = aligner.trainable()
    idle = [name for name in missing if name in aligner.inserted]
    for tower in (aligner.vision, aligner.text):
        own = [name for name in trainable if name.startswith(f"{tower.kind}.")]
        if own and set(own) <= set(missing):
            idle += own
    if idle:
        raise UserError(
            f"{len(idle)} trainable tensors would never train, such as {idle[0]}: the network does not use them. "
            "Choose another strategy, such as layernorm, or adapt the other tower only (--towers)"
        )
    if missing:
        logger.info(f"{len(missing)} pretrained tensors are not used by the network, such as {missing[0]}")


def rehearse(aligner: Aligner) -> None:
    """Run one backward pass on made-up input, before any data is read, and check that nothing is trained in vain.

    Raises:
        UserError: as ``check_gradients``.
    """
    with torch.random.fork_rng():
        image = aligner.encode_image(aligner.vision.probe())
        text = aligner.encode_text(aligner.text.probe())
        logits = aligner.scale * image @ text.T + (0 if aligner.logit_bias is None else aligner.logit_bias)
        logits.diagonal().sum().backward()
    check_gradients(aligner)
    for parameter in aligner.trainable().values():
        parameter.grad = None
