"""Folders of runs: their names, and training into them."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import xxhash

import polyalign
from polyalign.config.resolve import resolve, resolve_continuation, resolve_distillation, resolve_student
from polyalign.config.schema import Parent, Recipe, merge
from polyalign.evaluation import external_models
from polyalign.evaluation.external_models import is_external
from polyalign.evaluation.results import Run
from polyalign.experiments.workers import LOG, RECIPE, RESTARTS, RUNNING
from polyalign.models import checkpoint
from polyalign.training import train
from polyalign.training.inherit import weights_digest, weights_of
from polyalign.training.metrics_log import Tracker
from polyalign.utils import storage
from polyalign.utils.errors import UserError, first_line
from polyalign.utils.lock import LOCK_FILES, locked
from polyalign.utils.process import from_main_process, processes
from polyalign.utils.progress import progress_bars
from polyalign.utils.text import safe_stem

logger = logging.getLogger(__name__)

MANIFEST = ".polyalign.files.json"
"""Lists the files of a run with hashes of their contents, None while they may be written."""

STUDENT = "xlmr-dinov2"
"""The recipe of students of an external model, if none is given; its vision tower is not used."""


def default_folder(recipe: Recipe, recipe_file: str) -> Path:
    """Return the default folder of a run, in ``./runs`` (see ``run_name``)."""
    return Path("runs") / run_name(recipe, recipe_file)


def run_name(recipe: Recipe, recipe_file: str, usual: dict[str, Any] | None = None) -> str:
    """Name a run after recipe, language, strategy, budget and seed.

    If other settings differ from the recipe file, the name ends with a digest of the resolved recipe without its seed,
    so that runs with different settings have different names.

    Args:
        recipe: resolved recipe of the run.
        recipe_file: the name or path that it was resolved from.
        usual: settings that differ from the recipe file without being part of the name.
    """
    strategy = recipe.strategy
    _, config = recipe.plugin("strategy")
    plain = type(config)()
    own = [Path(recipe.source["root"]).resolve().name] if recipe.source["name"] == "folder" else []
    parts = [recipe.name, *own, "+".join(recipe.langs), strategy["name"]]
    parts += [str(strategy[key]) for key in ("towers", "layers") if strategy[key] != getattr(plain, key)]
    parts += [recipe.budget, f"s{recipe.train.seed}"]
    if _plain(recipe, recipe_file, usual or {}) != recipe:
        unseeded = recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": 0})})
        parts.append(hashlib.sha256(unseeded.to_toml().encode()).hexdigest()[:6])
    return safe_stem("-".join(parts).replace(":", ""))


def _plain(recipe: Recipe, recipe_file: str, usual: dict[str, Any]) -> Recipe | None:
    """Resolve the recipe file with only the settings in the name of a run; None if it needs others."""
    named: dict[str, Any] = {
        "strategy": {key: recipe.strategy[key] for key in ("towers", "layers")},
        "data": {"budget": recipe.data.budget, "budgets": recipe.data.budgets},
        "train": {key: getattr(recipe.train, key) for key in ("seed", "max_seconds", "max_memory_bytes")},
    }
    try:
        return resolve(recipe_file, ",".join(recipe.langs), recipe.strategy["name"], merge(named, usual))
    except UserError:  # e.g. a source without its root: the names of all runs have a digest
        return None


def continuation(run: Path, lang: str | None, overrides: dict[str, Any]) -> Recipe:
    """Resolve a run that goes on from a finished one; see ``resolve_continuation``."""
    return resolve_continuation(Parent(run=str(run), weights=weights_digest(run)), lang, overrides)


def distillation(
    teacher: str | Path, lang: str, strategy: str, overrides: dict[str, Any], recipe: str | None = None
) -> Recipe:
    """Resolve a run whose text tower learns from a finished run, or from an external model.

    ``recipe`` names the text tower, the tests and the training of a student of an external model; a run has its own.
    See ``resolve_distillation`` and ``resolve_student``.

    Raises:
        UserError: there is no such teacher, it cannot teach, or the settings are invalid.
    """
    if is_external(str(teacher)):
        files = Path(str(teacher).partition(":")[2]).glob("*.safetensors")
        weights, dim = _external(str(teacher), tuple((file, file.stat().st_mtime_ns) for file in sorted(files)))
        return resolve_student(
            Parent(run=str(teacher), weights=weights), dim, recipe or STUDENT, lang, strategy, overrides
        )
    if recipe is not None:
        raise UserError(f"the recipe is that of {teacher}: leave out --recipe")
    run = Path(teacher)
    return resolve_distillation(Parent(run=str(run), weights=weights_digest(run)), lang, strategy, overrides)


@cache
def _external(name: str, files: tuple[tuple[Path, int], ...]) -> tuple[str, int]:
    """Return the SHA-256 of the weights of an external model, and the dimension of its vectors.

    ``files`` are those in its folder, if it is one, with the times of their last changes.
    """
    model = external_models.load(name)
    return weights_of(model), model.encode_text(["."]).shape[1]


def versioned_digest(recipe: Recipe) -> str:
    """Return a hash of the recipe and the version of polyalign, for the name of a folder that only this run uses."""
    return hashlib.sha256(f"{polyalign.__version__}\n{recipe.to_toml()}".encode()).hexdigest()[:8]


def train_into(
    folder: Path, recipe: Recipe, *, resume: bool, overwrite: bool, track: Tracker | None = None
) -> Run | None:
    """Train into a folder and return the run, or the finished run of the same recipe that the folder holds.

    With ``overwrite`` an existing run is deleted first; other files in the folder are kept. ``track`` names a tracker
    that the metrics of the training are sent to. In all but the main process the result is None.

    Raises:
        UserError: the folder holds a run with other settings, an unfinished run (without ``resume`` and ``overwrite``),
            or other files where the run would write; another process uses it; or it is not writable.
    """
    main = processes().is_main_process
    if main:
        _refuse_foreign(folder)
        storage.check_writable(folder)
    else:
        logging.getLogger("polyalign").setLevel(logging.ERROR)
    with locked(folder) if main else nullcontext():
        for name in train.FILES if main else ():
            storage.remove_abandoned(folder, name)
        if overwrite and main:
            _delete_run(folder)
        # Only the main process reads the folder, which other machines may not share.
        finished = from_main_process((folder / train.RESULT).exists())
        begun = from_main_process((folder / train.STATE).exists())
        if finished:
            return _finished(folder, recipe) if main else None
        if begun and not resume:
            raise UserError(
                f"{folder} holds an unfinished run: continue it with --resume, or start over with --overwrite"
            )
        if resume and not begun:
            logger.info(f"nothing to resume in {folder}: starting a new run")
        if main and not begun:
            _refuse_changed(folder)
        with progress_bars(enabled=main), _listed(folder) if main else nullcontext():
            return train.train(recipe, folder, resume=resume, track=track)


def _finished(folder: Path, recipe: Recipe) -> Run:
    """Return the finished run in a folder, which must be of this recipe."""
    run = Run.load_json(folder / train.RESULT)
    if not recipe.is_of(run.recipe):
        raise UserError(f"{folder} holds a run with other settings: use another --out, or --overwrite")
    logger.info(f"the run in {folder} is already finished; train it again with --overwrite")
    return run


def _refuse_foreign(folder: Path) -> None:
    """Check that a folder is new, is empty, or holds a run, so that the files of a run are not mixed with others."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    names = {name for name in names if not name.endswith(storage.PARTIAL)}  # which a killed process may have left
    if names - {RECIPE, LOG, RESTARTS, RUNNING, *LOCK_FILES} and not names & {train.RESULT, train.STATE, MANIFEST}:
        raise UserError(f"{folder} contains other files and no run: use a new folder for --out")
    for name in set(train.FILES) - {checkpoint.TOKENIZER}:
        if (folder / name).is_dir():
            raise UserError(f"{folder / name} is not as a run left it: move it away, or use another --out")


