"""Budgets of training: a number of pairs, a time, or a peak memory."""

from __future__ import annotations

import re
from dataclasses import dataclass

from polyalign.utils.errors import UserError
from polyalign.utils.text import clean

MAX_PAIRS, MAX_SECONDS, MAX_BYTES = 10**12, 10**9, 2**50

_EXAMPLES = 'such as "10k-pairs", "500-pairs", "20min" or "4GiB"'
_PATTERN = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>k-pairs|m-pairs|-pairs|-pair|s|min|h|[kmg]ib|[kmg]b)")
_PAIRS = {"-pair": 1, "-pairs": 1, "k-pairs": 1_000, "m-pairs": 1_000_000}
_SECONDS = {"s": 1, "min": 60, "h": 3600}
_BYTES = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@dataclass(frozen=True)
class PairBudget:
    """The largest number of image-caption pairs to train on."""

    pairs: int

    def __str__(self) -> str:
        thousands = self.pairs % 100 == 0 and self.pairs >= 1_000
        return f"{self.pairs / 1000:.12g}k-pairs" if thousands else f"{self.pairs}-pairs"


@dataclass(frozen=True)
class TimeBudget:
    """The longest wall-clock time of training."""

    seconds: float

    def __str__(self) -> str:
        return _in_largest_unit(self.seconds, _SECONDS)


@dataclass(frozen=True)
class MemoryBudget:
    """The largest peak memory of training."""

    bytes: int

    def __str__(self) -> str:
        return _in_largest_unit(self.bytes, {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30})


Budget = PairBudget | TimeBudget | MemoryBudget


def parse_budget(text: str) -> Budget:
    """Read a budget: pairs (``10k-pairs``), time (``20min``, ``90s``, ``2h``) or memory (``4GiB``, ``500MB``).

    Raises:
        UserError: the text is not a budget, or not a positive whole number of pairs.
    """
    shown = clean(text, 40)
    match = _PATTERN.fullmatch(text.strip().lower())
    if match is None:
        raise UserError(f'"{shown}" is not a budget: give one {_EXAMPLES}')
    number, unit = float(match["number"]), match["unit"]
    if number <= 0:
        raise UserError(f'a budget must be larger than 0, not "{shown}": give one {_EXAMPLES}')
    for units, largest in ((_PAIRS, MAX_PAIRS), (_SECONDS, MAX_SECONDS), (_BYTES, MAX_BYTES)):
        if number * units.get(unit, 0) > largest:
            raise UserError(f'the budget "{shown}" is too large: give one {_EXAMPLES}')
    if unit in _SECONDS:
        return TimeBudget(seconds=number * _SECONDS[unit])
    if unit in _BYTES:
        return MemoryBudget(bytes=max(1, round(number * _BYTES[unit])))
    pairs = number * _PAIRS[unit]
    if abs(pairs - round(pairs)) > 1e-6:
        raise UserError(f'"{shown}" is {pairs:g} pairs: give a whole number')
    return PairBudget(pairs=round(pairs))


def parse_budgets(text: str) -> tuple[Budget, ...]:
    """Read one budget, or several joined by a plus: ``10k-pairs+20min``.

    Raises:
        UserError: a part is not a budget, or two are of the same kind.
    """
    found = tuple(parse_budget(part) for part in text.split("+"))
    if len(set(map(type, found))) < len(found):
        raise UserError(
            f'"{clean(text, 80)}" has two budgets of the same kind: give one number of pairs, one time, one memory'
        )
    return found


def split_by_language(text: str) -> tuple[dict[str, str], str]:
    """Split ``qu=1k-pairs,es=10k-pairs+20min`` into the pairs of single languages and the rest.

    Raises:
        UserError: a language has two budgets, or one that is not a number of pairs.
    """
    by_lang: dict[str, str] = {}
    rest = []
    for part in text.replace(",", "+").split("+"):
        lang, equals, budget = (piece.strip() for piece in part.partition("="))
        if not equals:
            rest.append(part)
        elif lang in by_lang or not isinstance(parse_budget(budget), PairBudget):
            raise UserError(f'"{clean(text, 80)}": give each language one number of pairs, as in qu=1k-pairs')
        else:
            by_lang[lang] = str(parse_budget(budget))
    return by_lang, "+".join(rest)


def _in_largest_unit(amount: float, units: dict[str, int]) -> str:
    """Write an amount in the largest of the ascending units that divides it, else in the smallest."""
    fitting = [unit for unit, size in units.items() if amount % size == 0]
    unit = fitting[-1] if fitting else next(iter(units))
    return f"{amount / units[unit]:.12g}{unit}"
