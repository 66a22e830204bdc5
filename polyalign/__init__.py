"""Align two frozen towers on few image-text pairs, and measure which way of training is worth it.

>>> import polyalign
>>> run = polyalign.train("starter", lang="sw", strategy="lilt")
>>> model = polyalign.load(run.folder)
>>> polyalign.evaluate(model, langs=["sw", "de"])
>>> polyalign.compare(langs=["sw"], budgets=["1k-pairs"], seeds=3)
>>> polyalign.results("eval")  # a pandas.DataFrame, one row a run
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from polyalign.api import TrainedRun, compare, evaluate, results, train
    from polyalign.evaluation.model import Model, load
    from polyalign.utils.errors import UserError

__all__ = ["Model", "TrainedRun", "UserError", "compare", "evaluate", "load", "results", "train"]

# Imported when first used: the libraries behind them take seconds, and the command line must start at once.
_HOME = dict.fromkeys(("TrainedRun", "compare", "evaluate", "results", "train"), "polyalign.api")
_HOME |= {"Model": "polyalign.evaluation.model", "load": "polyalign.evaluation.model"}
_HOME |= {"UserError": "polyalign.utils.errors"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOME:
        raise AttributeError(f"module 'polyalign' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """List the public names."""
    return [*__all__, "__version__"]
