"""The aligner: two towers, a linear projection on each, and a learned temperature."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import nn

from polyalign.models.towers.base import Tower
from polyalign.models.towers.text import TextTower, Tokens
from polyalign.models.towers.vision import VisionTower

logger = logging.getLogger(__name__)

MIN_LOGIT_SCALE, MAX_LOGIT_SCALE = math.log(1 / 0.5), math.log(1 / 0.001)
"""Bounds of ``logit_scale``: LilT clamps the temperature, which divides the similarities, to [0.001, 0.5]."""


class Aligner(nn.Module):
    """Two frozen towers and the parameters that align them.

    ``encode_image`` and ``encode_text`` return unit vectors ``(B, D)``. With ``start`` above 0 the input is the output
    of the tower's ``prefix(x, start)``, so that a frozen prefix is not computed again.

    ``record_trainable`` fixes which parameters train. Cuts, parameter counts, training mode, checkpoints and the
    feature cache follow that record, so that changing ``requires_grad`` on a trained aligner does not make its layers
    pass for pretrained ones. Without a record, ``requires_grad`` decides. ``inherited`` are frozen parameters that a
    teacher trained: they are saved with the trainable ones.
    """

    def __init__(self, vision: VisionTower, text: TextTower, dim: int, *, bias: bool = False) -> None:
        """Freeze both towers and add a new linear projection to ``dim`` to each.

        ``bias`` adds the learned logit bias of the sigmoid loss; bias and scale then start as in SigLIP: -10 and ln 10.
        """
        super().__init__()
        self.vision = vision.requires_grad_(False)
        self.text = text.requires_grad_(False)
        self.vision_projection = nn.Linear(vision.width, dim)
        self.text_projection = nn.Linear(text.width, dim)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10 if bias else 1 / 0.07)))
        self.logit_bias = nn.Parameter(torch.tensor(-10.0)) if bias else None
        self.inserted: frozenset[str] = frozenset()
        self._kinds = self._kinds_now()
        self.inherited: frozenset[str] = frozenset()
        self._recorded: frozenset[str] | None = None
        self._exact: dict[tuple[str, int], bool] = {}
        self.eval()

    @property
    def scale(self) -> torch.Tensor:
        """The factor applied to similarities, clamped as in LilT's code."""
        return self.logit_scale.clamp(MIN_LOGIT_SCALE, MAX_LOGIT_SCALE).exp()

    def cuts(self) -> tuple[int, int]:
        """Return for vision and text the first trainable stage; the input of that stage depends on the data alone.

        Stages that a teacher trained count as trainable. A stage unlocked after recording lowers the cut; nothing
        raises it. A cut is used once a small batch has shown that the tower computes the same with it; else the tower
        is computed whole at every step.
        """
        changed = {*self.trainable(), *self.inherited}
        trainable = [one for name, one in self.named_parameters() if name in changed or one.requires_grad]
        return self._proved(self.vision, trainable), self._proved(self.text, trainable)

    def encode_image(self, x: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Return unit vectors ``(B, D)`` for uint8 pixels ``(B, 3, H, W)``, or for the input of stage ``start``.

        Above the last stage, at ``vision.whole + 1``, the input are vectors of the joint space, returned as they are.
        """
        if start > self.vision.whole:
            return x
        features = self.vision.suffix(x, start)
        return F.normalize(self.vision_projection(features), dim=-1)

    def encode_text(self, x: Tokens | torch.Tensor, start: int = 0) -> torch.Tensor:
        """Return unit vectors ``(B, D)`` for tokens, or for the input of stage ``start``."""
        return F.normalize(self.text_projection(self.text.suffix(x, start)), dim=-1)

    def train(self, mode: bool = True) -> Aligner:
        """Set training mode where all parameters of a module are trainable; the rest stays in evaluation mode.

        A frozen tower must neither apply dropout nor update batch-norm statistics (LilT's code does both).
        Batch-norm statistics from pretraining are kept even where the weights train, because batches of few pairs do
        not estimate them better.
        """
        _set_mode(self, {id(parameter) for parameter in self.trainable().values()} if mode else set())
        for tower in (self.vision, self.text):
            for module in tower.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and not tower.is_random:
                    module.training = False
        return self

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the trainable parameters by name: the recorded ones, or without a record those that require grad."""
        if self._recorded is None:
            return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {name: parameter for name, parameter in self.named_parameters() if name in self._recorded}

    def record_trainable(self, inserted_beside: Collection[str] | None = None) -> None:
        """Record the parameters that require grad now as the trainable ones, in place of an earlier record.

        ``inserted_beside`` are the names of all parameters before the strategy: it inserted the other trainable ones.
        """
        self._recorded = frozenset(name for name, parameter in self.named_parameters() if parameter.requires_grad)
        self._exact = {}
        if inserted_beside is not None:
            self.inserted = frozenset(self.trainable()) - frozenset(inserted_beside)

    def changed_modules(self) -> list[str]:
        """Return the paths of the modules that a strategy inserted or replaced; empty if only weights changed."""
        now = self._kinds_now()
        paths = [path for path in {**self._kinds, **now} if self._kinds.get(path) is not now.get(path)]
        return [*paths, *(tower.kind for tower in (self.vision, self.text) if tower.shows_layers)]

    def _kinds_now(self) -> dict[str, type[nn.Module]]:
        return {path: type(module) for path, module in self.named_modules()}

    def _proved(self, tower: Tower, trainable: list[nn.Parameter]) -> int:
        cut = tower.first_trainable(trainable)
        if cut in (0, tower.whole) or self.logit_scale.device.type == "meta":
            return cut
        if (tower.kind, cut) not in self._exact:
            exact = self._exact[tower.kind, cut] = tower.is_exact(cut)
            if not exact:
                logger.info(f"the {tower.name} cannot be cut at stage {cut}: it is computed whole at every step")
        return cut if self._exact[tower.kind, cut] else 0

    def count(self) -> tuple[int, int]:
        """Return the numbers of trainable and of all parameters."""
        return sum(p.numel() for p in self.trainable().values()), sum(p.numel() for p in self.parameters())


def _set_mode(module: nn.Module, trainable: set[int]) -> None:
    parameters = list(module.parameters())
    if parameters and all(id(parameter) in trainable for parameter in parameters):
        for part in module.modules():
            part.training = True
        return
    module.training = False
    for child in module.children():
        _set_mode(child, trainable)
