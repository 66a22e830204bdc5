"""The Python interface, ``import polyalign``: the main commands as functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from polyalign.config.resolve import gather_overrides, resolve
from polyalign.config.schema import Recipe, merge, nest
from polyalign.data.pairs import PairTable
from polyalign.evaluation.evaluate import evaluate as evaluate_on
from polyalign.evaluation.model import Model
from polyalign.evaluation.results import Run
from polyalign.experiments.compare import Grid, run_grid
from polyalign.experiments.run_folders import continuation, default_folder, distillation, train_into
from polyalign.experiments.workers import Pool
from polyalign.training.metrics_log import Tracker
from polyalign.utils.errors import UserError
from polyalign.utils.progress import progress_bars

if TYPE_CHECKING:
    import pandas as pd

Overrides = Mapping[str, Any]
"""Keys of the recipe, nested (``{"optim": {"lr": 1e-3}}``) or dotted (``{"optim.lr": 1e-3}``)."""


@dataclass(frozen=True)
class TrainedRun:
    """A finished run: its folder, for ``polyalign.load``, and its results."""

    folder: Path
    record: Run

    @property
    def mean_recall(self) -> float:
        """Mean of R@1, R@5 and R@10 in both directions on the test split, as a fraction."""
        return self.record.test[0].mean_recall.value


def train(
    recipe: str | Path | TrainedRun = "starter",
    *,
    lang: str | None = None,
    strategy: str | None = None,
    data: str | Path | None = None,
    budget: str | None = None,
    parallel: str | Path | None = None,
    out: str | Path | None = None,
    overrides: Overrides | None = None,
    resume: bool = False,
    overwrite: bool = False,
    track: Tracker | None = None,
) -> TrainedRun:
    """Train a model, like ``polyalign train``. A finished run with the same settings is not trained again.

    Args:
        recipe: a shipped recipe, one in ``./recipes``, or the path of a TOML file; or a finished run to go on from.
        lang: language code, such as ``sw``; several, separated by commas, are trained on together. Default: that of
            the run to go on from.
        strategy: what to train, such as ``lilt``; default: that of the recipe or the run.
        data: a folder with images and captions, or the name of a source; default: that of the recipe.
        budget: ``1k-pairs``, ``20min``, ``4GiB``, or several joined by ``+``; default: that of the recipe for its own
            data, everything for other data.
        parallel: sentences with their translations: a file, the common path of line-aligned files, a folder,
            ``captions``, ``starter`` or ``hub:NAME``.
        out: folder of the run; default: a folder in ``./runs`` named after the settings.
        overrides: keys of the recipe to change.
        resume: continue an interrupted run.
        overwrite: delete an existing run in ``out`` and start over.
        track: also send the metrics of the training to this tracker, such as ``tensorboard``.

    Raises:
        UserError: invalid settings or data, or ``out`` contains another run.
    """
    changes = _changes(overrides, data=data, budget=budget, parallel=parallel)
    if isinstance(recipe, TrainedRun):
        if strategy is not None:
            raise UserError("a run is continued with its own strategy: leave out strategy")
        resolved = continuation(recipe.folder, lang, changes)
        recipe = resolved.name
    elif lang is None:
        raise UserError('name the language: polyalign.train(lang="sw")')
    else:
        resolved = resolve(str(recipe), lang, strategy, changes)
    return _run(resolved, str(recipe), out, resume=resume, overwrite=overwrite, track=track)


def distill(
    teacher: str | Path | TrainedRun,
    *,
    lang: str,
    parallel: str | Path,
    strategy: str = "lit",
    recipe: str | Path | None = None,
    data: str | Path | None = None,
    out: str | Path | None = None,
    overrides: Overrides | None = None,
    resume: bool = False,
    overwrite: bool = False,
    track: Tracker | None = None,
) -> TrainedRun:
    """Teach a text tower another language without images, like ``polyalign distill``.

    Args:
        teacher: a finished run in one of the languages of the parallel text, or its folder; or an external model,
            ``open_clip:NAME/PRETRAINED`` or ``hf:NAME``, which reads English or ``parallel.pivot``.
        lang: the language to teach, or several separated by commas.
        parallel: sentences with their translations, as for ``train``.
        strategy: what to train in the text tower.
        recipe: the recipe with the text tower of an external model's student; default: ``xlmr-dinov2``.
        data: a folder with images and captions, or the name of a source, to test on; default: that of the recipe.
        out: folder of the run, as for ``train``.
        overrides: keys of the recipe to change.
        resume: continue an interrupted run.
        overwrite: delete an existing run in ``out`` and start over.
        track: also send the metrics of the training to this tracker, such as ``tensorboard``.

    Raises:
        UserError: invalid settings or data, or ``out`` contains another run.
    """
    model = teacher.folder if isinstance(teacher, TrainedRun) else teacher
    name = None if recipe is None else str(recipe)
    resolved = distillation(model, lang, strategy, _changes(overrides, data=data, parallel=parallel), name)
    return _run(resolved, name or resolved.name, out, resume=resume, overwrite=overwrite, track=track)


def _run(
    recipe: Recipe, recipe_file: str, out: str | Path | None, *, resume: bool, overwrite: bool, track: Tracker | None
) -> TrainedRun:
    folder = default_folder(recipe, recipe_file) if out is None else Path(out)
    record = train_into(folder, recipe, resume=resume, overwrite=overwrite, track=track)
    if record is None:
        raise RuntimeError("a run must be started in the main process")
    return TrainedRun(folder, record)


def evaluate(
    model: str | Path | Model | TrainedRun,
    data: str | Path | PairTable | None = None,
    *,
    task: str = "retrieval",
    langs: Sequence[str] = (),
    split: str = "test",
    overrides: Overrides | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[Any]:
    """Evaluate a model on a task, like ``polyalign eval``.

    Args:
        model: an argument or the result of ``polyalign.load``, or the result of ``polyalign.train``.
        data: a folder, the name of a source, or a ``PairTable``; default: that of the run.
        task: ``retrieval``, ``text-by-retrieval``, ``zeroshot``, ``retention``, or a task in ``./tasks``.
        langs: language codes; default: those of the run.
        split: ``train``, ``dev`` or ``test``.
        overrides: keys of the run's recipe to change, such as ``{"source.root": "data/xtd10"}``.
        options: settings of the task.

    Returns:
        One result for each gallery, usually one per language.

    Raises:
        UserError: the model, task, data or a setting does not exist or is invalid.
    """
    encoder = model.encoder if isinstance(model, Model) else model.folder if isinstance(model, TrainedRun) else model
    _check_list("langs", langs)
    gallery, source = (data, None) if isinstance(data, PairTable) else (None, data)
    changes = _changes(overrides, data=source)
    return evaluate_on(encoder, task, langs=langs, split=split, overrides=changes, options=options, gallery=gallery)


def compare(
    *,
    langs: Sequence[str] = (),
    budgets: Sequence[str] = (),
    strategies: Sequence[str] = (),
    recipes: Sequence[str | Path] = ("starter",),
    seeds: int = 1,
    data: str | Path | None = None,
    parallel: str | Path | None = None,
    teacher: str | Path | None = None,
    out: str | Path = "eval",
    tune: bool = False,
    workers: int = 1,
    on: Literal["local", "ray"] = "local",
    overrides: Overrides | None = None,
) -> pd.DataFrame:
    """Train strategies on the same pairs and write tables and figures to ``out``, like ``polyalign compare``.

    Finished runs are not trained again. Languages joined by a plus (``qu+es``) are trained on together. With
    ``teacher``, a finished run or an external model, the text tower is distilled from it.

    Returns:
        The same as ``polyalign.results(out)``.

    Raises:
        UserError: invalid settings, or some runs failed.
    """
    for name, given in (("langs", langs), ("budgets", budgets), ("strategies", strategies), ("recipes", recipes)):
        _check_list(name, given)
    changes = _changes(overrides, data=data, parallel=parallel)
    axes = (tuple(map(str, recipes)), tuple(langs), tuple(budgets), tuple(strategies))
    grid = Grid(*axes, seeds, changes, Path(out), Path("runs") / "compare", None if teacher is None else str(teacher))
    with progress_bars():
        run_grid(grid, Pool(workers, on), tune=tune)
    return results(out)


def results(folder: str | Path = "eval") -> pd.DataFrame:
    """Return the results in a folder written by ``compare``: a row for each run, with all settings and metrics.

    Raises:
        UserError: there are no results, or one cannot be read.
    """
    from polyalign.experiments.report import results as read

    return read(Path(folder))


def _check_list(name: str, given: object) -> None:
    if isinstance(given, str):
        raise UserError(f'{name} must be a list: write {name}=["{given}"]')


def _changes(
    given: Overrides | None,
    *,
    data: str | Path | None = None,
    budget: str | None = None,
    parallel: str | Path | None = None,
) -> dict[str, Any]:
    """Return the keys of the recipe that the arguments set, updated with the given ones."""
    data, parallel = (None if path is None else str(path) for path in (data, parallel))
    table = gather_overrides([], budget=budget, data=data, parallel=parallel)
    for key, value in (given or {}).items():
        table = merge(table, nest(key.split("."), value))
    return table
