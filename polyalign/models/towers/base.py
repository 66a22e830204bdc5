"""What both towers are: a pretrained network, its transformer blocks, and the cut between what is computed once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from typing import Any, cast

import torch
from torch import nn

from polyalign.models.towers import staging
from polyalign.utils.errors import UserError, first_line

_TOLERANCE = 1e-4
"""Largest difference between a cut tower and the whole one, relative to the largest feature."""


class ValuesNeededError(Exception):
    """The forward pass of a network looks at values, which the meta device does not have."""


class Tower(nn.Module, ABC):
    """A pretrained network with pooling, cut between its transformer blocks.

    A network of ``n`` blocks has ``n + 2`` stages: what lies below the blocks, each block, and what lies above. Without
    blocks that are called once each, one after the other, it is one stage. ``prefix(x, cut)`` computes the stages below
    ``cut`` and ``suffix(hidden, cut)`` the others; cut 0 is the input, the last cut the features ``(B, width)``.

    ``width`` is the size of the features. ``is_staged`` says whether the blocks run once each, in order, so that the
    forward pass can be cut between them. ``variant`` identifies what is computed with the weights, ``fingerprint`` the
    pretrained weights; it is None where they are random. ``place`` is the folder or hub name of the tower.
    """

    kind: str
    name: str
    place = ""
    variant: str
    on_input = ""  # continues "cannot be run"

    def __init__(self, model: nn.Module, fresh: Callable[[], nn.Module], pooling: str) -> None:
        """Wrap ``model``; ``fresh`` makes it anew with random weights."""
        super().__init__()
        self.model = model
        self.head = nn.Sequential()
        self.pooling = pooling
        self.fingerprint: str | None = None
        self.is_random = False
        self.name = f"{self.kind} tower ({type(model).__name__})"
        self._fresh = fresh
        self.shows_layers = False

    @abstractmethod
    def features(self, model: nn.Module, x: Any) -> torch.Tensor:
        """Return pooled features ``(B, width)`` of ``model``, which is the tower's own or a cut twin of it."""

    @abstractmethod
    def mean_state(self, x: Any, hidden: torch.Tensor) -> torch.Tensor:
        """Return the mean ``(B, W)`` of hidden states over the positions of the input ``x``."""

    @abstractmethod
    def probe(self) -> Any:
        """Return a small batch of input, the same each time, on the tower's device."""

    def hidden(self, x: Any, values: torch.Tensor) -> Any:
        """Return the input of a stage above 0: the hidden states ``values`` and what else the stages need of ``x``."""
        return values

    def look(self) -> None:
        """Run the tower once to learn in which order its parts are called; ``width`` comes from this run.

        Raises:
            UserError: the network cannot be run on the tower's input.
            ValuesNeededError: the network is on the meta device and cannot be run there.
        """
        self._paths = staging.find_blocks(self.model)
        try:
            with staging.evaluation_mode(self):
                self.trace = staging.trace(self.model, self._paths, lambda: self._run(self.probe())(self.model))
        except UserError:
            raise
        except Exception as error:  # whatever a network of others raises on input that it does not take
            if next(self.model.parameters()).is_meta:
                raise ValuesNeededError from error
            raise UserError(f"the {self.name} cannot be run{self.on_input}: {first_line(error)}") from error
        features = self.trace.features
        if not features.is_meta and not features.isfinite().all():
            raise UserError(f"the {self.name} gives features that are not finite: check its weights")
        self.width = features.shape[-1]
        self._paths = [path for path in self._paths if path in self.trace.calls]
        self.is_staged = bool(self._paths) and self.trace.is_sequence(self._paths)
        above = self.trace.after(self._paths[-1]) if self._paths else []
        self._top = [one for one in above if not any(one != outer and staging.is_inside(one, outer) for outer in above)]

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks, lowest first; empty in a network without."""
        return [self.model.get_submodule(path) for path in self._paths]

    @property
    def top(self) -> list[nn.Module]:
        """The modules above the blocks: final norms, pooling, and the head."""
        return [*(self.model.get_submodule(path) for path in self._top), self.head]

    def path_of(self, block: nn.Module) -> str:
        """Return the path of one of the ``blocks`` in the network."""
        return next(path for path in self._paths if self.model.get_submodule(path) is block)

    @property
    def whole(self) -> int:
        """The number of stages, which is also the last cut."""
        return len(self._paths) + 2 if self.is_staged else 1

    def append_block(self, block: nn.Module) -> None:
        """Put another block on top of the last one, and tell the network's configuration."""
        path, _, _ = self._paths[-1].rpartition(".")
        stack = cast(nn.ModuleList, self.model.get_submodule(path))
        depth = len(stack)
        stack.append(block)
        self._paths.append(f"{path}.{depth}")
        self.trace.returns[self._paths[-1]] = self.trace.returns[self._paths[-2]]
        config = getattr(self.model, "config", None)
        for key, value in [] if config is None else list(vars(config).items()):
            if isinstance(value, list) and len(value) == depth:  # such as layer_types
                setattr(config, key, [*value, value[-1]])
        if getattr(config, "num_hidden_layers", None) == depth:
            config.num_hidden_layers = depth + 1  # type: ignore[union-attr]

    def reinitialise(self) -> None:
        """Replace the pretrained weights with random ones, as the library initialises this model."""
        self.model = self._fresh().to(next(self.parameters()).device)
        self.is_random = True

    def stages(self) -> list[list[nn.Parameter]]:
        """List the parameters of every stage, lowest first."""
        if not self.is_staged:
            return [list(self.model.parameters()) + list(self.head.parameters())]
        blocks = [list(block.parameters()) for block in self.blocks]
        top = [parameter for part in self.top for parameter in part.parameters()]
        above = {id(parameter) for stage in [*blocks, top] for parameter in stage}
        embed = [parameter for parameter in self.parameters() if id(parameter) not in above]
        return [embed, *blocks, top]

    def first_trainable(self, trainable: Collection[nn.Parameter]) -> int:
        """Return the first stage with a trainable parameter, or the number of stages if there is none."""
        ids = {id(parameter) for parameter in trainable}
        reached = (index for index, stage in enumerate(self.stages()) if any(id(p) in ids for p in stage))
        return next(reached, self.whole)

    def prefix(self, x: Any, cut: int) -> Any:
        """Compute the stages below ``cut``: ``x`` itself at cut 0, features ``(B, width)`` at the last."""
        if cut == 0:
            return x
        if cut == self.whole:
            return self(x)
        run = self._run(x)
        return self.hidden(x, staging.run_below(self.model, self._paths, cut - 1, run))

    def suffix(self, x: Any, cut: int) -> torch.Tensor:
        """Compute the stages from ``cut`` on, whose input is ``prefix(x, cut)``: features ``(B, width)``."""
        if cut == 0:
            return cast(torch.Tensor, self(x))
        if cut == self.whole:
            return cast(torch.Tensor, x)
        values, run = self.values(x), self._run(self.stand_in(x))
        return staging.run_above(self.model, self._paths, cut - 1, self.trace.returns, values, run)

    def values(self, x: Any) -> torch.Tensor:
        """Return the hidden states of the input of a stage."""
        return cast(torch.Tensor, x)

    def stand_in(self, x: Any) -> Any:
        """Return input for the parts below the cut, which run although their result is not used."""
        return x

    def forward(self, x: Any) -> torch.Tensor:
        """Return features ``(B, width)``; after ``show_layers`` also, before them, the pooled states of every layer."""
        return torch.cat(self.pooled_layers(x), -1) if self.shows_layers else self._run(x)(self.model)

    def show_layers(self) -> None:
        """Let ``forward``, and so the last stage, give ``pooled_layers`` as one vector: ``(B, sum of widths)``."""
        self.shows_layers = True
        self.variant += " layers"

    def pooled_layers(self, x: Any) -> list[torch.Tensor]:
        """Return the mean over positions of each of the ``layers``, ``(B, W)`` each, and last the features."""
        *hidden, features = self.layers(x)
        return [*(self.mean_state(x, states) for states in hidden), features]

    def layers(self, x: Any) -> list[torch.Tensor]:
        """Return the input of the first block, the output of every block, and last the features ``(B, width)``.

        Of a network that is one stage, only the features.
        """
        if not self.is_staged:
            return [self._run(x)(self.model)]
        hidden, features = staging.record(self.blocks, lambda: self._run(x)(self.model))
        return [*hidden, features]

    def _run(self, x: Any) -> Callable[[nn.Module], torch.Tensor]:
        return lambda model: cast(torch.Tensor, self.head(self.features(model, x)))

    def is_exact(self, cut: int) -> bool:
        """Run a small batch whole and cut: whether the features are the same, and nothing below the cut is trained.

        Raises:
            UserError: the features are not finite.
        """
        with staging.evaluation_mode(self):
            x = self.probe()
            whole = self(x)
            if not whole.isfinite().all():
                raise UserError(f"the {self.name} gives features that are not finite")
            try:
                with torch.enable_grad():
                    below = self.prefix(x, cut)
                parts = self.suffix(below, cut)
            except Exception:  # noqa: BLE001 - whatever a network of others raises when it is cut: it stays whole
                return False
            if self.values(below).requires_grad:
                return False
        return parts.shape == whole.shape and bool((parts - whole).abs().max() <= _TOLERANCE * whole.abs().max())
