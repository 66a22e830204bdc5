"""What a pretrained text tower can do, measured on held-out lines, and the model card that says so."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
import transformers
from transformers import PreTrainedTokenizerFast, XLMRobertaForMaskedLM

from polyalign.config import language as langs
from polyalign.evaluation.metrics import both_directions
from polyalign.models.towers.common import masked_pool
from polyalign.pretrain.text_corpus import Corpus
from polyalign.utils.progress import Progress

Floats = npt.NDArray[np.float32]

_PERPLEXITY_SENTENCES = 100


class Reader:
    """A pretrained folder, loaded in single precision to be measured."""

    def __init__(self, folder: Path) -> None:
        """Load the model with its language-model head, and the tokenizer."""
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        self.model = XLMRobertaForMaskedLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()

    def tokens(self, sentence: str) -> int:
        """Count a sentence's pieces, special tokens not among them."""
        return len(self.tokenizer.tokenize(sentence))

    @torch.inference_mode()
    def embed(self, sentences: Sequence[str], batch_size: int = 256) -> Floats:
        """Give mean-pooled unit vectors ``(N, W)``."""
        rows = []
        for start in range(0, len(sentences), batch_size):
            some = list(sentences[start : start + batch_size])
            batch = self.tokenizer(some, padding=True, truncation=True, return_tensors="pt")
            mask = batch["attention_mask"]
            hidden = self.model.roberta(batch["input_ids"], attention_mask=mask).last_hidden_state
            rows.append(F.normalize(masked_pool(hidden, mask.bool(), "mean"), dim=-1))
        return torch.cat(rows).numpy()

    @torch.inference_mode()
    def pseudo_perplexity(self, sentences: Sequence[str]) -> float:
        """Hide each token in turn and give exp of its mean negative log-likelihood (Salazar et al. 2020)."""
        total, count = 0.0, 0
        for sentence in sentences:
            ids = torch.tensor(self.tokenizer(sentence, truncation=True)["input_ids"])
            places = torch.arange(1, len(ids) - 1)
            rows = torch.arange(len(places))
            hidden = ids.repeat(len(places), 1)
            hidden[rows, places] = self.tokenizer.mask_token_id
            scores = self.model(hidden).logits[rows, places].log_softmax(-1)
            total -= scores[rows, ids[places]].sum().item()
            count += len(places)
        return math.exp(total / max(1, count))


def recall_at_1(queries: Floats, keys: Floats) -> tuple[float, float]:
    """Give R@1 of finding row i of the one (N, W) by row i of the other among all N: keys by queries, and back.

    Rows are unit vectors, compared by cosine; equal scores count against.
    """
    there, back = both_directions(keys, queries, np.arange(len(keys)))
    return float((there.rank == 1).mean()), float((back.rank == 1).mean())


@dataclass(frozen=True)
class Measured:
    """One language's numbers on the held-out lines; recalls are fractions, None where there is nothing to compare."""

    sentences: int
    tokens: float
    to_pivot: float | None
    from_pivot: float | None
    perplexity: float


def measure(folder: Path, corpus: Corpus, progress: Progress | None = None) -> tuple[str, dict[str, Measured]]:
    """Measure every language that is held out; gives the pivot (English, else the largest) and the numbers."""
    reader = Reader(folder)
    counts = corpus.sentences()
    held_out = {code: {i: line[code] for i, line in enumerate(corpus.held_out) if code in line} for code in counts}
    codes = [code for code in corpus.languages() if held_out[code]]
    pivot = "en" if "en" in codes else next(iter(codes), "")
    embedded = {
        code: dict(zip(held_out[code], reader.embed(list(held_out[code].values())), strict=True)) for code in codes
    }
    found = {}
    for number, code in enumerate(codes, 1):
        sentences = list(held_out[code].values())
        both = [i for i in held_out[code] if i in held_out[pivot]]
        to_pivot, from_pivot = None, None
        if code != pivot and both:
            queries, keys = (np.stack([embedded[side][i] for i in both]) for side in (code, pivot))
            to_pivot, from_pivot = recall_at_1(queries, keys)
        tokens = float(np.mean([reader.tokens(sentence) for sentence in sentences]))
        perplexity = reader.pseudo_perplexity(sentences[:_PERPLEXITY_SENTENCES])
        found[code] = Measured(counts[code], tokens, to_pivot, from_pivot, perplexity)
        if progress:
            progress("measuring languages", number, len(codes))
    return pivot, found


def write_card(folder: Path, corpus: Corpus, settings: Mapping[str, Any], progress: Progress | None = None) -> None:
    """Write ``README.md``: what the tower is, how it was made, and what was measured."""
    pivot, measured = measure(folder, corpus, progress)
    text = _CARD.format(
        languages="\n".join(f"- {code}" for code in measured) or "- und",
        origin=corpus.origin,
        sentences=f"{sum(corpus.sentences().values()):,}",
        held_out=f"{len(corpus.held_out):,}",
        pivot=_name(pivot) if pivot else "no language",
        rows="\n".join(_row(code, numbers) for code, numbers in measured.items()),
        settings="\n".join(f"| `{key}` | {value} |" for key, value in settings.items()),
        versions=f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}",
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _row(code: str, numbers: Measured) -> str:
    recalls = ["–" if r is None else f"{100 * r:.1f}" for r in (numbers.to_pivot, numbers.from_pivot)]
    cells = (_name(code), f"{numbers.sentences:,}", f"{numbers.tokens:.1f}", *recalls, f"{numbers.perplexity:.2f}")
    return f"| {' | '.join(cells)} |"


def _name(code: str) -> str:
    return langs.load(code).english_name if code in langs.names() else code


_CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: fill-mask
language:
{languages}
---

# A small XLM-R learned from text alone

Made by `polyalign pretrain text`: masked language modelling on single sentences and on translations side by side, then
translation ranking (mean pooling, cosine) with the masked modelling kept up, so that the language-model head, which
is in the file, still gives pseudo-perplexities. No image was ever involved.

Text: {origin}; {sentences} sentences. It knows nothing else: use it to try things out, not to understand language.

`AutoModel`, `AutoModelForMaskedLM` and `AutoTokenizer` load this folder; pool by the mean over all tokens. The
tokenizer is SentencePiece BPE (`sentencepiece.bpe.model`; `tokenizer.json` is the same for Hugging Face).

## Measured

On {held_out} held-out lines. To and from {pivot}: the share, in percent, of sentences whose translation is the
nearest of all (recall@1; equal scores count against). Pseudo-perplexity: hiding one token at a time, the first 100.

| language | sentences learned from | tokens a sentence | to {pivot} | from {pivot} | pseudo-perplexity |
|---|---|---|---|---|---|
{rows}

## Settings

| setting | value |
|---|---|
{settings}

{versions}; half-precision weights.
"""
