"""Run a network up to one of its blocks, or on from there, so that a frozen lower part is computed only once.

The network's own forward pass always runs: a block that is not to be computed is replaced by a stand-in. Masks,
position embeddings and final norms therefore stay the network's own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from polyalign.utils.errors import UserError


@dataclass(frozen=True)
class Trace:
    """What one forward pass of a network showed.

    ``calls`` are the paths of all modules in the order of their calls. ``returns`` says of each block how many values
    it returns besides the hidden states, None where it returns no tuple, and whether any of them is a tensor.
    ``features`` ``(B, width)`` are those of the probe.
    """

    calls: tuple[str, ...]
    returns: dict[str, tuple[int | None, bool]]
    features: torch.Tensor

    def is_sequence(self, blocks: list[str]) -> bool:
        """Whether the blocks are called once each, in this order."""
        return [path for path in self.calls if path in set(blocks)] == blocks

    def after(self, block: str) -> list[str]:
        """Return the paths of the modules that are first called after ``block``, its own parts left out."""
        first = self.calls.index(block)
        before = set(self.calls[:first])
        later = [path for path in self.calls[first + 1 :] if path not in before and not is_inside(path, block)]
        return list(dict.fromkeys(later))


def is_inside(path: str, outer: str) -> bool:
    """Whether a module path is ``outer`` or lies in it."""
    return path == outer or path.startswith(f"{outer}.")


def trace(model: nn.Module, blocks: list[str], run: Callable[[], torch.Tensor]) -> Trace:
    """Record the calls of one ``run`` of the model, which returns features ``(B, width)``."""
    calls: list[str] = []
    returns: dict[str, tuple[int | None, bool]] = {}

    def watch(path: str, module: nn.Module) -> Iterator[torch.utils.hooks.RemovableHandle]:
        yield module.register_forward_pre_hook(lambda *_: calls.append(path))
        if path in blocks:
            yield module.register_forward_hook(lambda _module, _args, out: returns.update({path: _beside(out)}))

    handles = [handle for path, module in model.named_modules() for handle in watch(path, module)]
    try:
        features = run()
    finally:
        for handle in handles:
            handle.remove()
    if features.ndim != 2:
        shape = tuple(features.shape)
        raise UserError(f"{type(model).__name__} gives features of shape {shape}, not one vector a row: set pooling")
    return Trace(tuple(calls), returns, features)


def _beside(out: Any) -> tuple[int | None, bool]:
    if not isinstance(out, tuple):
        return None, False
    return len(out) - 1, any(isinstance(value, torch.Tensor) for value in out[1:])


def find_blocks(model: nn.Module) -> list[str]:
    """Return the paths of the transformer blocks, lowest first: members of a list with attention and a norm each."""
    found: list[str] = []

    def search(module: nn.Module, path: str) -> None:
        for name, child in module.named_children():
            inner = f"{path}.{name}" if path else name
            in_list = isinstance(module, nn.ModuleList | nn.Sequential)
            if in_list and not isinstance(child, nn.ModuleList | nn.Sequential) and _is_block(child):
                found.append(inner)
            else:
                search(child, inner)

    search(model, "")
    return found


def _is_block(module: nn.Module) -> bool:
    names = [name.lower() for name, part in module.named_modules() if any(True for _ in part.parameters())]
    norms = any(is_norm(part) for part in module.modules())
    is_stack = any(
        isinstance(part, nn.ModuleList | nn.Sequential) and len(part) and all(_is_block(inner) for inner in part)
        for part in module.modules()
    )
    return norms and any("att" in name for name in names) and not is_stack


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer, by the name of its class."""
    has_own = any(True for _ in module.parameters(recurse=False))
    return "Norm" in type(module).__name__ and (has_own or not any(True for _ in module.children()))


