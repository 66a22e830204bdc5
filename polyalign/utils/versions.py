"""The versions of the software that a result depends on."""

from __future__ import annotations

import platform
from importlib.metadata import version

import polyalign


def versions() -> dict[str, str]:
    """Return the versions of polyalign, Python and the numerical libraries."""
    libraries = {name: version(name) for name in ("torch", "timm", "transformers", "peft", "numpy")}
    return {"polyalign": polyalign.__version__, "python": platform.python_version(), **libraries}
