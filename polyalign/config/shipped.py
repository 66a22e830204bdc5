"""Find shipped TOML files; a file of the same name in the working folder takes precedence."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

from polyalign.config.values import check_values
from polyalign.utils.errors import UserError, did_you_mean
from polyalign.utils.files import check_is_file
from polyalign.utils.text import clean

Kind = Literal["recipes", "langs", "suites"]

_PACKAGE = Path(__file__).parent.parent
_LARGEST = 2**20  # bytes


def folders(kind: Kind) -> list[Path]:
    """List the folders to look in, that of the working folder first."""
    # A wheel has the shipped folder inside the package, a checkout beside it.
    candidates = [Path.cwd() / kind, _PACKAGE / kind, _PACKAGE.parent / kind]
    return [folder for folder in candidates if folder.is_dir()]


def shipped_names(kind: Kind) -> list[str]:
    """List the sorted names that ``find_shipped`` finds."""
    return sorted(_files(kind))


def find_shipped(kind: Kind, name: str) -> Path:
    """Find ``<name>.toml``.

    Raises:
        UserError: there is no such file; the message suggests the closest name.
    """
    found = _files(kind)
    if name in found:
        return found[name]
    singular = {"recipes": "recipe", "langs": "language", "suites": "suite"}[kind]
    is_here = kind == "recipes" and name in {path.stem for path in Path.cwd().glob("*.toml")}
    known = f"for the file in this folder, write {name}.toml" if is_here else did_you_mean(str(name), found)
    raise UserError(f'unknown {singular} "{clean(name, 100)}": {known}')


def is_shipped(kind: Kind, name: str) -> bool:
    """Whether the package has ``<name>.toml`` itself."""
    return any((folder / kind / f"{name}.toml").is_file() for folder in (_PACKAGE, _PACKAGE.parent))


def _files(kind: Kind) -> dict[str, Path]:
    """Return the files by name. Only these can be named: a name is never made part of a path."""
    last_first = reversed(folders(kind))
    return {path.stem: path for folder in last_first for path in folder.glob("*.toml") if path.is_file()}


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file of settings.

    Raises:
        UserError: the file is missing, is not a plain file, is too large, is not UTF-8 or TOML, or has a value that no
            setting may have.
    """
    try:
        check_is_file(path)
        if path.stat().st_size > _LARGEST:
            raise UserError(f"cannot read {clean(path)}: it is larger than {_LARGEST // 2**20} MiB")
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError as error:
        raise UserError(f"cannot read {clean(path)}: it is nested too deeply") from error
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, not TOML, an endless number, a null in the path
        raise UserError(f"cannot read {clean(path, 300)}: {clean(getattr(error, 'strerror', error), 300)}") from error
    check_values(table, str(path))
    return table
