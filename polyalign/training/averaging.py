"""Averages of weights: of a run with its towers before training (WiSE-FT), and of several runs (model soups)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from polyalign.config.resolve import read_recipe
from polyalign.config.run_files import RECIPE, check_finished
from polyalign.config.schema import Recipe
from polyalign.data.load import load_devs, load_split
from polyalign.data.pairs import PairTable
from polyalign.data.trained_images import load_trained_images, save_trained_images
from polyalign.evaluation.encoders import Aligned, Encoder, ImageMemory, Vectors, device
from polyalign.evaluation.record import Record
from polyalign.evaluation.results import Score
from polyalign.evaluation.tasks import retrieval
from polyalign.models import checkpoint
from polyalign.models.aligner import Aligner
from polyalign.models.build import build_aligner
from polyalign.models.heads import last_parameters
from polyalign.training.inherit import inherit, trained_images
from polyalign.utils import storage
from polyalign.utils.errors import UserError
from polyalign.utils.lock import LOCK_FILES, locked
from polyalign.utils.text import clean

logger = logging.getLogger(__name__)

State = Mapping[str, torch.Tensor]

RECORD = "average.json"
"""Tells a folder of averaged weights from a run, whose result is in ``result.json``."""

_TOWERS = ("vision.", "text.")
_MAY_DIFFER = {
    "name",
    "description",
    "train.seed",
    "data.data_seed",
    "optim.lr",
    "optim.vision_lr",
    "optim.text_lr",
    "optim.projection_lr",
}
_RIDGE = 1e-9


class Average(Record):
    """How the weights of a folder were averaged: of which runs, and with ``alpha`` the weight of the trained towers.

    ``dev`` is the mean recall on dev by language; it is empty if it was not measured.
    """

    method: Literal["interpolation", "soup"]
    runs: tuple[str, ...]
    alpha: float | None = None
    dev: dict[str, float] = Field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """Mean recall on dev by language, that of the run first; ``alpha`` is None for runs and soups."""

    name: str
    dev: dict[str, Score]
    alpha: float | None = None


def interpolate(
    run: Path, alphas: Sequence[float], langs: Sequence[str] | None = None, out: Path | None = None
) -> list[Measured]:
    """Interpolate the towers of a run between before (0) and after training (1) (WiSE-FT, Wortsman et al. 2022).

    What is outside the towers stays as trained. Inserted modules start from their initial values. Each ``alpha`` is
    measured on dev in the language of the run and in ``langs`` (default: those it was tested in), unless there is only
    one and it is saved. The one with the highest recall in the language of the run is saved in ``out``; of equal ones,
    the smallest.

    Raises:
        UserError: no finished run, an ``alpha`` outside [0, 1], nothing trained inside the towers or nothing
            pretrained, or ``out`` is in use or not empty.
    """
    if wrong := next((alpha for alpha in alphas if not 0 <= alpha <= 1), None):
        raise UserError(f"alpha is {wrong:g}: give a number from 0 (before training) to 1 (after training)")
    with ExitStack() as stack:
        _claim(out, stack)
        aligner, recipe = _load(run)
        after = _copy(checkpoint.trained_state(aligner))
        if not any(name.startswith(_TOWERS) for name in after):
            what = f"strategy {recipe.strategy['name']}"
            raise UserError(f"{run} was trained with {what}, which changes nothing inside the towers to interpolate")
        before = _copy(checkpoint.trained_state(_untrained(run, aligner, recipe)))
        galleries = _galleries(recipe, langs) if out is None or len(alphas) > 1 else []
        found = []
        for alpha in alphas:
            checkpoint.restore(aligner, mixed(before, after, alpha), str(run))
            found.append(Measured(f"alpha {alpha:g}", _measure(_encoder(run, aligner, recipe), galleries), alpha))
        if out is not None:
            best = max(found, key=lambda one: (_selected_by(one, recipe), -(one.alpha or 0)))
            checkpoint.restore(aligner, mixed(before, after, best.alpha or 0), str(run))
            _save(out, aligner, recipe, "interpolation", [run], best)
    return found if galleries else []


def _selected_by(measured: Measured, recipe: Recipe) -> float:
    """Return the mean recall on dev over the languages that select the checkpoint in training."""
    langs = recipe.data.targets or recipe.langs
    return sum(measured.dev[lang].value for lang in langs) / len(langs) if measured.dev else 0.0


def mixed(before: State, after: State, alpha: float) -> dict[str, torch.Tensor]:
    """Return ``(1 - alpha) * before + alpha * after`` inside the towers, and ``after`` outside and for integers."""
    inside = {n: start for n, start in before.items() if n.startswith(_TOWERS) and start.is_floating_point()}
    if alpha in (0, 1):  # exact, also for -0.0
        return {**after, **(inside if alpha == 0 else {})}
    return {**after, **{name: (1 - alpha) * start + alpha * after[name] for name, start in inside.items()}}


def soup(runs: Sequence[Path], langs: Sequence[str] | None = None, out: Path | None = None) -> list[Measured]:
    """Average runs of a recipe that differ in seed or learning rate (model soups, Wortsman et al. 2022).

    As projections start from different random values, the joint space of each run is first rotated onto that of the
    first (see ``rotation``), by the embeddings of the dev split. Each run and their average are measured on dev in the
    language of the runs and in ``langs`` (default: those the first was tested in); the average is saved in ``out``.

    Raises:
        UserError: fewer than two runs, a folder without a finished run, runs of different recipes or towers, towers
            trained from random weights, or ``out`` is in use or not empty.
    """
    if len(runs) < 2:
        raise UserError("a soup needs two runs or more")
    with ExitStack() as stack:
        _claim(out, stack)
        for run in runs:
            check_finished(run)
            _check_same(run, runs[0])
        first, recipe = _load(runs[0])
        galleries = _galleries(recipe, langs)
        total: dict[str, torch.Tensor] = {}
        target, found = None, []
        for run in runs:
            aligner, own = _load(run) if target is not None else (first, recipe)
            encoder = _encoder(run, aligner, own)
            found.append(Measured(str(run), _measure(encoder, galleries)))
            joint = _joint(encoder, galleries[0])
            if target is None:
                target = joint
            else:
                rotate(aligner, rotation(joint, target))
            for name, tensor in _copy(checkpoint.trained_state(aligner)).items():
                total[name] = tensor.double() + total.get(name, 0)
        if first.inserted:
            name = recipe.strategy["name"]
            logger.warning(f"warning: {name} inserts modules, which start differently with each seed: check the recall")
        state = checkpoint.trained_state(first)
        averages = {name: (total[name] / len(runs)).to(tensor.dtype) for name, tensor in state.items()}
        checkpoint.restore(first, averages, "the average")
        found.append(Measured("soup", _measure(_encoder(runs[0], first, recipe), galleries)))
        if out is not None:
            _save(out, first, recipe, "soup", runs, found[-1])
    return found


def rotation(vectors: Vectors, target: Vectors) -> torch.Tensor:
    """Return the orthogonal ``R`` (D, D) for which ``vectors @ R.T`` is closest to ``target`` (orthogonal Procrustes).

    A small multiple of the identity decides directions that the vectors (N, D) do not span.
    """
    agreement = torch.from_numpy(target.astype(np.float64).T @ vectors.astype(np.float64))
    u, _, vt = torch.linalg.svd(agreement + _RIDGE * len(vectors) * torch.eye(len(agreement), dtype=torch.float64))
    turned: torch.Tensor = u @ vt
    return turned


@torch.no_grad()
def rotate(aligner: Aligner, turn: torch.Tensor) -> None:
    """Rotate the joint space by an orthogonal matrix (D, D), which changes no cosine between images and captions."""
    for projection in (aligner.vision_projection, aligner.text_projection):
        for parameter in last_parameters(projection):
            parameter.copy_(turn @ parameter.cpu().double())


def _load(run: Path) -> tuple[Aligner, Recipe]:
    """Load a run whose towers were pretrained, onto the accelerator if there is one."""
    aligner, recipe = checkpoint.load(run)
    if aligner.vision.is_random or aligner.text.is_random:
        raise UserError(f"{run} was trained from random weights: averaging needs towers that were pretrained")
    return aligner.to(device()), recipe


def _untrained(run: Path, aligner: Aligner, recipe: Recipe) -> Aligner:
    """Build the aligner of a run as it was before training: pretrained, or as its parent left it."""
    before = build_aligner(recipe, preprocessing=aligner.vision.preprocessing, tokenizer=run / checkpoint.TOKENIZER)
    inherit(before, recipe)
    return before


def _copy(state: State) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}


def _check_same(run: Path, first: Path) -> None:
    """Check that two runs have the same recipe, except for seeds, learning rates and tests, and the same towers."""
    one, other = (_settings(read_recipe(folder / RECIPE)) for folder in (run, first))
    for key in sorted({*one, *other} - _MAY_DIFFER):
        if one.get(key) != other.get(key):
            values = clean(f"{one.get(key)}, not {other.get(key)} as in {first}", 300)
            raise UserError(f"{run} has {key} = {values}: average runs that differ only in seed and learning rate")
    if (run / checkpoint.TOWERS).read_bytes() != (first / checkpoint.TOWERS).read_bytes():
        raise UserError(f"{run} and {first} have different towers or image preprocessing: they cannot be averaged")


def _settings(recipe: Recipe) -> dict[str, object]:
    """Return the settings that determine the weights, by dotted key."""
    table = recipe.model_dump(mode="json", exclude_none=True, exclude={"test", "cache"})
    nested = {name: value if isinstance(value, dict) else {"": value} for name, value in table.items()}
    return {f"{name}.{key}".rstrip("."): value for name, section in nested.items() for key, value in section.items()}


def _galleries(recipe: Recipe, langs: Sequence[str] | None) -> list[PairTable]:
    """Load dev in the languages of the run, as in training, and in the others that the source has it in."""
    found = [*load_devs(recipe, trained_images(recipe)).values()]
    for lang in recipe.test.languages if langs is None else langs:
        try:
            found.append(load_split(recipe, "dev", lang))
        except UserError as error:
            logger.warning(f"warning: not measured in {lang}: {error}")
    return found


def _encoder(run: Path, aligner: Aligner, recipe: Recipe) -> ImageMemory:
    return ImageMemory(Aligned(str(run), aligner, recipe, recipe.cache, run))


def _measure(encoder: Encoder, galleries: Sequence[PairTable]) -> dict[str, Score]:
    return {one.lang: retrieval.score(encoder, one, retrieval.Config()).mean_recall for one in galleries}


def _joint(encoder: Encoder, gallery: PairTable) -> Vectors:
    """Return the embeddings of all images and captions, (I + C, D)."""
    return np.concatenate([encoder.encode_image(gallery.images), encoder.encode_text(gallery.captions, gallery.lang)])


def _claim(out: Path | None, stack: ExitStack) -> None:
    """Lock the folder of the result, which must be new or empty, before anything is computed."""
    if out is not None:
        storage.check_writable(out)
        stack.enter_context(locked(out))
        if {path.name for path in out.iterdir()} - {*LOCK_FILES}:
            raise UserError(f"{out} is not empty: use a new folder for --out")


def _save(
    out: Path,
    aligner: Aligner,
    recipe: Recipe,
    method: Literal["interpolation", "soup"],
    runs: Sequence[Path],
    of: Measured,
) -> None:
    """Write a checkpoint, weights last, with its record and the images that any of the runs was trained on."""
    dev = {lang: score.value for lang, score in of.dev.items()}
    Average(method=method, runs=tuple(map(str, runs)), alpha=of.alpha, dev=dev).save_json(out / RECORD)
    seen = [table for run in runs if (table := load_trained_images(run)) is not None]
    if len(seen) == len(runs):
        rows = [(name, "", image) for table in seen for name, image in zip(table.image_ids, table.images, strict=True)]
        save_trained_images(out, PairTable.from_pairs(seen[0].name, seen[0].lang, "human", rows))
    checkpoint.save(out, aligner, recipe)
