"""Make the starter text tower anew: ``python -m polyalign.data.starter.make_text_tower --out DIR``.

A SentencePiece vocabulary, then a small XLM-R on it: masked language modelling, half of it on pairs of translations
side by side (TLM, Conneau & Lample 2019), then translation ranking with the masked modelling kept up, so that the
language-model head stays of use. No picture is involved. The tower that ships was made with these objectives by an
earlier script: a new one is like it, not equal to the bit.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)

from polyalign.config.language import Lang, language_codes, load_language
from polyalign.data.starter._fit import fit, run_script, save_half
from polyalign.data.starter.grammar import choose, word
from polyalign.data.starter.scenes import sample_scene

SPM_FILE: Final = "sentencepiece.bpe.model"

Line = Mapping[str, str]
"""A scene said in several languages: sentence by language code."""

_SPECIAL: Final = ("<s>", "<pad>", "</s>", "<unk>")


@dataclass(frozen=True)
class Settings:
    """What decides the weights; the defaults are what the shipped tower was made with.

    A low-resource language says only ``low_resource_share`` of the scenes.
    """

    scenes: int = 60_000
    low_resource_share: float = 0.25
    test_scenes: int = 1000
    vocab_size: int = 2000
    width: int = 128
    layers: int = 3
    max_tokens: int = 128
    mlm_steps: int = 600
    ranking_steps: int = 2600
    batch_size: int = 64
    lr: float = 2e-3
    mask_share: float = 0.3
    temperature: float = 0.05
    seed: int = 0


def languages() -> list[Lang]:
    """List the languages that can say a scene."""
    return [lang for lang in map(load_language, language_codes()) if lang.starter]


def corpus(count: int, low_resource_share: float, rng: np.random.Generator) -> list[Line]:
    """Say ``count`` scenes, each in every language but those low-resource ones that are left out by chance."""
    known = languages()
    lines: list[Line] = []
    for _ in range(count):
        plan = choose(sample_scene(rng), rng)
        said = [lang for lang in known if not lang.low_resource or rng.random() < low_resource_share]
        lines.append({lang.code: word(plan, lang, rng) for lang in said})
    return lines


def train_vocabulary(sentences: Iterable[str], size: int) -> bytes:
    """Train a SentencePiece BPE model that covers every character; return the bytes of its file."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, model_type="bpe", vocab_size=size,
        character_coverage=1.0, normalization_rule_name="nfkc", bos_id=1, eos_id=2, unk_id=0, pad_id=-1,
        num_threads=1, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def build_tokenizer(vocabulary: bytes, max_tokens: int) -> PreTrainedTokenizerFast:
    """Build the Hugging Face tokenizer that splits text as SentencePiece does.

    The numbering is XLM-R's: ``<s> <pad> </s> <unk>``, the pieces, ``<mask>``; but transformers' XLM-R tokenizer reads
    unigram models only, and BPE gives shorter sentences here.
    """
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(vocabulary)
    pieces = [piece.piece for piece in proto.pieces[3:]]
    # SentencePiece lists a piece when it merges it: whichever pair it is merged from, it has the piece's rank.
    splits = ((piece[:i], piece[i:]) for piece in pieces for i in range(1, len(piece)))
    known = set(pieces)
    merges = [(left, right) for left, right in splits if left in known and right in known]
    ids = {piece: i for i, piece in enumerate([*_SPECIAL, *pieces, "<mask>"])}
    fast = Tokenizer(models.BPE(vocab=ids, merges=merges, unk_token="<unk>", fuse_unk=True))
    fast.normalizer = normalizers.Sequence(
        [normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap), normalizers.Replace(" {2,}", " ")]
    )
    fast.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    fast.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    fast.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        bos_token="<s>", cls_token="<s>", eos_token="</s>", sep_token="</s>", pad_token="<pad>", unk_token="<unk>",
        mask_token=AddedToken("<mask>", lstrip=True, special=True),
        model_max_length=max_tokens,
    )  # fmt: skip


def build_model(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> XLMRobertaForMaskedLM:
    """Build the small XLM-R with random weights; it counts positions from ``pad_token_id + 1``."""
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer), hidden_size=settings.width, num_hidden_layers=settings.layers, num_attention_heads=4,
        intermediate_size=4 * settings.width, max_position_embeddings=settings.max_tokens + 2, type_vocab_size=1,
        layer_norm_eps=1e-5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        bos_token_id=0, pad_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return XLMRobertaForMaskedLM(config)


class Learner(nn.Module):
    """The language model with the losses of both stages."""

    def __init__(self, model: XLMRobertaForMaskedLM, temperature: float) -> None:
        super().__init__()
        self.model, self.temperature = model, temperature

    def embed(self, tokens: Mapping[str, Tensor]) -> Tensor:
        """Average the hidden states over the real tokens: unit vectors ``(B, W)``."""
        hidden = self.model.roberta(**tokens).last_hidden_state
        return F.normalize((hidden * tokens["attention_mask"].unsqueeze(-1)).sum(1), dim=-1)

    def forward(
        self, masked: Mapping[str, Tensor], one: Mapping[str, Tensor] | None = None, two: Any = None
    ) -> dict[str, Tensor]:
        """Cross-entropy at masked tokens; with translations ``one`` and ``two``, InfoNCE between them besides."""
        loss: Tensor = self.model(**masked).loss
        if one is not None:
            scores = self.embed(one) @ self.embed(two).T / self.temperature
            truth = torch.arange(len(scores), device=scores.device)
            loss = loss + (F.cross_entropy(scores, truth) + F.cross_entropy(scores.T, truth)) / 2
        return {"loss": loss}


