"""Continue the masked-language-model training of a Hugging Face encoder on a user's own text.

The training loop is transformers' ``Trainer``; this module adds checks, resuming, progress and a model card.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from polyalign.config.language import describe_error, load_language
from polyalign.config.tower import TextSpec
from polyalign.config.values import Number, Seed, Whole
from polyalign.data.scripts import in_other_script, letters_of
from polyalign.models.towers.text_loading import quiet
from polyalign.models.vocabulary import read_sentences
from polyalign.training.masked_lm import Masking, insert_low_rank, load
from polyalign.utils import storage
from polyalign.utils.errors import DISK_ERRORS, UserError, first_line
from polyalign.utils.lock import LOCK_FILES, locked
from polyalign.utils.progress import progress

RECORD = "pretrained.json"

_WORK = "checkpoints"
_SETTINGS = "settings.json"
_CHECKPOINT = re.compile(r"(tmp-)?checkpoint-\d+")
_MAX_DEV_SENTENCES = 2000

logger = logging.getLogger(__name__)


class Config(BaseModel):
    """Settings; all but ``save_minutes``, the time between two checkpoints, determine the weights.

    ``texts`` are files with one sentence per line; duplicates are removed. A share ``dev_share`` of the sentences, at
    most 2,000, is held out for evaluation. ``max_steps`` overrides ``epochs``. Sentences longer than ``max_tokens``, or
    than the encoder allows, are truncated. ``new_head`` accepts an encoder without a masked-language-model head.
    ``lora_rank`` trains low-rank updates of the encoder's linear maps instead of its weights, which are merged in the
    end. ``lang`` is the language of the texts, for the check of their script and for the model card.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(min_length=1)
    revision: str | None = None
    lang: str | None = None
    texts: tuple[Path, ...] = Field(min_length=1)
    epochs: Whole = Field(3, gt=0, le=100_000)
    max_steps: Whole | None = Field(None, gt=0, le=10**9)
    batch_size: Whole = Field(32, gt=0, le=2**20)
    lr: Number = Field(5e-5, gt=0, le=1_000)
    warmup_share: Number = Field(0.06, ge=0, lt=1)
    weight_decay: Number = Field(0.01, ge=0, le=1_000)
    mask_probability: Number = Field(0.15, gt=0, lt=1)
    max_tokens: Whole = Field(128, gt=2, le=100_000)
    dev_share: Number = Field(0.05, gt=0, lt=1)
    new_head: bool = False
    lora_rank: Whole | None = Field(None, gt=0, le=65_536)
    save_minutes: Number = Field(10, ge=0, le=1e6)
    seed: Seed = 0


class Pretrained(BaseModel):
    """Record of a run: numbers of ``sentences`` (training, held out), held-out ``loss`` (before, after training).

    ``settings`` are those of the configuration, with a hash of the text instead of the file names.
    """

    model_config = ConfigDict(frozen=True)

    sentences: tuple[int, int]
    steps: int
    loss: tuple[float, float]
    settings: dict[str, Any]

    @property
    def perplexity(self) -> tuple[float, float]:
        """The exponential of both losses."""
        return float(np.exp(self.loss[0])), float(np.exp(self.loss[1]))


@quiet()
def pretrain_text(config: Config, out: Path, *, resume: bool = False) -> Pretrained:
    """Train the encoder on the texts and write it to ``out``: weights with their head, tokenizer and model card.

    With ``resume``, an interrupted run continues from its last checkpoint and gives the same weights as an
    uninterrupted one; a finished run is returned as it is.

    Raises:
        UserError: a text or the encoder cannot be read, the encoder has no masked-language-model head, the loss is not
            finite, the disk is full, or ``out`` holds anything but this run or is in use by another process.
    """
    storage.check_writable(out)
    with locked(out), _writing(out):
        return _pretrain(config, out, resume=resume)


