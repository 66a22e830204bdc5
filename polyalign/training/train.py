"""Training: data, towers, loop, test, save. Reads from top to bottom."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from torch import nn

from polyalign.config.recipe import Recipe
from polyalign.data.load import load_split, load_tables
from polyalign.data.pairs import PairTable
from polyalign.evaluation import metrics
from polyalign.evaluation.results import DevEvaluation, Retention, Retrieval, Run
from polyalign.evaluation.tasks import knowledge, retrieval
from polyalign.models import checkpoint
from polyalign.models.aligner import Aligner
from polyalign.models.build import build_aligner
from polyalign.models.embed import PairFeatures, embed_features, encode_captions, prepare
from polyalign.training import state as training_state
from polyalign.training.loss import gather, info_nce, sigmoid
from polyalign.training.optim import adamw, learning_rate
from polyalign.training.recompute import compile_blocks, recompute_blocks
from polyalign.training.state import State
from polyalign.utils.errors import UserError
from polyalign.utils.precision import trains_in_bf16
from polyalign.utils.process import Spent, ctrl_c_held_back, one_first, peak_memory, processes
from polyalign.utils.progress import progress
from polyalign.utils.versions import versions

logger = logging.getLogger(__name__)

RESULT, STATE = "result.json", "state.safetensors"


def train(recipe: Recipe, out: Path, *, resume: bool) -> Run | None:
    """Train as the recipe says, keep the state that was best on dev, test it, and save everything into ``out``.

    While it runs ``out`` holds a training state, from which ``resume`` goes on to the same result as an
    uninterrupted run; at the end it holds the checkpoint and ``result.json``. Interrupted by Ctrl-C, it saves the
    state first. Of several processes only the main one tests and returns the result.

    Raises:
        UserError: bad data, leakage, a tower that cannot carry the strategy, a loss that is no longer finite.
    """
    start = set_up(recipe)
    loop, aligner = start.loop, start.loop.aligner
    state = loop.run(out / STATE, resume=resume)
    run = None
    if loop.accelerator.is_main_process:
        peak = peak_memory(loop.accelerator.device)
        checkpoint.restore(aligner, state.best, "the best state")
        size = checkpoint.save(out, aligner, recipe)
        tested = (start.test(), *_transfer(aligner, recipe))
        kept = _knowledge(aligner, recipe) if recipe.test.knowledge else None
        facts = {"peak_memory_bytes": peak, "checkpoint_bytes": size, "retention": kept}
        run = Run(**_facts(loop, state, start.tables["train"]), **facts, untrained=start.untrained, test=tested)
        run.save_json(out / RESULT)
        (out / STATE).unlink(missing_ok=True)
    loop.accelerator.end_training()
    return run


@dataclass(frozen=True)
class Start:
    """All that is made before the first step: the data, the loop, and what the untrained projections find in test."""

    tables: dict[str, PairTable]
    loop: Loop
    test_features: PairFeatures
    untrained: Retrieval

    def test(self) -> Retrieval:
        """Test the aligner as it is now."""
        return _test(self.loop.aligner, self.test_features, self.tables["test"], _at_a_time(self.loop.recipe))


def set_up(recipe: Recipe) -> Start:
    """Load the data, build the towers, compute what is frozen and test what is untrained.

    Raises:
        UserError: bad data, leakage, a tower that cannot carry the strategy.
    """
    processes()
    accelerator = Accelerator(mixed_precision="no")
    tables = load_tables(recipe)
    aligner = build_aligner(recipe).to(accelerator.device)
    with one_first():
        own = {"train": recipe.data}  # dev and test are always of plain images
        features = {split: prepare(aligner, table, recipe.cache, own.get(split)) for split, table in tables.items()}
    untrained = _test(aligner, features["test"], tables["test"], _at_a_time(recipe)).without_ranks()
    loop = Loop(recipe, aligner, features["train"], features["dev"], accelerator)
    return Start(tables, loop, features["test"], untrained)


@dataclass(frozen=True)
class Plan:
    """How long a run is: steps, steps an epoch, and after which steps it looks at the dev split."""

    steps: int
    steps_per_epoch: int
    dev_evaluations: frozenset[int]

    @staticmethod
    def of(recipe: Recipe, pairs: int) -> Plan:
        """Count the steps; an epoch's last batch is left out when it is not full, unless it is the only one."""
        per_epoch = max(1, pairs // recipe.optim.batch_size)
        steps = max(recipe.optim.epochs * per_epoch, recipe.optim.min_steps)
        dev_evaluations = frozenset(
            max(1, round(steps * k / recipe.train.evals)) for k in range(1, recipe.train.evals + 1)
        )
        return Plan(steps, per_epoch, dev_evaluations)


class Loop:
    """The training loop: every step's batch and chance come from (seed, step), so that a run can go on after a stop."""

    def __init__(
        self, recipe: Recipe, aligner: Aligner, features: PairFeatures, dev: PairFeatures, accelerator: Accelerator
    ) -> None:
        """Take a built aligner and what its trainable part takes, for train and dev."""
        self.recipe = recipe
        self.aligner = aligner
        self.features = features
        self.dev = dev
        self.accelerator = accelerator
        self.plan = Plan.of(recipe, len(features.captions))
        if recipe.train.recompute:
            recompute_blocks(aligner)
        if recipe.train.compile:
            compile_blocks(aligner)
        self.optimiser = adamw(aligner.trainable(), recipe.optim)
        allowed = recipe.train.max_seconds
        self.seconds = None if allowed is None else allowed - (features.spent + dev.spent).seconds

    def run(self, path: Path, *, resume: bool) -> State:
        """Train to the end, until dev has stopped gaining or until the time is over.

        Raises:
            UserError: the loss is no longer finite, there is no time to train in, or memory goes over its bound.
        """
        if self.seconds is not None and self.seconds <= 0:
            spent = self.features.spent + self.dev.spent
            raise UserError(
                f"computing the frozen part took {spent.seconds:.0f} s and leaves no time to train: allow more time"
            )
        settings = self.recipe.to_toml()
        state = State()
        if resume and path.is_file():
            state = training_state.load(path, self.aligner, self.optimiser, settings)
            logger.info(f"going on after step {state.step:,} of {self.plan.steps:,}")
        began = Spent.until_now() - state.spent
        self.aligner.train()
        with ctrl_c_held_back() as pressed:
            while (before := self.place(state)) < self.plan.steps and not state.finished:
                for group in self.optimiser.param_groups:
                    group["lr"] = learning_rate(self.recipe.optim, before, self.plan.steps)
                state.losses.append(self._step(state.step))
                state.step += 1
                state.spent = self._clock(began)
                place = self.place(state)
                if look := any(before < due <= place for due in self.plan.dev_evaluations):
                    self._evaluate_dev(state)
                self._hold_memory()
                if look or pressed:
                    self._save(path, state, settings)
                progress("training", place, self.plan.steps, _note(state))
                if pressed:
                    raise KeyboardInterrupt
        state.spent = Spent.until_now() - began
        return state

    def place(self, state: State) -> int:
        """Say how far along its course training is, in steps: further than those done where time is the shorter."""
        if self.seconds is None:
            return state.step
        return max(state.step, min(self.plan.steps, int(self.plan.steps * state.spent.seconds / self.seconds)))

    def batch(self, step: int) -> npt.NDArray[np.int64]:
        """Draw this process's pairs of a step: a share of the batch, from the epoch's seeded permutation."""
        epoch, place = divmod(step, self.plan.steps_per_epoch)
        order = np.random.default_rng((self.recipe.train.seed, epoch)).permutation(len(self.features.captions))
        size = self.recipe.optim.batch_size
        whole = order[place * size : (place + 1) * size]
        processes = self.accelerator.num_processes
        share = len(whole) // processes
        return whole[self.accelerator.process_index * share :][:share]

    def backward(self, pairs: npt.NDArray[np.int64], seed: int, epoch: int = 0) -> float:
        """Add to every gradient that of the global batch's loss, of which ``pairs`` is this process's share.

        With ``optim.micro_batch`` the embeddings are first made without gradients, the loss gives the gradient of each
        embedding, and then each part of the batch is run again to send its own part of them down (GradCache,
        Gao et al. 2021). Seeding each part makes dropout the same both times.
        """
        parts = np.array_split(pairs, math.ceil(len(pairs) / (self.recipe.optim.micro_batch or len(pairs))))
        if len(parts) == 1:
            loss = self.loss(*self._encode(pairs, seed, epoch), pairs)
            self.accelerator.backward(loss)
            return loss.item()
        with torch.no_grad():
            made = [self._encode(part, seed + number, epoch) for number, part in enumerate(parts)]
        image, text = (torch.cat(embeddings).requires_grad_() for embeddings in zip(*made, strict=True))
        loss = self.loss(image, text, pairs)
        self.accelerator.backward(loss)
        assert image.grad is not None
        assert text.grad is not None
        start = 0
        for number, part in enumerate(parts):
            rows = slice(start, start + len(part))
            torch.autograd.backward(self._encode(part, seed + number, epoch), (image.grad[rows], text.grad[rows]))
            start += len(part)
        return loss.item()

    def loss(self, image: torch.Tensor, text: torch.Tensor, pairs: npt.NDArray[np.int64]) -> torch.Tensor:
        """Compute the global batch's loss from this process's ``(B, D)`` embeddings of ``pairs``."""
        image, text = gather(image), gather(text)
        image_of = gather(torch.from_numpy(self.features.image_of[pairs]).to(self.accelerator.device))
        if self.aligner.logit_bias is not None:
            return sigmoid(image, text, self.aligner.scale, self.aligner.logit_bias, image_of)
        return info_nce(image, text, self.aligner.scale, image_of)

    def _encode(self, pairs: npt.NDArray[np.int64], seed: int, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(seed)
        device, images = self.accelerator.device, self.features.images
        with torch.autocast(device.type, torch.bfloat16, enabled=trains_in_bf16(self.recipe.train.precision, device)):
            image = self.aligner.encode_image(images.batch(self.features.image_rows(pairs, epoch), device), images.cut)
            text = encode_captions(self.aligner, self.features.captions, pairs)
        return image.float(), text.float()

    def _step(self, step: int) -> float:
        self.optimiser.zero_grad(set_to_none=True)
        chance = np.random.default_rng((self.recipe.train.seed, step, self.accelerator.process_index))
        epoch = step // self.plan.steps_per_epoch
        value = self.backward(self.batch(step), int(chance.integers(2**62)), epoch)
        if not math.isfinite(value):
            raise UserError(f"the loss is {value} at step {step + 1}: lower the learning rate (--set optim.lr=...)")
        average_gradients(self.aligner, self.accelerator)
        nn.utils.clip_grad_norm_(self.aligner.trainable().values(), self.recipe.optim.grad_clip)
        self.optimiser.step()
        return value

    def _evaluate_dev(self, state: State) -> None:
        """Measure dev, keep the state if it is the best so far, stop after ``patience`` looks without a gain."""
        embedded = embed_features(self.aligner, self.dev, _at_a_time(self.recipe))
        self.aligner.train()
        ranked = metrics.both_directions(embedded.images, embedded.captions, embedded.image_of)
        hits = metrics.gather_hits(ranked[0].rank, ranked[1].rank, embedded.image_of)
        mean_recall = float(metrics.recalls([hits])[-1])
        loss = float(np.mean(state.losses))
        state.dev_evaluations.append(
            DevEvaluation(step=state.step, seconds=state.spent.seconds, loss=loss, dev_mean_recall=mean_recall)
        )
        state.losses = []
        if state.best_dev_evaluation == len(state.dev_evaluations) - 1:
            state.best = {
                name: tensor.detach().cpu().clone() for name, tensor in checkpoint.trained_state(self.aligner).items()
            }
        if (alarm := collapse_alarm(state.dev_evaluations, len(embedded.images))) is not None:
            logger.info(alarm)
        state.finished = len(state.dev_evaluations) - 1 - state.best_dev_evaluation >= self.recipe.train.patience

    def _clock(self, began: Spent) -> Spent:
        """Read the time spent; with several processes that of the slowest, so that all end at the same step."""
        spent = Spent.until_now() - began
        if self.seconds is None or self.accelerator.num_processes == 1:
            return spent
        clocks: torch.Tensor = self.accelerator.gather(torch.tensor([spent.seconds], device=self.accelerator.device))
        return replace(spent, seconds=float(clocks.max()))

    def _hold_memory(self) -> None:
        allowed = self.recipe.train.max_memory_bytes
        if allowed is not None and (held := peak_memory(self.accelerator.device)) > allowed:
            raise UserError(
                f"training holds {held / 2**30:.2f} GiB, over its bound of {allowed / 2**30:.2f} GiB: "
                "lower optim.micro_batch, or allow more memory"
            )

    def _save(self, path: Path, state: State, settings: str) -> None:
        if self.accelerator.is_main_process:
            training_state.save(path, state, self.aligner, self.optimiser, settings)


def average_gradients(aligner: Aligner, accelerator: Accelerator) -> None:
    """Average every trainable parameter's gradient over processes, in one message."""
    if accelerator.num_processes == 1:
        return
    gradients = [parameter.grad for parameter in aligner.trainable().values() if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    flat = accelerator.reduce(flat, "mean")
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def collapse_alarm(dev_evaluations: list[DevEvaluation], dev_images: int) -> str | None:
    """Say so when the last look is a collapse: recall at chance, or less than half of what it was at its best."""
    chance = sum(min(k / dev_images, 1) for k in metrics.RECALL_AT) / len(metrics.RECALL_AT)
    last, best = dev_evaluations[-1].dev_mean_recall, max(look.dev_mean_recall for look in dev_evaluations)
    advice = "lower the learning rate (--set optim.lr=...); the best state so far is kept"
    if len(dev_evaluations) > 2 and last <= 1.25 * chance:
        return f"collapse: dev recall {100 * last:.1f} % is at chance after step {dev_evaluations[-1].step:,}; {advice}"
    if last < best / 2:
        fall = f"fell from {100 * best:.1f} to {100 * last:.1f} %"
        return f"collapse: dev recall {fall} by step {dev_evaluations[-1].step:,}; {advice}"
    return None


def _at_a_time(recipe: Recipe) -> int:
    """Give how many images or captions the towers see at a time when they are only measured."""
    return min(256, recipe.optim.micro_batch or 256)


def _test(aligner: Aligner, features: PairFeatures, gallery: PairTable, rows: int) -> Retrieval:
    embedded = embed_features(aligner, features, rows)
    return retrieval.score(embedded.images, embedded.captions, gallery)


def _note(state: State) -> str:
    if not state.dev_evaluations:
        return f"loss {state.losses[-1]:.2f}" if state.losses else ""
    last, best = state.dev_evaluations[-1], state.dev_evaluations[state.best_dev_evaluation].dev_mean_recall
    return f"loss {last.loss:.2f}, dev mean recall {100 * last.dev_mean_recall:.1f} (best {100 * best:.1f})"


def _transfer(aligner: Aligner, recipe: Recipe) -> list[Retrieval]:
    """Test in the languages that were not trained on."""
    results = []
    for lang in recipe.test.languages:
        gallery = load_split(recipe, "test", lang)
        features = prepare(aligner, gallery, recipe.cache)
        results.append(_test(aligner, features, gallery, _at_a_time(recipe)).without_ranks())
    return results


def _knowledge(aligner: Aligner, recipe: Recipe) -> Retention:
    asked = knowledge.probes(recipe)
    return knowledge.evaluate(aligner, asked, knowledge.Config())


def _facts(loop: Loop, state: State, pairs: PairTable) -> dict[str, Any]:
    """Gather what the record says of the run itself."""
    recipe, (trainable, total) = loop.recipe, loop.aligner.count()
    spent = state.spent + loop.features.spent + loop.dev.spent
    return {
        "recipe": recipe.table(),
        "lang": recipe.lang,
        "strategy": recipe.strategy["name"],
        "towers": recipe.strategy["towers"],
        "budget": recipe.budget,
        "seed": recipe.train.seed,
        "pairs": len(pairs),
        "images": len(pairs.images),
        "pairs_seen": state.step * min(recipe.optim.batch_size, len(pairs)),
        "steps": state.step,
        "epochs": round(state.step / loop.plan.steps_per_epoch, 2),
        "stopped_early": state.step < loop.plan.steps,
        "trainable": trainable,
        "total": total,
        "seconds": round(spent.seconds, 1),
        "cpu_seconds": round(spent.cpu_seconds, 1),
        "device": str(loop.accelerator.device),
        "threads": torch.get_num_threads(),
        "caption_origin": pairs.origin,
        "versions": versions(),
        "dev_evaluations": tuple(state.dev_evaluations),
    }
