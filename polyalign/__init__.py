"""Align frozen vision and text towers on few image-caption pairs, and compare ways of training.

>>> import polyalign
>>> run = polyalign.train("starter", lang="sw", strategy="lilt")
>>> model = polyalign.load(run.folder)
>>> polyalign.evaluate(model, langs=["sw", "de"])
>>> polyalign.compare(langs=["sw"], budgets=["1k-pairs"], seeds=3)
>>> polyalign.results("eval")  # a pandas.DataFrame, one row per run
>>> index = polyalign.Index.open("my.index")  # of `polyalign index build`
>>> index.search(model.encode_text(["mbwa mweusi"])[0], top=10)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from polyalign.api import TrainedRun, compare, distill, evaluate, results, train
    from polyalign.evaluation.model import Model, load
    from polyalign.serving.index import Index
    from polyalign.utils.errors import UserError

__all__ = ["Index", "Model", "TrainedRun", "UserError", "compare", "distill", "evaluate", "load", "results", "train"]

_OTHER_HOMES = {
    "Index": "serving.index",
    "Model": "evaluation.model",
    "load": "evaluation.model",
    "UserError": "utils.errors",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, since the libraries behind it take seconds to import."""
    if name not in __all__:
        raise AttributeError(f"module 'polyalign' has no attribute {name!r}")
    return getattr(import_module(f"polyalign.{_OTHER_HOMES.get(name, 'api')}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return [*__all__, "__version__"]
