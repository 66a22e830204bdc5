"""One training run, from top to bottom: set up, train, test, save."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from polyalign.config import run_files
from polyalign.config.schema import Recipe
from polyalign.data.load import load_split, load_table, refuse_equal_captions, without_trained
from polyalign.data.pairs import PairTable
from polyalign.data.trained_images import TRAINED_IMAGES, save_trained_images
from polyalign.evaluation.results import Retention, Retrieval, Run
from polyalign.evaluation.tasks import retention, retrieval
from polyalign.models import checkpoint
from polyalign.models.aligner import Aligner
from polyalign.models.build import build_aligner
from polyalign.models.embed import PairFeatures, embed_features, prepare
from polyalign.training.guards import rehearse
from polyalign.training.inherit import inherit, open_teacher
from polyalign.training.inputs import Inputs, of_pairs, of_teacher
from polyalign.training.loop import Loop, rows_at_a_time
from polyalign.training.metrics_log import METRICS, Tracker, end_training, tracking_accelerator
from polyalign.training.recompute import check_blocks
from polyalign.training.state import State
from polyalign.utils.process import peak_memory, processes
from polyalign.utils.versions import versions

RESULT, STATE = run_files.RESULT, "state.safetensors"
FILES = (*checkpoint.FILES, TRAINED_IMAGES, RESULT, STATE, METRICS)
"""All that a run writes into its folder; ``--overwrite`` deletes these and nothing else."""

logger = logging.getLogger(__name__)


def train(recipe: Recipe, out: Path, *, resume: bool, track: Tracker | None = None) -> Run | None:
    """Train a recipe, test the state with the best dev recall, and save checkpoint and result into ``out``.

    During training ``out`` holds the training state. With ``resume`` training continues from it to the same result as
    an uninterrupted run. Ctrl-C saves the state before it interrupts. With several processes only the main one tests
    and returns the result; the others return None. ``track`` sends the metrics of the training to a tracker too.

    Raises:
        UserError: bad data, leakage, a tower that does not support the strategy, a loss that is not finite, or a
            tracker that is not installed.
    """
    start = set_up(recipe, track, out)
    loop, aligner = start.loop, start.loop.aligner
    state = loop.run(out / STATE, resume=resume)
    run = None
    if loop.accelerator.is_main_process:
        peak = peak_memory(loop.accelerator.device)
        checkpoint.restore(aligner, state.best, "the best state")
        if recipe.parent is not None and state.best_dev_evaluation == 0:
            logger.warning(f"warning: dev recall did not rise above that of {recipe.parent.run}: its weights are kept")
        size = checkpoint.save(out, aligner, recipe)
        tested = (*start.test(), *_transfer(aligner, recipe, start.inputs.earlier))
        kept = _knowledge(aligner, recipe) if recipe.test.knowledge else None
        facts: dict[str, Any] = {"peak_memory_bytes": peak, "checkpoint_bytes": size, "retention": kept}
        facts["untrained"], *others = start.untrained
        facts["untrained_in"] = {one.lang: one for one in others}
        run = Run(**_facts(loop, state, start.inputs), **facts, test=tested)
        if start.inputs.images is not None:
            save_trained_images(out, start.inputs.images)
        run.save_json(out / RESULT)
        (out / STATE).unlink(missing_ok=True)
    end_training(loop.accelerator)
    return run


@dataclass(frozen=True)
class Start:
    """What exists before the first step: the data, the loop, and the tests of the untrained projections by language."""

    inputs: Inputs
    loop: Loop
    untrained: list[Retrieval]

    def test(self) -> list[Retrieval]:
        """Return the tests of the aligner in its current state, one for each language that is trained on."""
        return _tests(self.loop.aligner, self.inputs, self.loop.recipe)


def set_up(recipe: Recipe, track: Tracker | None = None, out: Path | None = None) -> Start:
    """Build the towers, load the data, compute the frozen features and test the untrained projections.

    Whatever can be refused is refused before the step that takes longer: settings before data, data before features.

    Raises:
        UserError: bad data, leakage, a tower that does not support the strategy, or a batch that cannot be divided
            among the processes.
    """
    processes()
    accelerator = tracking_accelerator(track, out)
    _warn_of_drawn_towers(recipe)
    aligner = build_aligner(recipe).to(accelerator.device)
    load_teacher = cache(partial(open_teacher, recipe.teacher)) if recipe.teacher is not None else None
    inherit(aligner, recipe, load_teacher)
    rehearse(aligner)
    check_blocks(aligner, recipe.train)
    if recipe.transfer:  # read in full after training
        refuse_equal_captions(load_table(recipe, "test", lang) for lang in (*recipe.langs, *recipe.transfer))
    if recipe.distils and load_teacher is not None:
        inputs = of_teacher(recipe, aligner, load_teacher)
    else:
        inputs = of_pairs(recipe, aligner, accelerator.num_processes)
    untrained = [one.without_ranks() for one in _tests(aligner, inputs, recipe)]
    loop = Loop(recipe, aligner, inputs.train, inputs.dev, accelerator, inputs.sentences)
    return Start(inputs, loop, untrained)


def _warn_of_drawn_towers(recipe: Recipe) -> None:
    """Say that the starter towers are not for photos."""
    drawn = [name for name in ("vision", "text") if getattr(recipe, name).model == "starter"]
    if drawn and recipe.source["name"] != "starter":
        logger.warning(
            f"warning: the starter tower knows only drawn scenes ({', '.join(f'{name}.model' for name in drawn)}): for "
            "photos choose pretrained towers, such as --recipe xlmr-dinov2"
        )


def _tests(aligner: Aligner, inputs: Inputs, recipe: Recipe) -> list[Retrieval]:
    rows = rows_at_a_time(recipe)
    return [_test(aligner, inputs.test[lang], gallery, rows) for lang, gallery in inputs.galleries.items()]


def _test(aligner: Aligner, features: PairFeatures, gallery: PairTable, rows: int) -> Retrieval:
    embedded = embed_features(aligner, features, rows)
    return retrieval.measure(embedded.images, embedded.captions, gallery)


def _transfer(aligner: Aligner, recipe: Recipe, earlier: PairTable | None) -> list[Retrieval]:
    """Return the tests in languages without training pairs."""
    results = []
    for lang in recipe.transfer:
        gallery = without_trained(load_split(recipe, "test", lang), earlier, recipe)
        features = prepare(aligner, gallery, recipe.cache)
        results.append(_test(aligner, features, gallery, rows_at_a_time(recipe)).without_ranks())
    return results


def _knowledge(aligner: Aligner, recipe: Recipe) -> Retention:
    asked = retention.probes(recipe)
    return retention.measure(aligner, asked, retention.Config())


def _facts(loop: Loop, state: State, inputs: Inputs) -> dict[str, Any]:
    """Return the fields of the record that describe the run itself."""
    recipe, (trainable, total) = loop.recipe, loop.aligner.count()
    spent = state.spent + loop.prepared
    amounts = inputs.trained_on
    return {
        "recipe": recipe.table(),
        "lang": recipe.lang,
        "strategy": recipe.strategy["name"],
        "towers": recipe.strategy["towers"],
        "budget": recipe.budget,
        "seed": recipe.train.seed,
        "pairs": sum(one.pairs for one in amounts.values()),
        "images": len(loop.features.images) // loop.features.views if amounts else 0,
        "trained_on": amounts if len(amounts) > 1 else {},
        "parallel_rows": 0 if inputs.parallel is None else len(inputs.parallel),
        "parallel_langs": () if inputs.parallel is None else inputs.parallel.langs,
        "pairs_seen": loop.pairs_seen(state),
        "steps": state.step,
        "epochs": round(state.step / loop.plan.steps_per_epoch, 2),
        "stopped_early": state.finished and loop.place(state) < loop.plan.steps,
        "trainable": trainable,
        "total": total,
        "seconds": round(spent.seconds, 1),
        "cpu_seconds": round(spent.cpu_seconds, 1),
        "device": str(loop.accelerator.device),
        "threads": torch.get_num_threads(),
        "caption_origin": inputs.origin,
        "versions": versions(),
        "dev_evaluations": tuple(state.dev_evaluations),
    }
