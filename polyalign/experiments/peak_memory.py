"""How much memory training holds at its highest, measured in two steps."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from polyalign.config.recipe import Recipe
from polyalign.models.embed import PairFeatures
from polyalign.training import train
from polyalign.utils.process import peak_memory

_STEPS = 2  # the optimiser's state is there from the first step on


def peak_of(recipe: Recipe) -> int:
    """Take two steps on the longest captions and look at dev, and give the peak in bytes, whatever the bound.

    It is the peak of the whole process, so measure one recipe a process. What the process maps of the cache is
    counted as training will count it: all of it.

    Raises:
        UserError: the same as of training.
    """
    loop = train.set_up(unbound(recipe)).loop
    for store in (loop.features.images, loop.features.captions):
        store.values.max()  # reads every page
    longest = _longest(loop.features, recipe.optim.batch_size)
    loop.batch = lambda step: longest  # type: ignore[method-assign]
    loop.plan = replace(loop.plan, steps=_STEPS, dev_evaluations=frozenset({_STEPS}))
    with tempfile.TemporaryDirectory() as folder:
        loop.run(Path(folder) / train.STATE, resume=False)
    return peak_memory(loop.accelerator.device)


def unbound(recipe: Recipe) -> Recipe:
    """Take the bounds on time and memory away, which have no part in what is held."""
    free = recipe.train.model_copy(update={"max_memory_bytes": None, "max_seconds": None})
    return recipe.model_copy(update={"train": free})


def _longest(features: PairFeatures, count: int) -> npt.NDArray[np.int64]:
    """Choose the pairs with the longest captions, for a batch is padded to its longest."""
    offsets = features.captions.offsets
    lengths = np.ones(len(features.captions)) if offsets is None else np.diff(offsets)
    return np.argsort(-lengths, kind="stable")[:count]
