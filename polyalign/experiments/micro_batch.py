"""Training within a memory budget: measure peak memory, and find the largest micro-batch that fits.

The batch and the loss stay the same (GradCache, see ``Loop.backward``).
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from polyalign.config.schema import Recipe
from polyalign.experiments.run_folders import versioned_digest
from polyalign.experiments.workers import RECIPE, Outcome, Pool
from polyalign.models.embed import PairFeatures
from polyalign.training import train
from polyalign.utils.process import peak_memory
from polyalign.utils.text import binary_size, safe_stem

logger = logging.getLogger(__name__)

K = TypeVar("K")
_STEPS = 2  # the optimiser's state is allocated in the first step
_RESULT = "memory.json"


@dataclass(frozen=True, eq=False)
class Probe:
    """A measurement of the peak memory of training with a recipe, saved in ``folder``."""

    recipe: Recipe
    folder: Path

    @property
    def command(self) -> tuple[str, ...]:
        """Arguments of polyalign: measure, and save the number of bytes."""
        return ("memory", str(self.folder / RECIPE), "--out", str(self.folder / _RESULT))

    def describe(self) -> str:
        """Return the measurement as a line of text."""
        return (
            f"{self.folder.name}: {binary_size(self.peak() or 0)} at a micro-batch of {self.recipe.optim.micro_batch}"
        )

    def peak(self) -> int | None:
        """Return the peak in bytes; None if it has not been measured."""
        path = self.folder / _RESULT
        try:
            return int(json.loads(path.read_text(encoding="utf-8"))["bytes"]) if path.is_file() else None
        except (ValueError, TypeError, LookupError):
            logger.warning(f"{path} is damaged: it is measured again")
            return None


class Fit:
    """A search for the largest micro-batch within the memory budget: a power of two, or the largest.

    The largest is the micro-batch of the recipe, or else its batch. It is tried first; then the search bisects.
    """

    def __init__(self, recipe: Recipe) -> None:
        optim = recipe.optim
        largest = min(optim.micro_batch or optim.batch_size, optim.batch_size)
        self._recipe = recipe
        self._open = [2**power for power in range(largest.bit_length()) if 2**power < largest] + [largest]
        self._next = len(self._open) - 1
        self.micro_batch: int | None = None  # the largest known to fit
        self.problem = ""
        self.bad_input = False

    def probe(self, work: Path) -> Probe | None:
        """Return the next measurement, with a folder inside ``work``; None when the search is finished."""
        if not self._open:
            return None
        optim = self._recipe.optim.model_copy(update={"micro_batch": self._open[self._next]})
        recipe = unbound(self._recipe.model_copy(update={"optim": optim}))
        name = f"{recipe.name}-{recipe.lang}-{recipe.strategy['name']}-{versioned_digest(recipe)}"
        return Probe(recipe, work / safe_stem(name))

    def learn(self, peak: int | None, outcome: Outcome | None) -> None:
        """Update the range with the result of the probe: the bytes measured, or how it failed."""
        size, allowed = self._open[self._next], self._recipe.train.max_memory_bytes or 0
        if peak is not None and peak <= allowed:
            self.micro_batch, self._open = size, self._open[self._next + 1 :]
        else:
            self._open = self._open[: self._next]
            if peak is not None:
                at = f"{binary_size(peak)} at a micro-batch of {size}"
                self.problem = f"needs {at}, more than the {binary_size(allowed)} allowed"
            elif outcome is not None:
                self.problem, self.bad_input = outcome.problem, outcome.bad_input
                self._open = [] if self.bad_input else self._open
        self._next = (len(self._open) - 1) // 2


def fit(wanted: Mapping[K, Recipe], work: Path, workers: Pool) -> dict[K, Fit]:
    """Search for each recipe that has a memory budget; the others are not in the result."""
    fits = {key: Fit(recipe) for key, recipe in wanted.items() if recipe.train.max_memory_bytes is not None}
    while probes := {search: probe for search in fits.values() if (probe := search.probe(work)) is not None}:
        # Recipes that differ only in the size of the budget share measurements.
        by_folder = {probe.folder: probe for probe in probes.values()}
        open_probes = [probe for probe in by_folder.values() if probe.peak() is None]
        known = len(by_folder) - len(open_probes)
        failed = workers.run(open_probes, "measuring memory", already=known, done=Probe.describe)
        outcome = {probe.folder: how for probe, how in failed.items()}
        for search, probe in probes.items():
            search.learn(probe.peak(), outcome.get(probe.folder))
    return fits


def peak_of(recipe: Recipe) -> int:
    """Run two steps on the longest captions and a dev evaluation, and return the peak memory in bytes.

    Budgets of the recipe are ignored. The peak is that of the whole process, so measure one recipe per process. The
    memory-mapped cache is counted in full, as in training.

    Raises:
        UserError: as in training.
    """
    loop = train.set_up(unbound(recipe)).loop
    sentences = [] if loop.sentences is None else [loop.sentences.store]
    for store in (loop.features.images, loop.features.captions, *sentences):
        for part in store.parts():
            part.max()  # reads every page
    longest = _longest(loop.features, recipe.optim.batch_size)
    loop.batch = lambda step: longest  # type: ignore[method-assign]
    loop.plan = replace(loop.plan, steps=_STEPS, dev_evaluations=frozenset({_STEPS}))
    with tempfile.TemporaryDirectory() as folder:
        loop.run(Path(folder) / train.STATE, resume=False)
    return peak_memory(loop.accelerator.device)


def unbound(recipe: Recipe) -> Recipe:
    """Return the recipe without its budgets of time and memory."""
    free = recipe.train.model_copy(update={"max_memory_bytes": None, "max_seconds": None})
    return recipe.model_copy(update={"train": free})


def _longest(features: PairFeatures, count: int) -> npt.NDArray[np.int64]:
    """Return the indices of the pairs with the longest captions; a batch is padded to its longest."""
    offsets = features.captions.offsets
    lengths = np.ones(len(features.captions)) if offsets is None else np.diff(offsets)
    return np.argsort(-lengths, kind="stable")[:count]
