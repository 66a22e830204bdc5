"""``polyalign pretrain text``: a small XLM-R learned from text alone, starter world or a user's own.

Stage one is masked language modelling, half of it on pairs of translations side by side (TLM, Conneau & Lample 2019).
Stage two pulls the mean-pooled sentences of a translation pair together against the rest of the batch and keeps the
masked modelling going, so that the language-model head stays of use. No image is ever involved.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaForMaskedLM

from polyalign.config import language as langs
from polyalign.models.towers.common import masked_pool
from polyalign.pretrain import text_corpus, text_vocab
from polyalign.pretrain.loop import Stage, discard, run_stages, save_atomically
from polyalign.pretrain.text_card import write_card
from polyalign.pretrain.text_corpus import Corpus
from polyalign.training.loss import info_nce
from polyalign.utils.progress import Progress

Ids = list[int]


class Config(BaseModel):
    """What decides a run; the defaults are what the shipped tower was made with.

    Without ``texts`` and ``parallel`` the text is the starter world's, in ``languages`` (all that can say it when
    empty), and ``low_resource_share`` is the share of the lines that a low-resource language has. ``texts`` are
    files of one sentence a line, ``parallel`` files that belong together line by line, by language, of which
    ``held_out`` at most are kept back to measure with. Where no line has a translation there is no second stage.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    languages: tuple[str, ...] = ()
    lines: int = Field(60_000, gt=1)
    low_resource_share: float = Field(0.25, ge=0, le=1)
    texts: tuple[Path, ...] = ()
    parallel: dict[str, Path] = {}
    held_out: int = Field(text_corpus.HELD_OUT, ge=0)

    vocab_size: int = Field(2000, gt=3)
    width: int = Field(128, gt=0)
    layers: int = Field(3, gt=0)
    heads: int = Field(4, gt=0)
    hidden_width: int = Field(512, gt=0)
    max_tokens: int = Field(128, gt=4)

    mlm_steps: int = Field(600, ge=0)
    ranking_steps: int = Field(2600, ge=0)
    batch_size: int = Field(64, gt=1)
    mlm_lr: float = Field(2e-3, gt=0)
    ranking_lr: float = Field(2e-3, gt=0)
    mask_share: float = Field(0.3, gt=0, lt=1)
    temperature: float = Field(0.05, gt=0)
    seed: int = 0

    @model_validator(mode="after")
    def _whole_heads(self) -> Config:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of {self.heads} heads")
        return self


def run(config: Config, out: Path, resume: bool, progress: Progress | None = None) -> Path:
    """Pretrain and write a Hugging Face folder to ``out``: half-precision weights, tokenizer, model card.

    A stopped run goes on with ``resume``, to the same weights as one that was never stopped.

    Raises:
        UserError: the text cannot be read or is too little, or ``out`` holds a run that is not resumed.
    """
    corpus = _corpus(config, progress)
    pieces = text_vocab.train((s for line in corpus.train for s in line.values()), config.vocab_size)
    tokenizer = text_vocab.tokenizer(pieces, config.max_tokens)
    torch.manual_seed(config.seed)
    model = XLMRobertaForMaskedLM(_architecture(config, len(tokenizer)))
    learner = Learner(model, tokenizer, corpus, config)
    # What files are called does not matter, what is in them does.
    settings = config.model_dump(mode="json", exclude={"texts", "parallel"})
    run_stages(
        model,
        learner.stages(),
        out=out,
        seed=config.seed,
        settings={**settings, "text": corpus.digest()},
        resume=resume,
        progress=progress,
    )
    _save(model, pieces, tokenizer, out)
    write_card(out, corpus, settings, progress)
    discard(out)
    return out


def _corpus(config: Config, progress: Progress | None) -> Corpus:
    if config.texts or config.parallel:
        return text_corpus.files(config.texts, config.parallel, config.seed, held_out=config.held_out)
    codes = config.languages or tuple(code for code in langs.names() if langs.load(code).starter)
    return text_corpus.starter(
        codes,
        config.lines,
        config.low_resource_share,
        config.seed,
        held_out=config.held_out,
        progress=progress,
    )


def _architecture(config: Config, vocab_size: int) -> XLMRobertaConfig:
    return XLMRobertaConfig(
        vocab_size=vocab_size,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.hidden_width,
        # XLM-R counts positions from pad_token_id + 1.
        max_position_embeddings=config.max_tokens + 2,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        bos_token_id=0, pad_token_id=1, eos_token_id=2,
    )  # fmt: skip