class Batches:
    """Makes a batch from lines: masked sentences or pairs of translations, and in the second stage pairs to rank."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, settings: Settings, *, ranking: bool) -> None:
        self.tokenizer, self.ranking = tokenizer, ranking
        self.rng = np.random.default_rng((settings.seed, int(ranking)))
        self.masking = DataCollatorForLanguageModeling(tokenizer, mlm_probability=settings.mask_share)

    def __call__(self, lines: list[Line]) -> dict[str, Any]:
        """Return what ``Learner`` takes."""
        if not self.ranking:
            return {"masked": self.masked(lines)}
        one, two = self._pairs(lines)
        # A quarter of the batch is enough to keep what the first stage taught.
        return {
            "masked": self.masked(lines[: max(1, len(lines) // 4)]),
            "one": self.tokens(one),
            "two": self.tokens(two),
        }

    def masked(self, lines: list[Line]) -> dict[str, Tensor]:
        """Mask one sentence of each line, or, one batch in two, two translations of every second line."""
        if self.rng.random() < 0.5:
            return self.mask(*self._pairs(lines[::2]))
        return self.mask([line[str(self.rng.choice(list(line)))] for line in lines])

    def mask(self, *sides: list[str]) -> dict[str, Tensor]:
        """Mask sentences, or pairs of them side by side."""
        tokens = self.tokens(*sides)
        ids, labels = self.masking.torch_mask_tokens(tokens["input_ids"])
        return {**tokens, "input_ids": ids, "labels": labels}

    def tokens(self, *sides: list[str]) -> dict[str, Tensor]:
        """Turn sentences, or pairs of them, into padded token ids."""
        found = self.tokenizer(*sides, padding=True, truncation=True, return_tensors="pt")
        return {key: found[key] for key in ("input_ids", "attention_mask")}

    def _pairs(self, lines: list[Line]) -> tuple[list[str], list[str]]:
        codes = [self.rng.choice(list(line), 2, replace=False) for line in lines]
        pairs = [(line[a], line[b]) for line, (a, b) in zip(lines, codes, strict=True)]
        return [one for one, _ in pairs], [two for _, two in pairs]


@torch.no_grad()
def measure(learner: Learner, batches: Batches, lines: list[Line]) -> dict[str, tuple[float, float, float]]:
    """Return for each language R@1 to and from English, and the perplexity at masked tokens, on these lines."""
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
    """Train the tower and write it to ``out`` as a Hugging Face folder with a card of measured figures."""
    lines = corpus(settings.scenes, settings.low_resource_share, np.random.default_rng((settings.seed, 2)))
    vocabulary = train_vocabulary((sentence for line in lines for sentence in line.values()), settings.vocab_size)
    tokenizer = build_tokenizer(vocabulary, settings.max_tokens)
    torch.manual_seed(settings.seed)
    learner = Learner(build_model(settings, tokenizer), settings.temperature)
    how: dict[str, Any] = {"batch_size": settings.batch_size, "lr": settings.lr, "seed": settings.seed}
    alone = Batches(tokenizer, settings, ranking=False)
    fit(learner, lines, alone, out, steps=settings.mlm_steps, **how)
    fit(learner, lines, Batches(tokenizer, settings, ranking=True), out, steps=settings.ranking_steps, **how)
    test = corpus(settings.test_scenes, 1.0, np.random.default_rng((settings.seed, 3)))
    model = learner.model
    model.config.update({"architectures": [type(model).__name__], "dtype": torch.float16})
    model.config.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / SPM_FILE).write_bytes(vocabulary)
    tied = "lm_head.decoder."
    save_half({k: v for k, v in model.state_dict().items() if not k.startswith(tied)}, out / "model.safetensors")
    (out / "README.md").write_text(_card(settings, measure(learner, alone, test)), encoding="utf-8")


def _card(settings: Settings, measured: Mapping[str, Sequence[float]]) -> str:
    rows = "\n".join(
        f"| {load_language(code).english_name} | {there:.1%} | {back:.1%} | {perplexity:.2f} |"
        for code, (there, back, perplexity) in measured.items()
    )
    used = "\n".join(f"| `{name}` | {value} |" for name, value in asdict(settings).items())
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: fill-mask
---

# A small XLM-R learned from text alone

Made by `python -m polyalign.data.starter.make_text_tower` from the starter world's grammar: masked language modelling
on single sentences and on translations side by side, then translation ranking (mean pooling, cosine). It knows nothing
else: use it to try things out, not to understand language.

On {settings.test_scenes:,} new scenes: how often a sentence's nearest is its translation, and the perplexity at masked
tokens.

| language | to English | from English | perplexity |
|---|---|---|---|
{rows}

| setting | value |
|---|---|
{used}
"""


if __name__ == "__main__":
    run_script(make, Settings, __doc__)
