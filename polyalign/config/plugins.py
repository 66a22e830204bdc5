"""Plugins: a module is known by its file name, so ``lilt_deep.py`` is the strategy ``lilt-deep``.

Plugins are found in the package, in ``./strategies``, ``./sources`` and ``./tasks`` of the working folder, and through
entry points of installed packages (groups ``polyalign.strategies``, ``polyalign.sources``, ``polyalign.tasks``).
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import pkgutil
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Literal

from polyalign.utils.errors import UserError, did_you_mean

Kind = Literal["strategies", "sources", "tasks"]

_PACKAGE = Path(__file__).parent.parent
_HOME: dict[Kind, str] = {"strategies": "models.strategies", "sources": "data.sources", "tasks": "evaluation.tasks"}
_SINGULAR: dict[Kind, str] = {"strategies": "strategy", "sources": "source", "tasks": "task"}
_FUNCTION: dict[Kind, str] = {"strategies": "apply", "sources": "load", "tasks": "score"}

logger = logging.getLogger(__name__)


def plugin_names(kind: Kind) -> list[str]:
    """Return the sorted names of all plugins of a kind, without importing any of them."""
    return sorted({*_shipped(kind), *_own(kind), *_installed(kind)})


def load_plugin(kind: Kind, name: str) -> ModuleType:
    """Import the plugin called ``name``: a shipped one if there is one, else from the working folder or installed.

    Raises:
        UserError: no plugin of this kind has this name, or the module is not a plugin.
    """
    own = _own(kind)
    if name in _shipped(kind):
        if name in own:
            logger.warning("%s is ignored: polyalign has a %s of the same name; rename it", own[name], _SINGULAR[kind])
        return importlib.import_module(f"polyalign.{_HOME[kind]}.{name.replace('-', '_')}")
    if name in own:
        return _checked(kind, _from_file(kind, own[name]), str(own[name]))
    installed = _installed(kind)
    if name not in installed:
        known = did_you_mean(name, plugin_names(kind))
        raise UserError(f'unknown {_SINGULAR[kind]} "{name}": {known}; put a plugin of your own into ./{kind}')
    return _checked(kind, installed[name].load(), f"the entry point {installed[name].value}")


def _shipped(kind: Kind) -> list[str]:
    folder = _PACKAGE.joinpath(*_HOME[kind].split("."))
    return [_name(module.name) for module in pkgutil.iter_modules([str(folder)])]


def _own(kind: Kind) -> dict[str, Path]:
    """Return the plugin files of the working folder by name; a leading underscore marks shared code."""
    files = sorted((Path.cwd() / kind).glob("*.py"))
    return {_name(file.stem): file for file in files if file.stem.isidentifier() and not file.stem.startswith("_")}


def _installed(kind: Kind) -> dict[str, EntryPoint]:
    return {_name(point.name): point for point in entry_points(group=f"polyalign.{kind}")}


def _name(stem: str) -> str:
    return stem.replace("_", "-")


def _from_file(kind: Kind, path: Path) -> ModuleType:
    name = f"polyalign_own.{kind}.{path.stem}"
    known = sys.modules.get(name)
    if known is not None and known.__file__ == str(path):
        return known
    logger.warning("running code from the working folder: %s", path)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UserError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def _checked(kind: Kind, module: ModuleType, where: str) -> ModuleType:
    for part in ("Config", _FUNCTION[kind]):
        if not callable(getattr(module, part, None)):
            raise UserError(f"{where} is not a {_SINGULAR[kind]}: it has no {part} (see CONTRIBUTING.md)")
    return module
