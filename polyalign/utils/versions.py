"""The versions that a result depends on."""

from __future__ import annotations

import platform
from importlib.metadata import version

import polyalign


def versions() -> dict[str, str]:
    """Return the versions of polyalign, Python and the libraries that compute."""
    libraries = ("torch", "timm", "transformers", "peft", "numpy")
    return {"polyalign": polyalign.__version__, "python": platform.python_version()} | {
        name: version(name) for name in libraries
    }
