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
from collections.abc import Callable
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from pydantic import BaseModel

from polyalign.utils.errors import UserError, did_you_mean, first_line
from polyalign.utils.text import clean

Kind = Literal["strategies", "sources", "tasks"]

_PACKAGE = Path(__file__).parent.parent
_HOME: dict[Kind, str] = {"strategies": "models.strategies", "sources": "data.sources", "tasks": "evaluation.tasks"}
_SINGULAR: dict[Kind, str] = {"strategies": "strategy", "sources": "source", "tasks": "task"}
_FUNCTION: dict[Kind, str] = {"strategies": "apply", "sources": "load", "tasks": "score"}

logger = logging.getLogger(__name__)


def plugin_names(kind: Kind) -> list[str]:
    """Return the sorted names of all plugins of a kind, without importing any of them."""
    return sorted({*shipped_plugins(kind), *_own(kind), *_installed(kind)})


def load_plugin(kind: Kind, name: str) -> ModuleType:
    """Import the plugin called ``name``: a shipped one if there is one, else from the working folder or installed.

    Raises:
        UserError: no plugin of this kind has this name, or the module is not a plugin.
    """
    own = _own(kind)  # a name is looked up, never made part of a path
    if name in shipped_plugins(kind):
        if name in own:
            logger.warning("%s is ignored: polyalign has a %s of the same name; rename it", own[name], _SINGULAR[kind])
        return importlib.import_module(f"polyalign.{_HOME[kind]}.{name.replace('-', '_')}")
    if name in own:
        return _checked(kind, _from_file(kind, own[name]), str(own[name]))
    installed = _installed(kind)
    if name not in installed:
        known = did_you_mean(name, plugin_names(kind))
        raise UserError(
            f'unknown {_SINGULAR[kind]} "{clean(name, 100)}": {known}; put a plugin of your own into ./{kind}'
        )
    where = f"the entry point {installed[name].value}"
    return _checked(kind, _imported(installed[name].load, where), where)


def shipped_plugins(kind: Kind) -> list[str]:
    """Return the names of the plugins of the package itself, whose code can be run without being asked for."""
    folder = _PACKAGE.joinpath(*_HOME[kind].split("."))
    return sorted(_name(module.name) for module in pkgutil.iter_modules([str(folder)]))


def _own(kind: Kind) -> dict[str, Path]:
    """Return the plugin files of the working folder by name; a leading underscore marks shared code."""
    files = sorted((Path.cwd() / kind).glob("*.py"))
    named = [file for file in files if file.stem.isidentifier() and not file.stem.startswith("_")]
    return {_name(file.stem): file for file in named if file.is_file()}


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
        _imported(partial(spec.loader.exec_module, module), str(path))
    except UserError:
        del sys.modules[name]
        raise
    return module


def _imported(load: Callable[[], Any], where: str) -> Any:
    """Run the code of a plugin, which may raise anything."""
    try:
        return load()
    except Exception as error:
        raise UserError(f"{where} cannot be imported: {type(error).__name__}: {first_line(error)}") from error


def _checked(kind: Kind, module: ModuleType, where: str) -> ModuleType:
    config = getattr(module, "Config", None)
    settings = isinstance(config, type) and issubclass(config, BaseModel)
    for part, there in (("Config", settings), (_FUNCTION[kind], callable(getattr(module, _FUNCTION[kind], None)))):
        if not there:
            raise UserError(f"{where} is not a {_SINGULAR[kind]}: it has no {part} (see CONTRIBUTING.md)")
    return module