def _delete_run(folder: Path) -> None:
    """Delete the files of a run that its manifest lists, or none of them; symbolic links are removed, not followed."""
    if _files(folder) and not (folder / MANIFEST).exists():
        raise UserError(
            f"{folder} does not list the files of its run, as older versions wrote it: delete the run yourself, "
            "or use another --out"
        )
    _refuse_changed(folder)
    for name in (train.RESULT, *train.FILES):  # without its result, a half-deleted run is not taken for a finished one
        path = folder / name
        for file in [path] if path.is_symlink() or not path.is_dir() else _files(folder, (name,)):
            file.unlink(missing_ok=True)


def _refuse_changed(folder: Path) -> None:
    """Check that each file where a run writes is one that the last run in this folder wrote.

    The files of a run that was killed while it wrote them are known by name only, those in subfolders not at all.
    """
    listed = _manifest(folder)
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        if name not in listed or listed[name] not in (None, _digest(path)):
            raise UserError(f"{path} is not as a run left it: move it away, or use another --out")


def _files(folder: Path, names: tuple[str, ...] = train.FILES) -> list[Path]:
    """Return all that exists under the names of a run's files, with the contents of subfolders."""
    paths = [path for name in names for path in (folder / name, *(folder / name).rglob("*"))]
    return [path for path in paths if not path.is_dir() and (path.exists() or path.is_symlink())]


def _digest(path: Path) -> str:
    """Return a hash of the contents of a file, which is empty for a broken link or a device."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


@contextmanager
def _listed(folder: Path) -> Iterator[None]:
    """List the files of the run that is written inside the context, in ``MANIFEST``, at its start and at its end."""

    def write(files: dict[str, str | None]) -> None:
        storage.write_text(folder / MANIFEST, json.dumps(files, indent=2) + "\n")

    is_new = not (folder / MANIFEST).exists()
    write(dict.fromkeys(train.FILES))
    try:
        yield
    finally:
        files = _files(folder)
        write({path.relative_to(folder).as_posix(): _digest(path) for path in files})
        if is_new and not files:
            (folder / MANIFEST).unlink()


def _manifest(folder: Path) -> dict[str, str | None]:
    """Read ``MANIFEST``; without one no files are listed."""
    path = folder / MANIFEST
    try:
        listed = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {first_line(error)}; use another --out") from error
    if not isinstance(listed, dict):
        raise UserError(f"{path} is not a list of files: use another --out")
    return listed
