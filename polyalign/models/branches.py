"""The residual branches of a transformer block, found in the order of its calls and not by the names of a family."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn
from transformers.pytorch_utils import Conv1D

from polyalign.models.towers.base import Tower
from polyalign.models.towers.staging import is_inside, is_norm


class Branch(NamedTuple):
    """The linear maps and convolutions of one branch in the order of their calls, as paths inside the block."""

    is_attention: bool
    maps: tuple[str, ...]

    @property
    def end(self) -> str:
        """The last map, whose output is added to the residual stream."""
        return self.maps[-1]


def branches(tower: Tower, block: nn.Module) -> list[Branch]:
    """List the branches of a block of the tower: a norm outside attention, or the end of attention, divides them."""
    found: list[list[str]] = [[]]
    attention: list[bool] = [False]
    for name in _calls(tower.trace.calls, tower.path_of(block)):
        module = block.get_submodule(name)
        in_attention = "att" in name.lower()
        if is_norm(module) and not in_attention:
            found.append([])
            attention.append(False)
        elif is_map(module):
            if found[-1] and attention[-1] != in_attention:
                found.append([])
                attention.append(in_attention)
            attention[-1] = in_attention
            found[-1].append(name)
    return [Branch(is_att, tuple(maps)) for is_att, maps in zip(attention, found, strict=True) if maps]


def _calls(calls: tuple[str, ...], path: str) -> list[str]:
    """Return the calls inside the block at ``path``, in its first run, as paths inside it."""
    first = calls.index(path)
    inside = []
    for call in calls[first + 1 :]:
        if not is_inside(call, path) or call == path:
            break
        inside.append(call.removeprefix(f"{path}."))
    return inside


def is_map(module: nn.Module) -> bool:
    """Whether a module is a linear map (transformers' ``Conv1D`` is one) or a convolution."""
    return isinstance(module, nn.Linear | Conv1D | nn.Conv1d | nn.Conv2d)
