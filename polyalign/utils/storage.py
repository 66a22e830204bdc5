"""Atomic writing of files, so that a reader sees the old or the new file, never a partial one."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from polyalign.utils.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)


def cache_folder() -> Path:
    """Return the cache folder: ``$POLYALIGN_CACHE``, or ``~/.cache/polyalign``."""
    return Path(os.environ.get("POLYALIGN_CACHE") or Path.home() / ".cache" / "polyalign")


def check_writable(folder: Path) -> None:
    """Check that a folder is writable or can be created, before anything is computed for it.

    Raises:
        UserError: it is not writable.
    """
    try:
        with tempfile.TemporaryFile(dir=_nearest(folder)):
            pass
    except OSError as error:
        raise _cannot_write(folder, error) from error


def check_room(folder: Path, size: int, what: str) -> None:
    """Check that ``size`` bytes fit on the disk of ``folder``; writing a memory map to a full disk kills the process.

    Raises:
        UserError: they do not fit.
    """
    free = shutil.disk_usage(_nearest(folder)).free
    if size > free:
        raise UserError(
            f"{what} would take {size / 2**30:.1f} GiB in {folder}, where {free / 2**30:.1f} GiB are free: make room"
        )


def write(path: Path, fill: Callable[[Path], object]) -> None:
    """Let ``fill`` write a temporary file next to ``path``, then move it into place atomically.

    Raises:
        UserError: the folder cannot be written to, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise _cannot_write(path, error) from error
    os.close(handle)
    partial = Path(name)
    try:
        fill(partial)
        partial.chmod(0o644)
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _FULL:
            raise _cannot_write(path, error) from error
        raise


def _nearest(folder: Path) -> Path:
    """Return the folder, or its nearest existing parent."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())


def _cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot write {path}: {error.strerror}; make room or choose another folder")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically, with its line ends unchanged."""
    write(path, lambda partial: partial.write_bytes(text.encode()))


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically.

    Only tensors that share memory, which safetensors refuses, are copied, since a training state is large.

    Raises:
        UserError: the folder cannot be written to, or the disk is full.
    """
    ready: dict[str, torch.Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        shares = plain.untyped_storage().data_ptr() in places
        ready[name] = plain.clone() if shares else plain
        places.add(ready[name].untyped_storage().data_ptr())
    try:
        write(path, lambda partial: save_file(ready, partial, metadata=dict(metadata or {})))
    except SafetensorError as error:
        raise UserError(f"cannot write {path}: {error}") from error


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read a safetensors file and its metadata.

    Raises:
        UserError: the file is missing or is not a safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
