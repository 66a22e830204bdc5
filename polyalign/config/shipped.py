"""Find shipped TOML files; a file of the same name in the working folder takes precedence."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

from polyalign.utils.errors import UserError, did_you_mean

Kind = Literal["recipes", "langs", "suites"]

_PACKAGE = Path(__file__).parent.parent


def folders(kind: Kind) -> list[Path]:
    """List the folders to look in, that of the working folder first."""
    # A wheel has the shipped folder inside the package, a checkout beside it.
    candidates = [Path.cwd() / kind, _PACKAGE / kind, _PACKAGE.parent / kind]
    return [folder for folder in candidates if folder.is_dir()]


def shipped_names(kind: Kind) -> list[str]:
    """List the sorted names that ``find_shipped`` finds."""
    return sorted({path.stem for folder in folders(kind) for path in folder.glob("*.toml")})


def find_shipped(kind: Kind, name: str) -> Path:
    """Find ``<name>.toml``.

    Raises:
        UserError: there is no such file; the message suggests the closest name.
    """
    for folder in folders(kind):
        path = folder / f"{name}.toml"
        if path.is_file():
            return path
    singular = {"recipes": "recipe", "langs": "language", "suites": "suite"}[kind]
    raise UserError(f'unknown {singular} "{name}": {did_you_mean(name, shipped_names(kind))}')


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        UserError: the file is missing, is not UTF-8 or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
