"""Run a network up to one of its blocks, or on from there, so that a frozen lower part is computed only once.

The network's own forward pass always runs: a block that is not to be computed is replaced by a stand-in. Masks,
position embeddings and final norms therefore stay the network's own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
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

    def call(path: str, *_: Any) -> None:
        calls.append(path)

    def end(path: str, _module: nn.Module, _args: Any, out: Any) -> None:
        beside = out[1:] if isinstance(out, tuple) else ()
        has_tensors = any(isinstance(value, torch.Tensor) for value in beside)
        returns[path] = (len(beside) if isinstance(out, tuple) else None, has_tensors)

    with ExitStack() as hooks:
        for path, module in model.named_modules():
            hooks.callback(module.register_forward_pre_hook(partial(call, path)).remove)
            if path in blocks:
                hooks.callback(module.register_forward_hook(partial(end, path)).remove)
        features = run()
    if features.ndim != 2:
        shape = tuple(features.shape)
        raise UserError(f"{type(model).__name__} gives features of shape {shape}, not one vector a row: set pooling")
    return Trace(tuple(calls), returns, features)


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
    """Takes the place of a block: runs ``forward`` and shows the block's attributes, which some networks read."""

    def __init__(self, block: nn.Module, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.__dict__["block"] = block  # not registered: its parameters are not this module's
        self.forward = forward

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["block"], name)


class _Reached(Exception):  # noqa: N818 - it carries a result and is no error
    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__()
        self.hidden = hidden


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the first argument of a block, the hidden states."""
    return next(iter([*args, *kwargs.values()]))


def _hidden(out: Any) -> Any:
    """Return the hidden states that a block returns, alone or first in a tuple."""
    return out[0] if isinstance(out, tuple) else out


def _stop(block: nn.Module, *, above: bool) -> _StandIn:
    """End the forward pass at the input of a block, or with ``above`` at its output."""

    def forward(*args: Any, **kwargs: Any) -> None:
        raise _Reached(_hidden(block(*args, **kwargs)) if above else _input(args, kwargs))

    return _StandIn(block, forward)


def _skip(
    block: nn.Module, returns: tuple[int | None, bool], beside: list[Any], hidden: torch.Tensor | None = None
) -> _StandIn:
    """Return ``hidden``, or the block's own input where it is None, in the form in which the block returns it.

    Tensors that a block returns besides, such as T5's position bias, are those of the lowest block, which runs for
    them; ``beside`` keeps them for the blocks above.
    """
    count, has_tensors = returns

    def forward(*args: Any, **kwargs: Any) -> Any:
        values = _input(args, kwargs) if hidden is None else hidden
        if count is None:
            return values
        if has_tensors and not beside:
            beside.extend(block(*args, **kwargs)[1:])
        return (values, *(beside if has_tensors else [None] * count))

    return _StandIn(block, forward)


def _feed(block: nn.Module, hidden: torch.Tensor) -> _StandIn:
    """Run the block on ``hidden`` in place of its input."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        if args:
            return block(hidden, *args[1:], **kwargs)
        return block(**{**kwargs, next(iter(kwargs)): hidden})

    return _StandIn(block, forward)


def run_below(
    model: nn.Module, blocks: list[str], index: int, run: Callable[[nn.Module], torch.Tensor]
) -> torch.Tensor:
    """Run the model up to the input of block ``index``, or to the output of the last where there is no such block."""
    above = index == len(blocks)
    path = blocks[index - above]
    try:
        run(_replaced(model, {path: _stop(model.get_submodule(path), above=above)}))
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
    block = model.get_submodule
    stand_ins: dict[str, nn.Module] = {path: _skip(block(path), returns[path], beside) for path in blocks[:index]}
    if index < len(blocks):
        stand_ins[blocks[index]] = _feed(block(blocks[index]), hidden)
    else:
        stand_ins[blocks[-1]] = _skip(block(blocks[-1]), returns[blocks[-1]], beside, hidden)
    return run(_replaced(model, stand_ins))


def record(blocks: list[nn.Module], run: Callable[[], torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Run the model; return the input of the first block with the output of every block, and what it returns."""
    hidden: list[torch.Tensor] = []
    with ExitStack() as hooks:
        for block in blocks:
            handle = block.register_forward_hook(lambda _module, _args, out: hidden.append(_hidden(out)))
            hooks.callback(handle.remove)
        handle = blocks[0].register_forward_pre_hook(
            lambda _module, args, kwargs: hidden.append(_input(args, kwargs)), with_kwargs=True
        )
        hooks.callback(handle.remove)
        return hidden, run()


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
