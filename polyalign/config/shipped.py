"""Where the shipped TOML files are, and the rule that a user's own file of the same name wins."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

from polyalign.utils.errors import UserError, did_you_mean

Kind = Literal["recipes", "langs", "suites"]

_PACKAGE = Path(__file__).parent.parent


def folders(kind: Kind) -> list[Path]:
    """List the folders to look in, the user's own ``./recipes``, ``./langs`` or ``./suites`` first.

    In a wheel the shipped folder lies inside the package, in a checkout beside it.
    """
    candidates = [Path.cwd() / kind, _PACKAGE / kind, _PACKAGE.parent / kind]
    return [folder for folder in candidates if folder.is_dir()]


def shipped_names(kind: Kind) -> list[str]:
    """List the names that ``find`` would find, sorted."""
    return sorted({path.stem for folder in folders(kind) for path in folder.glob("*.toml")})


def find_shipped(kind: Kind, name: str) -> Path:
    """Find ``<name>.toml``.

    Raises:
        UserError: there is none; the message suggests the nearest name.
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
        UserError: the file is missing, is not UTF-8 or is not TOML; the message says where.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
