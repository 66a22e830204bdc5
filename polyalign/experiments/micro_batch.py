"""Fitting training into a bounded memory: the largest micro-batch that keeps to it, found by measuring.

The batch, and with it the loss, stays what it is (GradCache, see ``train.Loop.backward``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import polyalign
from polyalign.config.recipe import Recipe
from polyalign.evaluation import tables
from polyalign.experiments import peak_memory as memory
from polyalign.experiments import workers as pool
from polyalign.experiments.workers import Outcome, Pool

K = TypeVar("K")


@dataclass(frozen=True, eq=False)
class Probe:
    """A measurement of what training with a recipe holds, made once and kept in ``folder``."""

    recipe: Recipe
    folder: Path

    @property
    def command(self) -> tuple[str, ...]:
        """Measure, and write the bytes down."""
        return ("memory", str(self.folder / pool.RECIPE), "--out", str(self._kept))

    def told(self) -> str:
        """Say in a line what was measured."""
        at = f"a micro-batch of {self.recipe.optim.micro_batch}"
        return f"{self.folder.name}: {tables.size(self.peak() or 0)} at {at}"

    def peak(self) -> int | None:
        """Give the peak in bytes, or none where it was not measured."""
        return int(json.loads(self._kept.read_text(encoding="utf-8"))["bytes"]) if self._kept.is_file() else None

    @property
    def _kept(self) -> Path:
        return self.folder / "memory.json"


class Fit:
    """The search for the largest micro-batch, a power of two unless it is the whole batch, that keeps to the memory.

    The largest is tried first, then halves between what is known to fit and what is known not to.
    """

    def __init__(self, recipe: Recipe) -> None:
        """Begin; the recipe's own micro-batch, or its whole batch, is the largest."""
        optim = recipe.optim
        self._recipe = recipe
        self._allowed = recipe.train.max_memory_bytes or 0
        largest = min(optim.micro_batch or optim.batch_size, optim.batch_size)
        self._sizes = [2**power for power in range(largest.bit_length()) if 2**power < largest] + [largest]
        self._fits, self._over = -1, len(self._sizes)
        self.problem = ""
        self.bad_input = False

    @property
    def micro_batch(self) -> int | None:
        """The largest that was found to fit; none where none did."""
        return self._sizes[self._fits] if self._fits >= 0 else None

    def probe(self, work: Path) -> Probe | None:
        """Give what to measure next, in a folder inside ``work``; none when the search is at its end."""
        if self._over - self._fits == 1:
            return None
        recipe = self._recipe.model_copy(
            update={"optim": self._recipe.optim.model_copy(update={"micro_batch": self._sizes[self._index]})}
        )
        recipe = memory.unbound(recipe)
        digest = hashlib.sha256(f"{polyalign.__version__}\n{recipe.to_toml()}".encode()).hexdigest()[:8]
        return Probe(recipe, work / f"{recipe.name}-{recipe.lang}-{recipe.strategy['name']}-{digest}")

    @property
    def _index(self) -> int:
        return len(self._sizes) - 1 if self._over == len(self._sizes) else (self._fits + self._over) // 2

    def learn(self, peak: int | None, outcome: Outcome | None) -> None:
        """Take in what came of the probe: the bytes it measured, or how it failed."""
        if peak is not None and peak <= self._allowed:
            self._fits = self._index
            return
        if peak is not None:
            at = f"{tables.size(peak)} at a micro-batch of {self._sizes[self._index]}"
            self.problem = f"holds {at}, more than the {tables.size(self._allowed)} allowed"
        elif outcome is not None:
            self.problem, self.bad_input = outcome.problem, outcome.bad_input
        self._over = 0 if self.bad_input else self._index


def fit(wanted: Mapping[K, Recipe], work: Path, workers: Pool) -> dict[K, Fit]:
    """Search for each recipe with a bound on its memory how it keeps to that; the others are not in the answer."""
    fits = {key: Fit(recipe) for key, recipe in wanted.items() if recipe.train.max_memory_bytes is not None}
    while probes := {search: probe for search in fits.values() if (probe := search.probe(work)) is not None}:
        # Budgets that differ in their size alone ask for the same measurement.
        by_folder = {probe.folder: probe for probe in probes.values()}
        open_probes = [probe for probe in by_folder.values() if probe.peak() is None]
        known = len(by_folder) - len(open_probes)
        failed = workers.run(open_probes, "measuring memory", already=known, done=Probe.told)
        outcome = {probe.folder: how for probe, how in failed.items()}
        for search, probe in probes.items():
            search.learn(probe.peak(), outcome.get(probe.folder))
    return fits
