from __future__ import annotations

from typing import Any

import pytest

from polyalign.evaluation.results import DevEvaluation
from polyalign.evaluation.verdict import verdict
from tests.unit.test_results import a_retrieval, a_run


def curve(*recalls: float) -> tuple[DevEvaluation, ...]:
    """Evaluations every 100 steps."""
    return tuple(
        DevEvaluation(step=100 * (i + 1), seconds=i, loss=1, dev_mean_recall=recall) for i, recall in enumerate(recalls)
    )


def test_a_run_that_learned_is_better_than_chance() -> None:
    [first, few] = verdict(a_run())
    assert first.startswith("Better than chance: mean recall is ")
    assert " in sw, chance is " in first
    assert few.startswith("Few test images (40): mean recall is only known to be in [")


def test_a_run_at_chance_is_said_to_be_at_chance() -> None:
    first = verdict(a_run(test=(a_retrieval(noise=1e6),)))[0]
    assert first.startswith("Not better than chance, as far as 40 test images can tell: mean recall is ")


@pytest.mark.parametrize(
    ("recalls", "changes", "advice"),
    [
        ((0.1, 0.2, 0.3, 0.35), {}, "--set optim.min_steps=800"),
        ((0.1, 0.2, 0.3, 0.35), {"recipe": {"name": "starter", "train": {"max_seconds": 60}}}, "a longer --budget"),
        ((0.1, 0.3, 0.3, 0.305), {}, None),
        ((0.1, 0.2, 0.3, 0.35), {"stopped_early": True}, None),
        ((0.4, 0.3, 0.2, 0.1), {}, None),
        ((), {}, None),
    ],
)
def test_longer_training_is_advised_while_recall_rises(
    recalls: tuple[float, ...], changes: dict[str, Any], advice: str | None
) -> None:
    facts: dict[str, Any] = {"stopped_early": False, "steps": 400, "dev_evaluations": curve(*recalls), **changes}
    told = [line for line in verdict(a_run(**facts)) if line.startswith("Dev recall still rose")]
    assert told == (
        [f"Dev recall still rose by 5.0 points in the last quarter: train longer ({advice})."] if advice else []
    )
