"""Bounds of the values that settings may have, wherever they come from."""

from __future__ import annotations

import datetime
import math
from typing import Annotated, Any

from pydantic import Field

from polyalign.utils.errors import UserError
from polyalign.utils.text import clean

# Strict: true is not 1, and "1" is not 1. A field states the bounds of a ``Whole`` or a ``Number``.
Whole = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
Code = Annotated[str, Field(pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]+)*$", max_length=35)]
"""A BCP-47 language code."""

_DEEPEST = 20


def check_values(value: Any, where: str, key: str = "", depth: int = 0) -> None:
    """Check what no setting may hold, before a schema sees it.

    Raises:
        UserError: a table is nested too deeply, or a value is a date, a number that is not finite or needs more than 64
            bits, or text with a null character or half a surrogate pair; the message begins with ``where``.
    """
    problem = f"tables are nested more than {_DEEPEST} deep" if depth > _DEEPEST else _problem(value)
    if problem:
        raise UserError(f"{clean(where, 300)}: {clean(key, 100) or 'top level'}: {problem}")
    if isinstance(value, dict):
        for name, one in value.items():
            check_values(str(name), where, key or str(name))
            check_values(one, where, f"{key}.{name}" if key else str(name), depth + 1)
    elif isinstance(value, list | tuple):
        for one in value:
            check_values(one, where, key, depth + 1)


def _problem(value: Any) -> str | None:
    match value:
        case bool():
            return None
        case int() if not -(2**63) <= value < 2**63:
            return "the number is too large: numbers have 64 bits"
        case float() if not math.isfinite(value):
            return f"{value} is not allowed: give a finite number"
        case datetime.date() | datetime.time():
            return f"{value} is a date or a time: write text in quotation marks"
        case str() if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
            return "the text has a null character or half a surrogate pair: remove it"
    return None
