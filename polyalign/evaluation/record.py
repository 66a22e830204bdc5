"""Immutable records, saved as JSON that people can read."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json

from polyalign.config.language import describe_error
from polyalign.utils import storage
from polyalign.utils.errors import UserError, first_line
from polyalign.utils.files import check_is_file

_MAX_DEPTH = 32
_NUMBERS = re.compile(r"\[\n([-+.eE\d\s,]+)\n *\]")  # strings in JSON contain no line break


def to_json(value: Any) -> str:
    """Return ``value`` as JSON indented by two spaces, with each list of numbers on one line.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    return _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text)


class Record(BaseModel):
    """An immutable record; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    def save_json(self, path: Path) -> None:
        """Write the record as indented JSON, each list of numbers on one line; the file is replaced as a whole."""
        storage.write_text(path, to_json(self.model_dump(mode="json")) + "\n")

    @classmethod
    def load_json(cls, path: Path) -> Self:
        """Read a record.

        Raises:
            UserError: the file is missing, is not JSON or does not fit the schema.
        """
        check_is_file(path)
        try:
            raw = from_json(path.read_bytes(), allow_inf_nan=False)
            _check_json(raw)
            return cls.model_validate(raw)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        except ValueError as error:
            why = describe_error(error) if isinstance(error, ValidationError) else first_line(error)
            raise UserError(f"{path} is not a {cls.__name__.lower()} result: {why}") from error


def _check_json(raw: Any) -> None:
    """Check that JSON is not nested too deeply, and that all its numbers are finite and fit 64 bits."""
    level = [raw]
    for _ in range(_MAX_DEPTH):
        for one in level:
            if (isinstance(one, float) and not math.isfinite(one)) or (isinstance(one, int) and abs(one) >= 2**63):
                raise ValueError("it has a number that is infinite or has more than 64 bits")
        inner = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [value for values in inner for value in values]
    if level:
        raise ValueError(f"it is nested more than {_MAX_DEPTH} levels deep")
