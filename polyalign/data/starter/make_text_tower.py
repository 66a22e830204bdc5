"""Train the starter text tower again: ``python -m polyalign.data.starter.make_text_tower --out DIR``.

A small XLM-R on a BPE vocabulary, trained on text only: masked language modelling, half of it on pairs of translations
side by side (TLM, Conneau & Lample 2019), then translation ranking together with masked modelling, so that the
language-model head stays useful. An earlier script made the tower in the package, with the same objectives: a new tower
is similar but not identical.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import AddedToken, SentencePieceBPETokenizer, processors
from torch import Tensor, nn
from transformers import (
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)

from polyalign.config.language import language_codes, load_language
from polyalign.data.starter._fit import Training, fit, run_script, write_card
from polyalign.data.starter.grammar import choose, word
from polyalign.data.starter.scenes import sample_scene

Line = Mapping[str, str]
"""Descriptions of one scene in several languages, by language code."""


@dataclass(frozen=True)
class Settings(Training):
    """The settings that determine the weights; the defaults are those of the tower in the package.

    A low-resource language describes only ``low_resource_share`` of the scenes.
    """

    batch_size: int = 64
    lr: float = 2e-3
    scenes: int = 60_000
    low_resource_share: float = 0.25
    test_scenes: int = 1000
    vocab_size: int = 2000
    width: int = 128
    layers: int = 3
    max_tokens: int = 128
    mlm_steps: int = 600
    ranking_steps: int = 2600
    mask_share: float = 0.3
    temperature: float = 0.05


def corpus(count: int, low_resource_share: float, rng: np.random.Generator) -> list[Line]:
    """Describe ``count`` scenes in every starter language, in a low-resource language only a random share of them."""
    known = [lang for lang in map(load_language, language_codes()) if lang.starter]
    lines: list[Line] = []
    for _ in range(count):
        plan = choose(sample_scene(rng), rng)
        said = [lang for lang in known if not lang.low_resource or rng.random() < low_resource_share]
        lines.append({lang.code: word(plan, lang, rng) for lang in said})
    return lines


def train_tokenizer(sentences: Iterable[str], settings: Settings) -> PreTrainedTokenizerFast:
    """Train a BPE tokenizer with the special tokens of XLM-R.

    XLM-R's own tokenizer is a unigram model; BPE gives shorter sentences here.
    """
    fast = SentencePieceBPETokenizer(fuse_unk=True)
    mask = AddedToken("<mask>", lstrip=True, special=True)
    special = ["<s>", "<pad>", "</s>", "<unk>", mask]
    fast.train_from_iterator(sentences, settings.vocab_size, special_tokens=special, show_progress=False)
    fast.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(
        tokenizer_object=fast._tokenizer, model_max_length=settings.max_tokens, mask_token=mask,
        bos_token="<s>", cls_token="<s>", eos_token="</s>", sep_token="</s>", pad_token="<pad>", unk_token="<unk>",
    )  # fmt: skip


class Learner(nn.Module):
    """The language model with the losses of both stages."""

    def __init__(self, model: XLMRobertaForMaskedLM, temperature: float) -> None:
        super().__init__()
        self.model, self.temperature = model, temperature

    def embed(self, tokens: Mapping[str, Tensor]) -> Tensor:
        """Return the mean hidden state over the real tokens: unit vectors ``(B, W)``."""
        hidden = self.model.roberta(**tokens).last_hidden_state
        return F.normalize((hidden * tokens["attention_mask"].unsqueeze(-1)).sum(1), dim=-1)

    def forward(
        self, masked: Mapping[str, Tensor], one: Mapping[str, Tensor] | None = None, two: Any = None
    ) -> dict[str, Tensor]:
        """Return the cross-entropy at masked tokens, plus InfoNCE between the translations ``one`` and ``two``."""
        loss: Tensor = self.model(**masked).loss
        if one is not None:
            scores = self.embed(one) @ self.embed(two).T / self.temperature
            truth = torch.arange(len(scores), device=scores.device)
            loss = loss + (F.cross_entropy(scores, truth) + F.cross_entropy(scores.T, truth)) / 2
        return {"loss": loss}


class Batches:
    """Makes batches from lines: masked sentences or pairs of translations; in the second stage also pairs to rank."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, settings: Settings, *, ranking: bool) -> None:
        self.tokenizer, self.ranking = tokenizer, ranking
        self.rng = np.random.default_rng((settings.seed, int(ranking)))
        self.masking = DataCollatorForLanguageModeling(tokenizer, mlm_probability=settings.mask_share)

    def __call__(self, lines: list[Line]) -> dict[str, Any]:
        """Return the arguments of ``Learner.forward``."""
        if not self.ranking:
            return {"masked": self._masked(lines)}
        one, two = self._said(lines, 2)
        # A quarter of the batch is enough to keep what the first stage taught.
        masked = self._masked(lines[: max(1, len(lines) // 4)])
        return {"masked": masked, "one": self.tokens(one), "two": self.tokens(two)}

    def _masked(self, lines: list[Line]) -> dict[str, Tensor]:
        """Mask one sentence of each line or, in half of the batches, two translations of every second line."""
        return self.mask(*(self._said(lines[::2], 2) if self.rng.random() < 0.5 else self._said(lines, 1)))

    def mask(self, *sides: list[str]) -> dict[str, Tensor]:
        """Mask sentences, or pairs of them side by side."""
        ids: Any = self.tokenizer(*sides, truncation=True)["input_ids"]
        return dict(self.masking([{"input_ids": one} for one in ids]))

    def tokens(self, sentences: list[str]) -> dict[str, Tensor]:
        """Turn sentences into padded token ids."""
        found = self.tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")
        return {key: found[key] for key in ("input_ids", "attention_mask")}

    def _said(self, lines: list[Line], count: int) -> list[list[str]]:
        """Draw ``count`` languages for each line; return what the lines say in the first, in the second, ..."""
        drawn = [self.rng.choice(list(line), count, replace=False) for line in lines]
        return [[line[codes[side]] for line, codes in zip(lines, drawn, strict=True)] for side in range(count)]


@torch.no_grad()
def measure(learner: Learner, batches: Batches, lines: list[Line]) -> dict[str, tuple[float, float, float]]:
    """Return R@1 to and from English and the perplexity at masked tokens on these lines, by language."""
    learner.eval().to("cpu")
    torch.manual_seed(0)
    english = learner.embed(batches.tokens([line["en"] for line in lines]))
    found = {}
    for code in lines[0]:
        sentences = [line[code] for line in lines]
        scores, truth = learner.embed(batches.tokens(sentences)) @ english.T, torch.arange(len(lines))
        there, back = ((side.argmax(1) == truth).float().mean().item() for side in (scores, scores.T))
        found[code] = (there, back, math.exp(learner(batches.mask(sentences))["loss"].item()))
    return found


def make(out: Path, settings: Settings) -> None:
    """Train the tower and write it to ``out`` as a Hugging Face folder, with a card of measured figures."""
    lines = corpus(settings.scenes, settings.low_resource_share, np.random.default_rng((settings.seed, 2)))
    tokenizer = train_tokenizer((sentence for line in lines for sentence in line.values()), settings)
    torch.manual_seed(settings.seed)
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer), hidden_size=settings.width, num_hidden_layers=settings.layers, num_attention_heads=4,
        intermediate_size=4 * settings.width, max_position_embeddings=settings.max_tokens + 2, type_vocab_size=1,
        layer_norm_eps=1e-5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        bos_token_id=0, pad_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = XLMRobertaForMaskedLM(config)
    learner = Learner(model, settings.temperature)
    alone, ranking = (Batches(tokenizer, settings, ranking=stage) for stage in (False, True))
    fit(learner, lines, alone, out, settings.mlm_steps, settings)
    fit(learner, lines, ranking, out, settings.ranking_steps, settings)
    measured = measure(learner, alone, corpus(settings.test_scenes, 1.0, np.random.default_rng((settings.seed, 3))))
    model.half().save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(out)
    rows = [
        (load_language(code).english_name, f"{there:.1%}", f"{back:.1%}", f"{perplexity:.2f}")
        for code, (there, back, perplexity) in measured.items()
    ]
    write_card(out, "text_card.md", settings, rows)


if __name__ == "__main__":
    run_script(make, Settings, __doc__)
