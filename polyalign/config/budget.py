"""Budgets: a number of pairs, a time, or a peak memory."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from polyalign.utils.errors import UserError

_EXAMPLES = 'such as "10k-pairs", "500-pairs", "20min" or "4GiB"'
_PATTERN = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>k-pairs|m-pairs|-pairs|-pair|s|min|h|[kmg]ib|[kmg]b)")
_PAIRS = {"-pair": 1, "-pairs": 1, "k-pairs": 1_000, "m-pairs": 1_000_000}
_SECONDS = {"s": 1, "min": 60, "h": 3600}
_BYTES = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


class PairBudget(BaseModel):
    """At most this many image-caption pairs to train on."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["pairs"] = "pairs"
    pairs: int = Field(ge=1)

    def __str__(self) -> str:
        """Write it as ``parse`` reads it."""
        thousands = self.pairs % 100 == 0 and self.pairs >= 1_000
        return f"{self.pairs / 1000:.12g}k-pairs" if thousands else f"{self.pairs}-pairs"


class TimeBudget(BaseModel):
    """At most this much time on the clock for training."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["time"] = "time"
    seconds: float = Field(gt=0)

    def __str__(self) -> str:
        """Write it as ``parse`` reads it."""
        return _in_largest_unit(self.seconds, _SECONDS)


class MemoryBudget(BaseModel):
    """At most this much peak memory."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["memory"] = "memory"
    bytes: int = Field(ge=1)

    def __str__(self) -> str:
        """Write it as ``parse`` reads it."""
        binary = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
        return _in_largest_unit(self.bytes, binary)


Budget = PairBudget | TimeBudget | MemoryBudget


def parse_budget(text: str) -> Budget:
    """Read a budget: pairs (``10k-pairs``), time (``20min``, ``90s``, ``2h``) or memory (``4GiB``, ``500MB``).

    Raises:
        UserError: the text is none of these, or is not a positive whole number of pairs.
    """
    match = _PATTERN.fullmatch(text.strip().lower())
    if match is None:
        raise UserError(f'"{text}" is not a budget: give one {_EXAMPLES}')
    number, unit = float(match["number"]), match["unit"]
    if number <= 0:
        raise UserError(f'a budget of "{text}" leaves nothing: give one {_EXAMPLES}')
    if unit in _SECONDS:
        return TimeBudget(seconds=number * _SECONDS[unit])
    if unit in _BYTES:
        return MemoryBudget(bytes=max(1, round(number * _BYTES[unit])))
    pairs = number * _PAIRS[unit]
    if abs(pairs - round(pairs)) > 1e-6:
        raise UserError(f'"{text}" is {pairs:g} pairs: give a whole number of them')
    return PairBudget(pairs=round(pairs))


def parse_budgets(text: str) -> tuple[Budget, ...]:
    """Read a budget or several that hold together, joined by a plus: ``10k-pairs+20min``.

    Raises:
        UserError: one of them is no budget, or two are of one kind.
    """
    found = tuple(parse_budget(part) for part in text.split("+"))
    if len({one.kind for one in found}) < len(found):
        raise UserError(f'"{text}" has two budgets of one kind: give one number of pairs, one time, one memory')
    return found


def _in_largest_unit(amount: float, units: dict[str, int]) -> str:
    """Write in the largest unit that it is a whole number of, else in the smallest."""
    for unit, size in sorted(units.items(), key=lambda item: -item[1]):
        if amount % size == 0:
            return f"{amount / size:.12g}{unit}"
    unit, size = min(units.items(), key=lambda item: item[1])
    return f"{amount / size:.12g}{unit}"
