"""The results of a folder as a pandas DataFrame, one row per run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyalign.evaluation.results import Retrieval, Run, recall_scores
from polyalign.experiments.report import by_column, load_runs
from polyalign.experiments.significance import flatten

if TYPE_CHECKING:
    from pandas import DataFrame

_NESTED = {"recipe", "versions", "tuned", "untrained", "test", "dev_evaluations", "retention"}


def results(folder: Path) -> DataFrame:
    """Return all runs in ``folder/runs``, in the order of the file names.

    Columns: the facts of each run (``lang``, ``strategy``, ``seed``, ``trainable``, ``seconds``, ...); its recalls as
    fractions (``text_to_image_r1`` to ``mean_recall``), each with ``_low`` and ``_high`` over test images only; those
    of the untrained projection (``untrained_mean_recall``, ...); ``retention``; the best ``dev_mean_recall``; the mean
    recall in other languages (``mean_recall.de``); all settings (``recipe.optim.lr``); ``versions.torch`` and the like;
    and the values tried for a tuned setting (``tuned.optim.lr``). A value that a run does not have is missing.

    Raises:
        UserError: there are no runs, or a file cannot be read.
    """
    from pandas import DataFrame

    return DataFrame([_row(run) for run in load_runs(folder)])


def _row(run: Run) -> dict[str, Any]:
    test, *others = run.test
    return {
        **run.model_dump(exclude=_NESTED),
        "cost_seconds": run.cost_seconds,
        "gallery": test.gallery,
        "gallery_images": test.images,
        "gallery_captions": test.captions,
        **_recalls(test),
        **{f"untrained_{name}": value for name, value in _recalls(run.untrained).items()},
        "retention": None if run.retention is None else run.retention.kept,
        "dev_mean_recall": max((one.dev_mean_recall for one in run.dev_evaluations), default=None),
        **{f"mean_recall.{other.lang}": other.mean_recall.value for other in others},
        **dict(flatten(run.recipe, "recipe.")),
        **dict(flatten(run.versions, "versions.")),
        **{f"tuned.{key}": values for key, values in run.tuned.items()},
    }


def _recalls(result: Retrieval) -> dict[str, float]:
    """Return the recalls by column; intervals are computed from the ranks if saved, as those of older files differ."""
    return by_column(recall_scores([result.hits()]) if result.text_to_image.ranks else result.scores)