def _pretrain(config: Config, out: Path, *, resume: bool) -> Pretrained:
    train, dev = _split(read_sentences(config.texts), config)
    digest = hashlib.sha256("\n".join(train + dev).encode()).hexdigest()[:16]
    settings = {**config.model_dump(mode="json", exclude={"texts", "save_minutes"}), "text": digest}
    if (done := _finished(out, settings, resume=resume)) is not None:
        return done
    _check_script(train, config)
    model, tokenizer = load(
        TextSpec(model=config.model, revision=config.revision), new_head=config.new_head, seed=config.seed
    )
    low_rank = None if config.lora_rank is None else insert_low_rank(model, config.lora_rank)
    work = out / _WORK
    if not (work / _SETTINGS).exists():
        # A checkpoint has the weights and Adam's two moments; the old one is removed after the new one is written.
        storage.check_room(out, 2 * 3 * sum(p.numel() * 4 for p in model.parameters()), "the checkpoints of a run")
        storage.write_text(work / _SETTINGS, json.dumps(settings))
    # XLM-R numbers positions from two, so it takes two tokens fewer than it has positions.
    positions = getattr(model.config, "max_position_embeddings", None) or config.max_tokens + 2
    max_tokens = min(config.max_tokens, int(tokenizer.model_max_length), positions - 2)
    masking = Masking(tokenizer, config.mask_probability, max_tokens, config.seed)
    trainer = Trainer(model, _arguments(config, work), masking, train, dev, callbacks=[Reporter(config.save_minutes)])
    trainer.remove_callback(PrinterCallback)
    before = trainer.evaluate()["eval_loss"]
    if not math.isfinite(before):
        raise UserError(f"the loss of {config.model} is {before} before training: use another encoder")
    # Trainer reads the states of the optimiser and the random generators with ``torch.load(weights_only=True)``, which
    # runs no code. The weights are safetensors.
    last = _last_checkpoint(work)
    try:
        trainer.train(resume_from_checkpoint=last)
    except Exception as error:  # torch, transformers and json raise many types on damaged files
        if last is None or trainer.state.global_step > int(last.rpartition("-")[2]) or isinstance(error, OSError):
            raise
        raise UserError(f"{last} is damaged: {first_line(error)}; delete it, and continue with --resume") from error
    after = trainer.evaluate()["eval_loss"]
    if not math.isfinite(after):
        raise UserError(f"the loss is {after} after training: lower the learning rate (--set lr=...) in another folder")
    if low_rank is not None:
        low_rank.merge_and_unload()
    model.save_pretrained(out)
    for weights in out.glob("*.safetensors"):
        weights.chmod(0o644)
    tokenizer.save_pretrained(out)
    steps = trainer.state.global_step
    done = Pretrained(sentences=(len(train), len(dev)), steps=steps, loss=(before, after), settings=settings)
    storage.write_text(out / "README.md", _card(done, [path.name for path in config.texts]))
    storage.write_text(out / RECORD, done.model_dump_json(indent=2) + "\n")
    _remove_checkpoints(work)
    return done


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Turn the errors of transformers, torch and safetensors on a full or read-only disk into one line."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        of_disk = isinstance(error, OSError) and error.errno in DISK_ERRORS
        if of_disk or re.search(r"os error \d+|PytorchStreamWriter|unexpected pos", str(error)):
            why = f"{first_line(error)}; make room or choose another folder, and continue with --resume"
            raise UserError(f"cannot write {out}: {why}") from error
        raise


def _remove_checkpoints(work: Path) -> None:
    """Delete what this module and Trainer wrote for resuming; anything else stays, and links are not followed."""
    if work.is_symlink() or not work.is_dir():
        return
    for path in work.iterdir():
        if path.name == _SETTINGS:
            path.unlink()
        elif _CHECKPOINT.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
    if any(work.iterdir()):
        logger.warning(f"{work} holds files that are not of this run: they are kept")
    else:
        work.rmdir()


class Reporter(TrainerCallback):
    """Reports progress, requests a checkpoint every ``save_minutes``, and stops a run whose loss is not finite."""

    def __init__(self, save_minutes: float) -> None:
        self._seconds = 60 * save_minutes
        self._saved, self._measured, self._note = time.monotonic(), 0, ""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Check the loss and note it."""
        if (loss := (logs or {}).get("loss")) is None:
            return
        if not math.isfinite(loss):
            raise UserError(f"the loss is {loss} by step {state.global_step}: lower the learning rate (--set lr=...)")
        self._note = f"loss {loss:.3f}"

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Report the step, and request a checkpoint when it is time."""
        progress("masked language modelling", state.global_step, state.max_steps, self._note)
        if time.monotonic() - self._saved >= self._seconds:
            control.should_save, self._saved = True, time.monotonic()

    def on_prediction_step(self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **_: Any) -> None:
        """Report an evaluated batch."""
        self._measured = self._measured % len(eval_dataloader) + 1
        progress("evaluating on held-out sentences", self._measured, len(eval_dataloader))


def _split(sentences: Sequence[str], config: Config) -> tuple[list[str], list[str]]:
    unique = list(dict.fromkeys(sentence.strip() for sentence in sentences))
    if len(unique) < 2:
        names = ", ".join(map(str, config.texts))
        raise UserError(f"too little text in {names}: at least two different sentences are needed, one per line")
    shuffled = [unique[i] for i in np.random.default_rng(config.seed).permutation(len(unique))]
    held_out = min(max(1, round(config.dev_share * len(unique))), _MAX_DEV_SENTENCES, len(unique) - 1)
    return shuffled[held_out:], shuffled[:held_out]


