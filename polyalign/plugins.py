"""Plugins by file name: a module in ``strategies``, ``sources`` or ``evaluators`` is known by its stem.

Nothing registers itself. ``lilt_deep.py`` is the strategy ``lilt-deep``; a file whose name begins with an
underscore is shared code, not a plugin.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Literal

from polyalign.errors import UserError, did_you_mean

Kind = Literal["strategies", "sources", "evaluators"]

_SINGULAR: dict[Kind, str] = {"strategies": "strategy", "sources": "source", "evaluators": "evaluator"}


def names(kind: Kind) -> list[str]:
    """List the plugins of a kind by looking into its folder, sorted, without importing any of them."""
    folder = Path(__file__).parent / kind
    stems = (module.name for module in pkgutil.iter_modules([str(folder)]))
    return sorted(stem.replace("_", "-") for stem in stems if not stem.startswith("_"))


def load(kind: Kind, name: str) -> ModuleType:
    """Import the plugin called ``name``.

    Raises:
        UserError: no plugin of that kind has this name; the message suggests the nearest.
    """
    known = names(kind)
    if name not in known:
        raise UserError(f'unknown {_SINGULAR[kind]} "{name}": {did_you_mean(name, known)}')
    return importlib.import_module(f"polyalign.{kind}.{name.replace('-', '_')}")
