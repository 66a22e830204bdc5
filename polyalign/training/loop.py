"""The training loop: batches, gradients, dev evaluations, and when to stop."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from polyalign.config.schema import Recipe
from polyalign.evaluation import ranking
from polyalign.evaluation.intervals import Intervals, recall_intervals
from polyalign.evaluation.results import DevEvaluation
from polyalign.models import checkpoint
from polyalign.models.aligner import Aligner
from polyalign.models.embed import PairFeatures, SentenceFeatures, embed_features, encode_captions
from polyalign.models.feature_cache import together
from polyalign.training import grad_cache
from polyalign.training.guards import check_gradients
from polyalign.training.loss import gather, info_nce, positives, sigmoid, squared_distance
from polyalign.training.metrics_log import METRICS, MetricsLog, learning_rates
from polyalign.training.not_finite import REASONS, all_finite, reason
from polyalign.training.optim import adamw, learning_rate, warmup_steps
from polyalign.training.plan import Plan, check_divisible, collapse_alarm
from polyalign.training.recompute import compile_blocks, recompute_blocks
from polyalign.training.sampling import Batches
from polyalign.training.state import State, load, save
from polyalign.utils.errors import UserError
from polyalign.utils.precision import trains_in_bf16
from polyalign.utils.process import Spent, ctrl_c_held_back, from_main_process, peak_memory
from polyalign.utils.progress import progress

logger = logging.getLogger(__name__)

_LOSSES_READ_EVERY = 50
"""Steps between two readings of the loss: each reading waits for the GPU."""
_SENTENCES = 2**32
"""Part of the seeds of batches of parallel sentences; seeds of runs are smaller."""
_AGREE_EVERY = 10
"""Steps between two exchanges of clocks and interrupts among several processes."""


class Loop:
    """The training loop. Batch and random numbers of a step depend on (seed, step) alone: a run can be resumed."""

    def __init__(
        self,
        recipe: Recipe,
        aligner: Aligner,
        features: PairFeatures,
        dev: Sequence[PairFeatures],
        accelerator: Accelerator,
        sentences: SentenceFeatures | None = None,
    ) -> None:
        """Take a built aligner and the features that its trainable part takes, for train and for each dev split.

        ``sentences`` are parallel sentences to train on beside the pairs.

        Raises:
            UserError: the batch cannot be divided among the processes.
        """
        self.recipe = recipe
        self.aligner = aligner
        self.features = features
        self.dev = dev
        self.sentences = sentences
        self.accelerator = accelerator
        self.chance = float(np.mean([_chance(one) for one in dev]))
        self.plan = Plan.of(recipe, len(features.captions))
        seed, temperature = recipe.train.seed, recipe.train.temperature
        self._pairs = Batches(features.lang_of, recipe.optim.batch_size, (seed,), temperature)
        if sentences is not None and recipe.parallel is not None:
            self._rows = Batches(np.zeros(len(sentences), np.int64), recipe.parallel.batch_size, (seed, _SENTENCES))
        self._unread: list[torch.Tensor] = []
        self._checked = False
        check_divisible(recipe, len(features.captions), accelerator.num_processes)
        shortened = warmup_steps(recipe.optim, self.plan.steps)
        if shortened < recipe.optim.warmup_steps:
            _say_once(f"warm-up shortened from {recipe.optim.warmup_steps} to {shortened} steps, a tenth of the run")
        if recipe.train.recompute:
            recompute_blocks(aligner)
        if recipe.train.compile:
            compile_blocks(aligner)
        self.optimiser = adamw(aligner, recipe.optim)
        allowed = recipe.train.max_seconds
        stores = [store for one in (features, *dev) for store in (one.images, one.captions)]
        stores += [] if sentences is None else [sentences.store]
        self.prepared = together(stores)
        self.seconds = None if allowed is None else allowed - self.prepared.seconds

    def run(self, path: Path, *, resume: bool) -> State:
        """Train to the end, until dev has stopped improving, or until the time is over.

        Raises:
            UserError: the loss is not finite, there is no time to train in, or memory exceeds its bound.
        """
        if self.seconds is not None and self.seconds <= 0:
            raise UserError(
                f"computing the frozen part took {self.prepared.seconds:.0f} s and leaves no time to train: "
                "allow more time"
            )
        settings = self.recipe.to_toml()
        state = self._resumed(path, settings) if resume else State()
        self._log = MetricsLog(path.with_name(METRICS), self.recipe, self.accelerator, state.step or None)
        began = Spent.until_now() - state.spent
        if self.recipe.parent is not None and not state.dev_evaluations:
            self._write(state, self._evaluate_dev(state))  # the weights of the parent are kept if none are better
        self.aligner.train()
        with ctrl_c_held_back() as pressed:
            while (before := self.place(state)) < self.plan.steps and not state.finished:
                for group in self.optimiser.param_groups:
                    group["lr"] = group["lr_scale"] * learning_rate(self.recipe.optim, before, self.plan.steps)
                self._unread.append(self._step(state.step))
                state.step += 1
                state.spent, stop = self._agree(state.step, Spent.until_now() - began, stop=bool(pressed))
                place = self.place(state)
                due = any(before < step <= place for step in self.plan.dev_evaluations)
                if due or stop or len(self._unread) == _LOSSES_READ_EVERY:
                    metrics = self._read_losses(state) | (self._evaluate_dev(state) if due else {})
                    self._write(state, metrics)
                self._check_memory()
                if due or stop:
                    self._save(path, state, settings)
                progress("training", place, self.plan.steps, _note(state))
                if stop:
                    raise KeyboardInterrupt
        state.spent, _ = self._agree(0, Spent.until_now() - began, stop=False)
        return state

    def _write(self, state: State, metrics: dict[str, float]) -> None:
        epoch, seconds = round(state.step / self.plan.steps_per_epoch, 4), round(state.spent.seconds, 3)
        place = {"epoch": epoch, "pairs_seen": self.pairs_seen(state), "seconds": seconds}
        self._log.write(state.step, {**place, **learning_rates(self.optimiser), **metrics})

    def _resumed(self, path: Path, settings: str) -> State:
        """Load the state to continue from; the main process decides whether there is one.

        Raises:
            UserError: the state belongs to other settings, or a process cannot see the file.
        """
        if not from_main_process(path.is_file()):
            return State()
        if not self._over_processes([path.is_file()]).all():
            raise UserError(f"{path} is not visible to all processes: put --out on a file system they share")
        state = load(path, self.aligner, self.optimiser, settings)
        logger.info(f"continuing after step {state.step:,} of {self.plan.steps:,}")
        if not self.accelerator.is_main_process:  # the time in the state is that of all processes: count it once
            state.spent = replace(state.spent, cpu_seconds=0.0)
        return state

    def place(self, state: State) -> int:
        """Return the progress of training in steps: the steps done, or more where a time budget is nearer its end."""
        if self.seconds is None:
            return state.step
        return max(state.step, min(self.plan.steps, int(self.plan.steps * state.spent.seconds / self.seconds)))

    def pairs_seen(self, state: State) -> int:
        """Return the number of pairs of all steps so far, with repeats."""
        return state.step * min(self.recipe.optim.batch_size, len(self.features.captions))

    def batch(self, step: int) -> npt.NDArray[np.int64]:
        """Return this process's pairs of a step: its share of the batch, from the epoch's seeded permutation."""
        return self._share(self._pairs.batch(step))

    def _share(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return this process's share of the rows of a batch."""
        share = len(rows) // self.accelerator.num_processes
        return rows[self.accelerator.process_index * share :][:share]

    def backward(self, pairs: npt.NDArray[np.int64], seed: int, epoch: int = 0) -> torch.Tensor:
        """Add the gradients of the global batch's loss, and return it; ``pairs`` is this process's share of it."""
        return grad_cache.backward(
            pairs,
            seed,
            lambda part, own: self._encode(part, own, epoch),
            lambda made: self.loss(made[0], made[1], pairs),
            self.recipe.optim.micro_batch,
        )

    def loss(self, image: torch.Tensor, text: torch.Tensor, pairs: npt.NDArray[np.int64]) -> torch.Tensor:
        """Compute the global batch's loss from this process's ``(B, D)`` embeddings of ``pairs``."""
        if self.recipe.optim.loss == "mse":
            return squared_distance(image, text)
        image_of, caption_of = (self._gathered(of[pairs]) for of in (self.features.image_of, self.features.caption_of))
        return self._contrast(gather(image), gather(text), positives(image_of, caption_of))

    def _contrast(self, one: torch.Tensor, other: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
        if self.aligner.logit_bias is not None:
            return sigmoid(one, other, self.aligner.scale, self.aligner.logit_bias, same)
        return info_nce(one, other, self.aligner.scale, same)

    def _gathered(self, numbers: npt.NDArray[np.int64]) -> torch.Tensor:
        return gather(torch.from_numpy(numbers).to(self.accelerator.device))

    def backward_sentences(self, step: int, seed: int) -> torch.Tensor:
        """Add the gradients of the loss of the parallel sentences of a step, and return it."""
        assert self.sentences is not None
        rng = np.random.default_rng((self.recipe.train.seed, _SENTENCES, step, 0))
        rows = self._share(self.sentences.pick(self._rows.batch(step), rng))
        loss_of = partial(self._sentence_loss, rows=rows)
        return grad_cache.backward(rows, seed, self._encode_sentences, loss_of, self.recipe.optim.micro_batch)

    def _encode_sentences(self, rows: npt.NDArray[np.int64], seed: int) -> tuple[torch.Tensor, ...]:
        """Return joint-space vectors ``(B, D)`` of the pivot and of the other sentences, then the tower's features."""
        assert self.sentences is not None
        torch.manual_seed(seed)
        aligner, device = self.aligner, self.accelerator.device
        with torch.autocast(device.type, torch.bfloat16, enabled=trains_in_bf16(self.recipe.train.precision, device)):
            features = encode_captions(aligner, self.sentences.store, rows.T.ravel(), aligner.text.suffix)
            joint = F.normalize(aligner.text_projection(features), dim=-1)
        return *joint.float().chunk(2), *features.float().chunk(2)

    def _sentence_loss(self, made: Sequence[torch.Tensor], rows: npt.NDArray[np.int64]) -> torch.Tensor:
        pivot, other, *features = made
        sentences, settings = self.sentences, self.recipe.parallel
        assert sentences is not None
        assert settings is not None
        same = positives(*(self._gathered(sentences.text_of[side]) for side in rows.T))
        loss = settings.weight * self._contrast(gather(pivot), gather(other), same)
        if sentences.before is not None:
            before = torch.from_numpy(sentences.before[rows.T.ravel()]).to(pivot.device)
            now = torch.cat(features)
            loss = loss + settings.anchor * (1 - F.cosine_similarity(now, before)).mean()
        return loss

    def _encode(
        self, pairs: npt.NDArray[np.int64], seed: int, epoch: int, aligner: Aligner | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        aligner = aligner or self.aligner
        torch.manual_seed(seed)
        device, images = self.accelerator.device, self.features.images
        with torch.autocast(device.type, torch.bfloat16, enabled=trains_in_bf16(self.recipe.train.precision, device)):
            image = aligner.encode_image(images.batch(self.features.image_rows(pairs, epoch), device), images.cut)
            text = encode_captions(aligner, self.features.captions, pairs)
        return image.float(), text.float()

    def _step(self, step: int) -> torch.Tensor:
        self.optimiser.zero_grad(set_to_none=True)
        rng = np.random.default_rng((self.recipe.train.seed, step, self.accelerator.process_index))
        epoch = step // self.plan.steps_per_epoch
        loss = self.backward(self.batch(step), int(rng.integers(2**62)), epoch)
        if self.sentences is not None:
            loss = loss + self.backward_sentences(step, int(rng.integers(2**62)))
        if not self._checked:
            check_gradients(self.aligner)
            self._checked = True
        average_gradients(self.aligner, self.accelerator)
        nn.utils.clip_grad_norm_(self.aligner.trainable().values(), self.recipe.optim.grad_clip)
        self.optimiser.step()
        return loss

    def _read_losses(self, state: State) -> dict[str, float]:
        """Move the losses of the last steps into the state, and return their mean.

        They stay on the GPU until then: reading waits for it.

        Raises:
            UserError: one of them is not finite.
        """
        losses = torch.stack(self._unread).tolist()
        for step, loss in enumerate(losses, start=state.step - len(losses) + 1):
            if not math.isfinite(loss):
                raise UserError(f"the loss is {loss} at step {step}: {self._reason(step)}")
        state.losses += losses
        self._unread = []
        return {"loss": float(np.mean(losses))}

    def _reason(self, step: int) -> str:
        """Say why the loss of a step is not finite; all processes together, since each has a part of the batch."""
        pairs, epoch = self.batch(step - 1), (step - 1) // self.plan.steps_per_epoch

        def encode(untrained: Aligner) -> tuple[torch.Tensor, torch.Tensor]:
            return self._encode(pairs, 0, epoch, untrained.to(self.accelerator.device))

        found = reason(self.recipe, self.features, encode)
        return REASONS[int(self._over_processes([found]).max())]

    def _evaluate_dev(self, state: State) -> dict[str, float]:
        """Evaluate on dev, keep the best state, and stop after ``patience`` evaluations without improvement.

        The main process measures; the others take its result, so that all stop at the same step. Return the recalls.
        """
        recalls, high = self._dev_recalls() if self.accelerator.is_main_process else (np.zeros(7), 1.0)
        mean_recall = from_main_process(float(recalls[-1]))
        self.aligner.train()
        loss = float(np.mean(state.losses)) if state.losses else None
        seconds = state.spent.seconds
        state.dev_evaluations.append(
            DevEvaluation(step=state.step, seconds=seconds, loss=loss, dev_mean_recall=mean_recall)
        )
        state.losses = []
        if state.best_dev_evaluation == len(state.dev_evaluations) - 1:
            state.best = {
                name: tensor.detach().cpu().clone() for name, tensor in checkpoint.trained_state(self.aligner).items()
            }
        if (alarm := collapse_alarm(state.dev_evaluations, self.chance, high)) is not None:
            logger.warning(alarm)
        since_best = len(state.dev_evaluations) - 1 - state.best_dev_evaluation
        state.finished = since_best >= self.recipe.train.patience
        return {f"dev_{name}": value for name, value in zip(ranking.COLUMNS, recalls.tolist(), strict=True)}

    def _dev_recalls(self) -> tuple[npt.NDArray[np.float64], float]:
        """Return the seven recalls on dev, and the upper limit of the interval of the last, averaged over dev splits.

        Raises:
            UserError: an embedding is not finite.
        """
        measured = [self._recalls_on(one) for one in self.dev]
        return np.mean([one.value for one in measured], axis=0), float(np.mean([one.high[-1] for one in measured]))

    def _recalls_on(self, dev: PairFeatures) -> Intervals:
        def encode(aligner: Aligner) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
            made = embed_features(aligner.to(self.accelerator.device), dev, rows_at_a_time(self.recipe))
            return made.images, made.captions

        images, captions = encode(self.aligner)
        if not (all_finite(images) and all_finite(captions)):
            why = REASONS[reason(self.recipe, dev, encode)]
            raise UserError(f"the embeddings of the dev split are not finite: {why}")
        ranked = ranking.both_directions(images, captions, dev.image_of)
        hits = ranking.gather_hits(ranked[0].rank, ranked[1].rank, dev.image_of)
        return recall_intervals([hits.hits], hits.queries)

    def _agree(self, step: int, spent: Spent, *, stop: bool) -> tuple[Spent, bool]:
        """Return the slowest process's seconds, the processor time of all, and whether any process was interrupted.

        Processes are asked together: at each step under a time budget, else when dev is due and once in a while. In
        between none stops, since the others would wait for it.
        """
        if self.accelerator.num_processes == 1:
            return spent, stop
        if self.seconds is None and step % _AGREE_EVERY and step not in self.plan.dev_evaluations:
            return spent, False
        clocks = self._over_processes([spent.seconds, spent.cpu_seconds, stop])
        return Spent(float(clocks[:, 0].max()), float(clocks[:, 1].sum())), bool(clocks[:, 2].any())

    def _over_processes(self, values: list[float]) -> torch.Tensor:
        """Gather the values ``(V,)`` of each process: ``(processes, V)`` on the CPU."""
        own = torch.tensor([values], dtype=torch.float64, device=self.accelerator.device)
        every: torch.Tensor = self.accelerator.gather(own).cpu() if self.accelerator.num_processes > 1 else own
        return every

    def _check_memory(self) -> None:
        allowed = self.recipe.train.max_memory_bytes
        if allowed is not None and (held := peak_memory(self.accelerator.device)) > allowed:
            raise UserError(
                f"training holds {held / 2**30:.2f} GiB, over its bound of {allowed / 2**30:.2f} GiB: "
                "lower optim.micro_batch, or allow more memory"
            )

    def _save(self, path: Path, state: State, settings: str) -> None:
        if self.accelerator.is_main_process:
            save(path, state, self.aligner, self.optimiser, settings)


def _chance(dev: PairFeatures) -> float:
    return float(ranking.chance(np.bincount(dev.image_of, minlength=len(dev.images))).mean())


def average_gradients(aligner: Aligner, accelerator: Accelerator) -> None:
    """Average every trainable parameter's gradient over processes, in one message."""
    if accelerator.num_processes == 1:
        return
    gradients = [parameter.grad for parameter in aligner.trainable().values() if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    flat = accelerator.reduce(flat, "mean")
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


@cache
def _say_once(message: str) -> None:
    """Log a message the first time only: in a comparison every run would repeat it."""
    logger.info(message)


def _note(state: State) -> str:
    if not state.dev_evaluations:
        return f"loss {state.losses[-1]:.2f}" if state.losses else ""
    last, best = state.dev_evaluations[-1], state.dev_evaluations[state.best_dev_evaluation].dev_mean_recall
    loss = "" if last.loss is None else f"loss {last.loss:.2f}, "
    return f"{loss}dev mean recall {100 * last.dev_mean_recall:.1f} (best {100 * best:.1f})"


def rows_at_a_time(recipe: Recipe) -> int:
    """Return the number of images or captions that are embedded at a time in an evaluation."""
    return min(256, recipe.optim.micro_batch or 256)