def _save(model: XLMRobertaForMaskedLM, pieces: bytes, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the folder file by file, the weights last; they hold the language-model head, less what is tied."""
    text_vocab.save(pieces, tokenizer, out)
    config = copy.deepcopy(model.config)
    config.update({"architectures": [type(model).__name__], "dtype": torch.float16})
    config.save_pretrained(out)
    tied = "lm_head.decoder."
    half = {name: tensor.half() for name, tensor in model.state_dict().items() if not name.startswith(tied)}
    save_atomically(half, out / "model.safetensors", {"format": "pt"})


@dataclass(frozen=True)
class _Batch:
    """Padded token ids ``(B, L)`` and where they are real."""

    ids: Tensor
    mask: Tensor


class Learner:
    """The two stages' losses on token ids made once; every draw comes from the generator of the step."""

    def __init__(
        self, model: XLMRobertaForMaskedLM, tokenizer: PreTrainedTokenizerFast, corpus: Corpus, config: Config
    ) -> None:
        self.model, self.config = model, config
        self.vocab_size = len(tokenizer)
        self.pad, self.mask_id = int(tokenizer.pad_token_id), int(tokenizer.mask_token_id)
        self.special = len(tokenizer.all_special_ids) - 1  # all but <mask>, which comes last
        self.lines: list[list[Ids]] = [_encode(tokenizer, list(line.values())) for line in corpus.train]
        self.lengths = np.array([max(map(len, line)) for line in self.lines])
        self.paired = np.flatnonzero([len(line) > 1 for line in self.lines])

    def stages(self) -> list[Stage]:
        """Give masked modelling, and translation ranking where there are translations."""
        config = self.config
        mlm = Stage("masked language modelling", config.mlm_steps, self.mlm_loss, config.mlm_lr)
        ranking = Stage("translation ranking", config.ranking_steps, self.ranking_loss, config.ranking_lr)
        return [mlm, ranking] if len(self.paired) else [mlm]

    def mlm_loss(self, rng: np.random.Generator) -> Tensor:
        """Cross-entropy at the masked places of single sentences, or of two translations side by side."""
        return self._mlm_loss(self.config.batch_size, rng)

    def _mlm_loss(self, size: int, rng: np.random.Generator) -> Tensor:
        if len(self.paired) and rng.random() < 0.5:
            pairs = [self._two(line, rng) for line in self._draw(self.paired, max(1, size // 2), rng)]
            rows = [[*one, one[-1], *two[1:]][: self.config.max_tokens] for one, two in pairs]
        else:
            drawn = self._draw(np.arange(len(self.lines)), size, rng)
            rows = [self.lines[line][rng.integers(len(self.lines[line]))] for line in drawn]
        batch = self._pad(rows)
        chosen = torch.from_numpy(rng.random(batch.ids.shape) < self.config.mask_share)
        chosen &= batch.mask & (batch.ids >= self.special)
        hidden = self._hidden(_Batch(self._corrupt(batch.ids, chosen, rng), batch.mask))
        scores = self.model.lm_head(hidden[chosen])
        return F.cross_entropy(scores, batch.ids[chosen], reduction="sum") / max(1, int(chosen.sum()))

    def ranking_loss(self, rng: np.random.Generator) -> Tensor:
        """InfoNCE between the two sides of translation pairs, plus masked modelling on other lines."""
        drawn = self._draw(self.paired, self.config.batch_size, rng)
        pairs = [self._two(line, rng) for line in drawn]
        batch = self._pad([one for one, _ in pairs] + [two for _, two in pairs])
        one, two = F.normalize(masked_pool(self._hidden(batch), batch.mask, "mean"), dim=-1).chunk(2)
        scale = torch.tensor(1 / self.config.temperature)
        return info_nce(one, two, scale, torch.from_numpy(drawn)) + self._mlm_loss(
            # A quarter of the batch is enough to keep what stage one taught.
            max(2, self.config.batch_size // 4),
            rng,
        )

    def _draw(self, among: npt.NDArray[np.int64], count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Draw lines of like length, so that little of a batch is padding: a slice of a sorted larger draw."""
        count = min(count, len(among))
        pool = rng.choice(among, min(8 * count, len(among)), replace=False)
        pool = pool[np.argsort(self.lengths[pool], kind="stable")]
        start = int(rng.integers(len(pool) - count + 1))
        return cast(npt.NDArray[np.int64], pool[start : start + count])

    def _two(self, line: int, rng: np.random.Generator) -> tuple[Ids, Ids]:
        first, second = rng.choice(len(self.lines[line]), 2, replace=False)
        return self.lines[line][first], self.lines[line][second]

    def _pad(self, rows: Sequence[Ids]) -> _Batch:
        ids = torch.full((len(rows), max(map(len, rows))), self.pad)
        for row, sequence in enumerate(rows):
            ids[row, : len(sequence)] = torch.tensor(sequence)
        return _Batch(ids, ids != self.pad)

    def _corrupt(self, ids: Tensor, chosen: Tensor, rng: np.random.Generator) -> Tensor:
        """Of the chosen tokens hide 80 %, swap 10 % for any piece, keep 10 % (Devlin et al. 2019)."""
        how = torch.from_numpy(rng.random(ids.shape))
        swapped = torch.from_numpy(rng.integers(self.special, self.vocab_size - 1, ids.shape))
        ids = torch.where(chosen & (how < 0.8), self.mask_id, ids)
        return torch.where(chosen & (how >= 0.8) & (how < 0.9), swapped, ids)

    def _hidden(self, batch: _Batch) -> Tensor:
        return cast(Tensor, self.model.roberta(batch.ids, attention_mask=batch.mask.long()).last_hidden_state)


def _encode(tokenizer: PreTrainedTokenizerFast, sentences: list[str]) -> list[Ids]:
    encoded = tokenizer(sentences, truncation=True, max_length=tokenizer.model_max_length)
    return cast(list[Ids], encoded["input_ids"])
