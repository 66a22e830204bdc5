"""Tuning of learning rates on dev by successive halving (Jamieson and Talwalkar, 2016)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

from polyalign.config.schema import Recipe
from polyalign.models.parameter_count import untrained

SHARES = (1 / 9, 1 / 3)
"""Length of the training in each rung, as a share of the full length."""

_KEEP = 1 / 3
_FACTORS = {1: tuple(3 ** (step / 2) for step in range(-4, 5)), 2: (1 / 3, 1.0, 3.0)}
"""Factors of the recipe's learning rates to try, by the number of rates: nine candidates in both cases."""


def shortened(recipe: Recipe, share: float) -> dict[str, Any]:
    """Return the changes that shorten training to about this share of its steps.

    Training is not stopped early, so that all candidates see as many pairs. A limit of time is kept: it includes the
    computation of frozen features, which is not shorter.
    """
    evals = max(1, round(recipe.train.evals * share))
    epochs = max(1, round(recipe.optim.epochs * share))
    return {
        "optim": {"epochs": epochs, "min_steps": round(recipe.optim.min_steps * share)},
        "train": {"evals": evals, "patience": evals},
        "test": {"languages": [], "knowledge": False},
    }


def _part(recipe: Recipe, share: float) -> float:
    """Return the length of a shortened training as a share of the full length, which epochs and steps round."""
    short = shortened(recipe, share)["optim"]
    steps = recipe.optim.min_steps and short["min_steps"] / recipe.optim.min_steps
    return float(round(max(short["epochs"] / recipe.optim.epochs, steps), 3))


class Search:
    """A search for the learning rates of a recipe: in each rung, the best third of the rates is trained for longer.

    Where both towers train, their rates are tuned (``optim.vision_lr`` times ``optim.text_lr``), else one rate.
    ``left`` are the indices of the candidates in the next rung.
    """

    def __init__(self, recipe: Recipe) -> None:
        """Choose the candidates from the parameters that the recipe trains.

        Raises:
            UserError: the towers do not support the strategy.
        """
        trained = {name.partition(".")[0] for name in untrained(recipe).trainable()}
        own = [f"{tower}_lr" for tower in ("vision", "text") if tower in trained]
        keys = own if len(own) == 2 else [next((key for key in own if getattr(recipe.optim, key) is not None), "lr")]
        self._preset = {key: getattr(recipe.optim, key) or recipe.optim.lr for key in keys}
        self._factors = list(itertools.product(_FACTORS[len(keys)], repeat=len(keys)))
        self._dev: list[list[float | None]] = [[] for _ in self._factors]
        self._parts: list[float] = []
        self.recipe = recipe
        self.left = list(range(len(self._factors)))

    def changes(self, candidate: int) -> dict[str, Any]:
        """Return the changes of a candidate to the recipe; rates that it does not change are left out."""
        rates = zip(self._preset, self._values(candidate), self._factors[candidate], strict=True)
        return {"optim": {key: value for key, value, factor in rates if factor != 1}}

    def _values(self, candidate: int) -> list[float]:
        return [
            preset if factor == 1 else float(f"{preset * factor:.2g}")
            for preset, factor in zip(self._preset.values(), self._factors[candidate], strict=True)
        ]

    def learn(self, dev: Mapping[int, float | None], share: float) -> None:
        """Keep the best third by mean recall on dev, None for a failed training; of equal ones, the nearest to preset.

        If all failed, the preset is left.
        """
        for candidate, recall in dev.items():
            self._dev[candidate].append(recall)
        self._parts.append(_part(self.recipe, share))
        distance = {i: sum(abs(math.log(factor)) for factor in factors) for i, factors in enumerate(self._factors)}
        ranked = sorted((-recall, distance[i], i) for i, recall in dev.items() if recall is not None)
        kept = max(1, round(len(dev) * _KEEP))
        self.left = sorted(i for _, _, i in ranked[:kept]) or [min(distance, key=distance.__getitem__)]

    def most(self) -> float:
        """Return the largest number of pairs that all rungs together see, in trainings of full length."""
        counts = [round(len(self._factors) * _KEEP**rung) for rung in range(len(SHARES))]
        return sum(count * _part(self.recipe, share) for count, share in zip(counts, SHARES, strict=True))

    def record(self) -> dict[str, tuple[Any, ...]]:
        """Return what was tried, for ``Run.tuned``."""
        columns = zip(*map(self._values, range(len(self._factors))), strict=True)
        return {
            **{f"optim.{key}": column for key, column in zip(self._preset, columns, strict=True)},
            "dev_mean_recall": tuple(self._dev),
            "part": tuple(self._parts),
        }
