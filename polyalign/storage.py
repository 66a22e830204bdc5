"""Writing files so that a reader sees the old one or the new one, never half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from polyalign.errors import UserError


def cache_folder() -> Path:
    """Give the folder of what is kept to be computed once: ``$POLYALIGN_CACHE``, or ``~/.cache/polyalign``."""
    return Path(os.environ.get("POLYALIGN_CACHE") or Path.home() / ".cache" / "polyalign")


def write(path: Path, fill: Callable[[Path], None]) -> None:
    """Let ``fill`` write a temporary file beside ``path``, then move it there in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    partial = Path(name)
    try:
        fill(partial)
        partial.chmod(0o644)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, its line ends as they are, atomically."""

    def fill(partial: Path) -> None:
        partial.write_bytes(text.encode())

    write(path, fill)


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, atomically.

    Nothing is copied but what would share memory, which safetensors refuses: a training state is several times a model.
    """
    ready: dict[str, torch.Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        shares = plain.untyped_storage().data_ptr() in places
        ready[name] = plain.clone() if shares else plain
        places.add(ready[name].untyped_storage().data_ptr())
    write(path, lambda partial: save_file(ready, partial, metadata=dict(metadata or {})))


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read a safetensors file and its metadata.

    Raises:
        UserError: the file is missing or is no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