class _StandIn(nn.Module):
    """Takes the place of a block and shows its attributes, which some networks read."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.__dict__["block"] = block  # not registered: its parameters are not this module's

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["block"], name)


class _Reached(Exception):  # noqa: N818 - it carries a result and is no error
    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class _Stop(_StandIn):
    """End the forward pass at the input of a block, or with ``above`` at its output."""

    def __init__(self, block: nn.Module, *, above: bool) -> None:
        super().__init__(block)
        self.above = above

    def forward(self, *args: Any, **kwargs: Any) -> None:
        out = self.__dict__["block"](*args, **kwargs) if self.above else next(iter([*args, *kwargs.values()]))
        raise _Reached(out[0] if isinstance(out, tuple) else out)


class _Skip(_StandIn):
    """Return ``hidden``, or the block's own input where it is None, in the form in which the block returns it.

    Tensors that a block returns besides, such as T5's position bias, are those of the lowest block, which runs for
    them; ``beside`` keeps them for the blocks above.
    """

    def __init__(
        self,
        block: nn.Module,
        returns: tuple[int | None, bool],
        beside: list[Any],
        hidden: torch.Tensor | None = None,
    ) -> None:
        super().__init__(block)
        self.returns = returns
        self.beside = beside
        self.hidden = hidden

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden = next(iter([*args, *kwargs.values()])) if self.hidden is None else self.hidden
        count, has_tensors = self.returns
        if count is None:
            return hidden
        if has_tensors and not self.beside:
            self.beside.extend(self.__dict__["block"](*args, **kwargs)[1:])
        return (hidden, *(self.beside if has_tensors else [None] * count))


class _Feed(_StandIn):
    """Run the block on ``hidden`` in place of its input."""

    def __init__(self, block: nn.Module, hidden: torch.Tensor) -> None:
        super().__init__(block)
        self.hidden = hidden

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if args:
            return self.__dict__["block"](self.hidden, *args[1:], **kwargs)
        first = next(iter(kwargs))
        return self.__dict__["block"](**{**kwargs, first: self.hidden})


def run_below(
    model: nn.Module, blocks: list[str], index: int, run: Callable[[nn.Module], torch.Tensor]
) -> torch.Tensor:
    """Run the model up to the input of block ``index``, or to the output of the last where there is no such block."""
    above = index == len(blocks)
    path = blocks[index - above]
    try:
        run(_replaced(model, {path: _Stop(model.get_submodule(path), above=above)}))
    except _Reached as reached:
        return reached.hidden
    raise RuntimeError(f"the forward pass does not reach {path}")


def run_above(
    model: nn.Module,
    blocks: list[str],
    index: int,
    returns: dict[str, tuple[int | None, bool]],
    hidden: torch.Tensor,
    run: Callable[[nn.Module], torch.Tensor],
) -> torch.Tensor:
    """Run the model from block ``index`` on, whose input is ``hidden``; above all blocks if there is no such block."""
    beside: list[Any] = []
    stand_ins: dict[str, nn.Module] = {
        path: _Skip(model.get_submodule(path), returns[path], beside) for path in blocks[:index]
    }
    if index < len(blocks):
        stand_ins[blocks[index]] = _Feed(model.get_submodule(blocks[index]), hidden)
    else:
        last = blocks[-1]
        stand_ins[last] = _Skip(model.get_submodule(last), returns[last], beside, hidden)
    return run(_replaced(model, stand_ins))


def record(blocks: list[nn.Module], run: Callable[[], torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Run the model; return the input of the first block with the output of every block, and what it returns."""
    hidden: list[torch.Tensor] = []

    def keep(values: Any) -> None:
        hidden.append(values[0] if isinstance(values, tuple) else values)

    handles = [block.register_forward_hook(lambda _module, _args, out: keep(out)) for block in blocks]
    handles.append(
        blocks[0].register_forward_pre_hook(
            lambda _module, args, kwargs: keep(next(iter([*args, *kwargs.values()]))), with_kwargs=True
        )
    )
    try:
        features = run()
    finally:
        for handle in handles:
            handle.remove()
    return hidden, features


def _replaced(model: nn.Module, parts: dict[str, nn.Module]) -> nn.Module:
    """Return a shallow copy of the model with other modules at these paths; everything else is shared."""
    if "" in parts:
        return parts[""]
    below: dict[str, dict[str, nn.Module]] = {}
    for path, part in parts.items():
        child, _, rest = path.partition(".")
        below.setdefault(child, {})[rest] = part
    twin = copy.copy(model)
    twin.__dict__["_modules"] = dict(model._modules)
    for child, inner in below.items():
        twin._modules[child] = _replaced(cast(nn.Module, model._modules[child]), inner)
    return twin


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put the module into evaluation mode, without gradients, and restore each part's mode afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training
