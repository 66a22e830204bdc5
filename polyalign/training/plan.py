"""The plan of a run, and what the loop decides by it: the steps, equal shares of a batch, and the collapse alarm."""

from __future__ import annotations

from dataclasses import dataclass

from polyalign.config.schema import Recipe
from polyalign.evaluation.results import DevEvaluation
from polyalign.utils.errors import UserError


@dataclass(frozen=True)
class Plan:
    """Length of a run: all steps, steps per epoch, and the steps after which the dev split is evaluated."""

    steps: int
    steps_per_epoch: int
    dev_evaluations: frozenset[int]

    @staticmethod
    def of(recipe: Recipe, pairs: int) -> Plan:
        """Count the steps. The last batch of an epoch is dropped if it is not full, unless it is the only one."""
        per_epoch = max(1, pairs // recipe.optim.batch_size)
        steps = max(recipe.optim.epochs * per_epoch, recipe.optim.min_steps)
        dev_evaluations = frozenset(
            max(1, round(steps * k / recipe.train.evals)) for k in range(1, recipe.train.evals + 1)
        )
        return Plan(steps, per_epoch, dev_evaluations)


def check_divisible(recipe: Recipe, pairs: int, processes: int) -> None:
    """Check that each process gets the same number of pairs of a batch.

    Raises:
        UserError: the batch cannot be divided among the processes, and pairs would be dropped.
    """
    batch = min(recipe.optim.batch_size, pairs)
    if recipe.parallel is not None and not recipe.distils and recipe.parallel.batch_size % processes:
        raise UserError(f"parallel.batch_size must be a multiple of the {processes} processes")
    if batch % processes:
        raise UserError(
            f"a batch of {batch} pairs cannot be divided among {processes} processes: set optim.batch_size to a "
            f"multiple of them (--set optim.batch_size={max(processes, batch - batch % processes)})"
        )


def collapse_alarm(dev_evaluations: list[DevEvaluation], chance: float, high: float) -> str | None:
    """Return a warning if the last dev evaluation shows a collapse: recall at chance, or under half of the best.

    ``high`` is the upper limit of its confidence interval, which must exclude a recall halfway from chance to one, or
    the best recall: few dev images show neither.
    """
    last, best = dev_evaluations[-1].dev_mean_recall, max(one.dev_mean_recall for one in dev_evaluations)
    advice = "lower the learning rate (--set optim.lr=...); the best state so far is kept"
    if len(dev_evaluations) > 2 and last <= 1.25 * chance and high < (1 + chance) / 2:
        return f"collapse: dev recall {100 * last:.1f} % is at chance after step {dev_evaluations[-1].step:,}; {advice}"
    if last < best / 2 and high < best:
        fall = f"fell from {100 * best:.1f} to {100 * last:.1f} %"
        return f"collapse: dev recall {fall} by step {dev_evaluations[-1].step:,}; {advice}"
    return None
