"""Atomic writing of files, so that a reader sees the old or the new file, never a partial one."""

from __future__ import annotations

import errno
import fcntl
import glob
import json
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from polyalign.utils.errors import DISK_ERRORS, UserError, first_line
from polyalign.utils.text import binary_size

logger = logging.getLogger(__name__)

_CHECKSUM = "xxh3_128"  # key of the checksum in the metadata of a safetensors file
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the errors of a full disk."""

PARTIAL = ".polyalign-partial"  # end of the names of temporary files


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
        raise cannot_write(folder, error) from error


def check_room(folder: Path, size: int, what: str) -> None:
    """Check that ``size`` bytes fit on the disk of ``folder``, before anything is computed for them.

    Raises:
        UserError: they do not fit.
    """
    free = shutil.disk_usage(_nearest(folder)).free
    if size > free:
        raise UserError(
            f"{what} would take {binary_size(size)} in {folder}, where {binary_size(free)} are free: make room"
        )


def write(path: Path, fill: Callable[[Path], object]) -> None:
    """Let ``fill`` write a temporary file next to ``path``, then move it into place atomically.

    The temporary file is locked while it is written, which tells it from one that a killed process left; those of this
    ``path`` are deleted first.

    Raises:
        UserError: the folder cannot be written to, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path.parent, path.name)
        handle, partial = _temporary(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        fill(partial)
        partial.chmod(_mode(path))
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in DISK_ERRORS and error.filename in (None, str(partial)):
            raise cannot_write(path, error) from error
        raise
    finally:
        os.close(handle)


def _mode(path: Path) -> int:
    """Return the permissions of a file that is replaced, which another process may delete meanwhile."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return 0o644


def _temporary(path: Path) -> tuple[int, Path]:
    """Create and lock a temporary file next to ``path``; again if another process deletes it before it is locked."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.", suffix=PARTIAL)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_kept = os.fstat(handle).st_nlink > 0
        except BlockingIOError:
            is_kept = False
        except OSError:  # a file system without locks, where abandoned files are left alone
            is_kept = True
        if is_kept:
            return handle, Path(name)
        os.close(handle)


def remove_abandoned(folder: Path, name: str = "*") -> int:
    """Delete the temporary files that killed processes left in a folder, and return the number of bytes freed.

    Args:
        folder: the folder; its subfolders are not searched.
        name: only temporary files for this file name.
    """
    freed = 0
    pattern = name if name == "*" else glob.escape(name[:100])
    for partial in folder.glob(f".{pattern}.*{PARTIAL}"):
        if partial.is_symlink() or not partial.is_file():
            continue
        try:
            with partial.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                size = partial.stat().st_size
                partial.unlink()
                freed += size
        except OSError:  # being written, or of another user
            continue
    return freed


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Make a folder next to ``path`` that is deleted in the end; it is locked like the temporary files of ``write``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name[:100]}.", suffix=PARTIAL) as made:
        handle = os.open(made, os.O_RDONLY)
        try:
            with suppress(OSError):  # a file system without locks, where abandoned folders are left alone
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield Path(made)
        finally:
            os.close(handle)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Make a folder that is at ``path`` once the context ends; if it fails, nothing is left there.

    Raises:
        UserError: ``path`` exists or cannot be written to.
    """
    if path.exists():
        raise UserError(f"{path} already exists: use another --out")
    check_writable(path)
    remove_abandoned_folders(path)
    with temporary_folder(path) as holder:
        partial = holder / path.name
        partial.mkdir()
        try:
            yield partial
            partial.rename(path)
        except OSError as error:
            if error.errno in DISK_ERRORS:
                raise cannot_write(path, error) from error
            raise


def remove_abandoned_folders(path: Path) -> None:
    """Delete the folders that killed processes left of ``temporary_folder(path)``."""
    for left in path.parent.glob(f".{glob.escape(path.name[:100])}.*{PARTIAL}"):
        if left.is_symlink() or not left.is_dir():
            continue
        try:
            handle = os.open(left, os.O_RDONLY)
        except OSError:  # of another user, or deleted
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left)
        except OSError:  # in use, or of another user
            continue
        finally:
            os.close(handle)


def _nearest(folder: Path) -> Path:
    """Return the folder, or its nearest existing parent."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())


def cannot_write(path: Path, error: OSError) -> UserError:
    """Return the error to raise if ``path`` cannot be written to."""
    advice = "make room or choose another folder" if error.errno in FULL else "choose another folder"
    return UserError(f"cannot write {path}: {error.strerror}; {advice}")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically, with its line ends unchanged."""
    write(path, lambda partial: partial.write_bytes(text.encode()))


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically, with a checksum of all its contents in its metadata.

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
    facts = dict(metadata or {})
    facts[_CHECKSUM] = _checksum(ready, facts)
    try:
        write(path, lambda partial: save_file(ready, partial, metadata=facts))
    except SafetensorError as error:
        raise UserError(f"cannot write {path}: {first_line(error)}; make room or choose another folder") from error


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read a safetensors file of any program, and its metadata.

    Raises:
        UserError: the file is missing or is not a safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {first_line(error)}") from error


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read a file of ``save_tensors`` and its metadata, and compare them with its checksum.

    A file without a checksum, as older versions wrote it, is read with a message.

    Raises:
        UserError: the file is missing, is not a safetensors file, or is damaged.
    """
    tensors, metadata = read_tensors(path)
    checksum = metadata.pop(_CHECKSUM, None)
    if checksum is None:
        logger.info(f"{path} has no checksum, so damage to it cannot be detected")
    elif checksum != _checksum(tensors, metadata):
        raise UserError(f"{path} is damaged: its contents differ from its checksum; copy it again, or train again")
    return tensors, metadata


def _checksum(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    """Return a hash of the names, types, shapes and values of contiguous tensors on the CPU, and of the metadata."""
    digest = xxhash.xxh3_128(json.dumps(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        if tensor.numel():
            digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