def _finished(out: Path, settings: Mapping[str, Any], *, resume: bool) -> Pretrained | None:
    """Return the record of a finished run to resume in ``out``, or None if there is training to do.

    Raises:
        UserError: ``out`` holds other files, a run with other settings, a damaged record of one, a finished run
            without its weights, or a run and ``resume`` is false.
    """
    record, started = out / RECORD, out / _WORK / _SETTINGS
    if record.is_file() and resume:
        with _undamaged(record):
            done = Pretrained.model_validate_json(record.read_bytes())
        _check_same(out, done.settings, settings)
        if not any((out / name).is_file() for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)):
            raise UserError(f"{out} has the record of a finished run but no {SAFE_WEIGHTS_NAME}: use another --out")
        _remove_checkpoints(out / _WORK)
        return done
    if (out / _WORK).is_symlink():
        raise UserError(f"{out / _WORK} is a symbolic link: use another --out")
    if started.is_file() and not record.is_file():
        if not resume:
            raise UserError(f"{out} holds an interrupted run: continue it with --resume, or use another --out")
        with _undamaged(started):
            theirs = TypeAdapter(dict[str, Any]).validate_json(started.read_bytes())
        _check_same(out, theirs, settings)
    elif {path.name for path in out.iterdir()} - {*LOCK_FILES}:
        raise UserError(f"{out} already exists: use another --out")
    return None


@contextmanager
def _undamaged(path: Path) -> Iterator[None]:
    """Name the file of a run that cannot be read."""
    try:
        yield
    except ValidationError as error:
        raise UserError(f"{path} is damaged ({describe_error(error)}): use another --out") from error


def _check_same(out: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    changed = [key for key in sorted(theirs.keys() | ours.keys()) if theirs.get(key) != ours.get(key)]
    if changed:
        what = ", ".join(f"{key} was {theirs.get(key)}, is {ours.get(key)}" for key in changed)
        raise UserError(f"{out} holds a run with other settings ({what}): use the same settings, or another --out")


def _check_script(sentences: Sequence[str], config: Config) -> None:
    """Warn if most sentences are not in the script of their language."""
    if config.lang is None:
        return
    lang = load_language(config.lang)
    if (letters := letters_of(lang.script)) is None:
        return
    foreign = len(list(in_other_script(sentences, letters)))
    if foreign > len(sentences) / 2:
        logger.warning(
            f"warning: {foreign:,} of {len(sentences):,} sentences are not in the script of {lang.english_name} "
            f"({lang.script})"
        )


def _arguments(config: Config, work: Path) -> TrainingArguments:
    gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(work),
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        learning_rate=config.lr,
        warmup_steps=config.warmup_share,  # a value below one is a share of all steps
        weight_decay=config.weight_decay,
        bf16=gpu and torch.cuda.is_bf16_supported(),
        seed=config.seed,
        logging_steps=10,
        logging_nan_inf_filter=False,
        save_strategy="no",  # Reporter requests checkpoints
        save_total_limit=1,
        remove_unused_columns=False,
        dataloader_pin_memory=gpu,
        disable_tqdm=True,
        report_to=[],
    )


def _last_checkpoint(work: Path) -> str | None:
    """Return the newest complete checkpoint: Trainer writes ``trainer_state.json`` last."""
    complete = [state.parent for state in work.glob("checkpoint-*/trainer_state.json")]
    return str(max(complete, key=lambda folder: int(folder.name.rpartition("-")[2]))) if complete else None


def _card(done: Pretrained, files: Sequence[str]) -> str:
    language = "" if done.settings["lang"] is None else f"\nlanguage: {done.settings['lang']}"
    settings = "\n".join(f"| `{key}` | {value} |" for key, value in done.settings.items())
    return f"""---
library_name: transformers
pipeline_tag: fill-mask{language}
---

# {done.settings["model"]}, trained further on text

Made by `polyalign pretrain`: {done.steps:,} steps of masked language modelling from `{done.settings["model"]}`, on
{done.sentences[0]:,} different sentences from {", ".join(files)}. No image was involved.

`AutoModel`, `AutoModelForMaskedLM` and `AutoTokenizer` load this folder; in polyalign it is a text tower with
`--set text.model=FOLDER`.

## Measured

On {done.sentences[1]:,} held-out sentences, masked alike before and after; perplexity is the exponential of the loss
at the masked tokens.

| | before | after |
|---|---|---|
| masked-LM loss | {done.loss[0]:.3f} | {done.loss[1]:.3f} |
| perplexity | {done.perplexity[0]:.1f} | {done.perplexity[1]:.1f} |

## Settings

| setting | value |
|---|---|
{settings}
"""
