"""What the result of a run means, in sentences: whether it learned, how sure that is, and whether to train longer."""

from __future__ import annotations

from collections.abc import Iterator

from polyalign.evaluation.results import Retrieval, Run
from polyalign.evaluation.tables import percent

_FEW_IMAGES = 100
_RISE = 0.01
"""Rise of mean recall on dev over the last quarter of training from which longer training is advised."""


def verdict(run: Run) -> list[str]:
    """Return one sentence for each thing to know about the result of a run."""
    own = [test for test in run.test if test.lang in run.langs]
    return [*(line for test in own for line in _of_test(test)), *_of_training(run)]


def _of_test(test: Retrieval) -> Iterator[str]:
    chance, found = float(test.chance().mean()), test.mean_recall
    compared = f"mean recall is {percent(found)} in {test.lang}, chance is {percent(chance)}."
    if found.low > chance:
        yield f"Better than chance: {compared}"
    else:
        yield f"Not better than chance, as far as {test.images:,} test images can tell: {compared}"
    if test.images < _FEW_IMAGES:
        yield (
            f"Few test images ({test.images:,}): mean recall is only known to be in "
            f"[{100 * found.low:.0f}, {100 * found.high:.0f}]; keep more images for the test."
        )


def _of_training(run: Run) -> Iterator[str]:
    curve = [(one.step, one.dev_mean_recall) for one in run.dev_evaluations]
    early = [recall for step, recall in curve if step <= 0.75 * run.steps]
    if run.stopped_early or not early:
        return
    rise = max(recall for _, recall in curve) - max(early)
    if rise >= _RISE:
        train = run.recipe.get("train")
        limited = isinstance(train, dict) and train.get("max_seconds")
        how = "a longer --budget" if limited else f"--set optim.min_steps={2 * run.steps}"
        yield f"Dev recall still rose by {100 * rise:.1f} points in the last quarter: train longer ({how})."
