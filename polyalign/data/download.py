"""Download a dataset as far as its terms allow, and report what has to be placed by hand."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path, PurePosixPath
from typing import Literal

from polyalign.config.plugins import load_plugin
from polyalign.config.source_spec import SourceSpec
from polyalign.data import catalogue, unpack
from polyalign.data.fetch import digest, fetch
from polyalign.data.load import load_source
from polyalign.data.readers.info import Download, Info, Single
from polyalign.utils.errors import UserError
from polyalign.utils.lock import locked
from polyalign.utils.progress import progress
from polyalign.utils.text import clean

logger = logging.getLogger(__name__)

Photos = Literal["none", "test", "all"]

PHOTOS = "photos"
"""Folder, next to the dataset folders, that photos are downloaded into, for use with ``--images``."""

# Disk space for an archive and its contents relative to the archive; captions compress to about a fifth, photos do not.
_ROOM = {True: 2, False: 6}
_PHOTO_NAME = re.compile(r"\w[\w.-]*", re.ASCII)


def download_dataset(name: str, root: Path, photos: Photos) -> str:
    """Download a dataset into its folder below ``root``; return a report of what is there and what is missing.

    Existing files are kept; one with the wrong content is an error.

    Raises:
        UserError: the dataset is unknown, nothing requested may be downloaded, another process downloads into the
            folder, or a download fails.
    """
    info = catalogue.info(name)
    folder = root / info.folder
    if photos != "none" and not info.photos and info.single is None:
        raise UserError(f"the photos of {name} cannot be downloaded automatically: {info.images or info.captions}")
    if photos == "all" and not info.photos:
        raise UserError(f"only the photos of {name}'s test set can be downloaded: use --photos test")
    if not info.downloads and photos == "none":
        images = f"; and in a folder for --images: {info.images}" if info.images else ""
        raise UserError(
            f"{name} cannot be downloaded automatically. "
            f"Get it from {info.home} and place in {folder}: {info.captions}{images}"
        )
    logger.info(f"{info.title}, licence: {info.licence}")
    got = Counter[str]()  # files "downloaded" and "already present"
    with locked(folder), nullcontext() if photos == "none" else locked(root / PHOTOS):
        for one in info.downloads:
            _fetch(one, name, folder, got)
        if photos == "test" and info.single is not None:
            _fetch_single(name, info.single, folder, root / PHOTOS, got)
        elif photos != "none":
            for one in info.photos:
                _fetch(one, name, root / PHOTOS, got)
    return _report(name, info, root, photos, got)


def _fetch(one: Download, name: str, folder: Path, got: Counter[str]) -> None:
    """Download a file, the files of a folder, or an archive, which is unpacked."""
    task = f"downloading {name}"
    if one.url.endswith("/"):
        _fetch_files(task, [(f"{one.url}{path}", folder / path, sha256) for sha256, path in listed(name)], got)
    elif one.unpack:
        _fetch_archive(one, folder, got)
    else:
        _fetch_files(task, [(one.url, folder / one.to, one.sha256)], got)


def listed(name: str) -> Iterator[tuple[str, str]]:
    """Yield hash and path of each file in the list beside a source."""
    module = load_plugin("sources", name)
    for line in Path(str(module.__file__)).with_suffix(".sha256").read_text(encoding="utf-8").splitlines():
        sha256, _, path = line.partition("  ")
        yield sha256, path


def _fetch_files(task: str, files: Sequence[tuple[str, Path, str]], got: Counter[str]) -> None:
    """Download files, given as address, target and hash, that are not present."""
    for done, (url, path, sha256) in enumerate(files, start=1):
        got["downloaded" if _fetch_file(url, path, sha256) else "already present"] += 1
        progress(task, done, len(files))


def _fetch_file(url: str, path: Path, sha256: str, copies: int = 1) -> bool:
    """Download a file unless it is present; return whether it was downloaded."""
    if not os.path.lexists(path):
        fetch(url, path, sha256=sha256, copies=copies)
        return True
    if not path.is_file() or (sha256 and digest(path) != sha256):
        raise UserError(f"{path} differs from the published file: move it away to download {url}")
    return False


def _fetch_archive(one: Download, folder: Path, got: Counter[str]) -> None:
    whole = one.unpack == ("*",)
    target = folder / one.to
    if target.is_dir() if whole else all((target / name).is_file() for name in one.unpack):
        got["already present"] += 1
        return
    archive = folder / PurePosixPath(one.url).name
    _fetch_file(one.url, archive, one.sha256, copies=_ROOM[whole])
    if whole:
        unpack.everything(archive, target)
    else:
        unpack.named(archive, one.unpack, target)
    archive.unlink()
    got["downloaded"] += 1


def _fetch_single(name: str, single: Single, folder: Path, photos: Path, got: Counter[str]) -> None:
    """Download the photos of the test set one by one."""
    spec = SourceSpec(name=name, options={"root": str(folder), **single.options})
    known = spec.languages()
    if not known:
        raise UserError(f"{folder} has no captions of {name}, which list the photos to download")
    ids = load_source(spec, known[0], "test").image_ids
    if odd := next((one for one in ids if not _PHOTO_NAME.fullmatch(one)), None):
        raise UserError(f'{folder}: "{clean(odd, 80)}" is not the name of a photo: download {name} again')
    wanted = [
        (url.format(image_id), photos / single.to / image_id, "")
        for image_id in ids
        for start, url in single.urls.items()
        if image_id.startswith(start)
    ]
    _fetch_files(f"downloading photos of {name}", wanted, got)


def _report(name: str, info: Info, root: Path, photos: Photos, got: Counter[str]) -> str:
    folder = root / info.folder
    lines = [f"{folder}: {got['downloaded']:,} downloaded, {got['already present']:,} already present"]
    known = SourceSpec(name=name, options={"root": str(folder)}).languages()
    if known:
        lines.append(f"captions in: {' '.join(known)}")
    if info.images and photos == "none":
        get = f"polyalign data get {name} --root {root} --photos"
        ways = [f"{get} test (those of the test set)"] if info.single or info.photos else []
        ways += [f"{get} all (all)"] if info.single and info.photos else []
        lines.append(f"photos needed: {info.images}" + (f"; {' or '.join(ways)}" if ways else ""))
    images = f" --images {root / PHOTOS}" if info.images else ""
    lines.append(f"use it: polyalign eval RUN --data {name} --set source.root={folder}{images}")
    return "\n".join(lines)
