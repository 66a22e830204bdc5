"""The text tower: any Hugging Face encoder, cut into stages so that a frozen lower part can be computed once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import PretrainedConfig

from polyalign.config.tower import TextSpec
from polyalign.models.towers import staging
from polyalign.models.towers.base import Tower
from polyalign.models.towers.common import masked_pool
from polyalign.models.towers.languages import language_token
from polyalign.utils.errors import UserError


@dataclass(frozen=True)
class Tokens:
    """A padded batch part-way through the text tower.

    ``ids`` ``(B, L)`` are token ids and ``mask`` ``(B, L)`` is true at real tokens; ``hidden`` ``(B, L, W)`` are the
    hidden states above stage 0.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    hidden: torch.Tensor | None = None

    def to(self, device: torch.device | str) -> Tokens:
        """Move all tensors."""
        return Tokens(
            self.ids.to(device), self.mask.to(device), None if self.hidden is None else self.hidden.to(device)
        )


class TextTower(Tower):
    """A Hugging Face encoder with masked pooling; its input are ``Tokens``.

    ``head`` is what a sentence-transformers folder puts on top: linear maps, and the scaling to unit length.
    """

    kind = "text"

    def __init__(
        self, model: nn.Module, tokenizer: Any, spec: TextSpec, fresh: Callable[[], nn.Module], head: nn.Sequential
    ) -> None:
        """Wrap ``model``; ``tokenizer`` is None where only parameters are counted.

        Raises:
            UserError: the model cannot read ``max_tokens`` token ids, or has no pad token.
        """
        assert spec.pooling is not None
        super().__init__(model, fresh, spec.pooling)
        config = getattr(model, "config", None)
        if not isinstance(config, PretrainedConfig) or not hasattr(config.get_text_config(), "vocab_size"):
            raise UserError(f"the {self.name} is not a text encoder that can be used: it states no vocabulary")
        if getattr(config, "use_cache", False):
            config.use_cache = False  # a decoder's keys are for generation
        self.head = head
        self.tokenizer = tokenizer
        self.revision, self.place = spec.revision, spec.model
        self.max_tokens = spec.max_tokens
        self.prompt = spec.prompt or ""
        self.lower_case = False
        self.lang: str | None = None
        self.variant = " ".join([spec.pooling, *([repr(head)] if len(head) else []), _facts(config)])
        self.vocabulary = int(config.get_text_config().vocab_size)
        pads = (getattr(tokenizer, "pad_token_id", None), getattr(config, "pad_token_id", None), 0)
        self.pad = int(next(pad for pad in pads if pad is not None))
        self._probe_tokens = spec.max_tokens
        self.look()
        self._check_padding()

    def look(self) -> None:
        """Run the tower once on ``max_tokens`` token ids.

        Raises:
            UserError: it cannot be run; the message gives the length that it takes, if any.
        """
        try:
            super().look()
        except UserError as error:
            fits = self._longest()
            if fits is None:
                raise
            raise UserError(
                f"the {self.name} cannot read text.max_tokens = {self.max_tokens} tokens: set it to {fits} or less"
            ) from error

    def _longest(self) -> int | None:
        """Return the largest number of tokens that the network reads, found by bisection; None if it reads none."""
        low, high = 0, self.max_tokens
        while high - low > 1:
            self._probe_tokens = (low + high) // 2
            try:
                super().look()
                low = self._probe_tokens
            except UserError:
                high = self._probe_tokens
        self._probe_tokens = self.max_tokens
        return low if low > 2 else None

    def _check_padding(self) -> None:
        """Check that features depend on all tokens of a caption, and not on padding.

        Raises:
            UserError: padding changes them, as in FNet, which does not use the mask; or they depend on the first token
                alone, as the class token of a decoder does.
        """
        x = self.probe()
        if x.ids.device.type == "meta":
            return
        length = int(x.mask[1].sum())
        other = (x.ids[1:, :length] + 1) % self.vocabulary
        other[:, 0] = x.ids[1, 0]
        with staging.evaluation_mode(self):
            alone = self(Tokens(x.ids[1:, :length], x.mask[1:, :length]))
            same_start = self(Tokens(other, x.mask[1:, :length]))
        scale = float(alone.abs().max())
        if not torch.allclose(self.trace.features[1:], alone, rtol=0, atol=1e-3 * scale):
            raise UserError(
                f"padding changes the features of the {self.name}, so those of a caption would depend on its batch: "
                "choose another encoder"
            )
        if self.pooling in ("cls", "pooler") and torch.allclose(same_start, alone, rtol=0, atol=1e-6 * scale):
            raise UserError(
                f"with text.pooling = {self.pooling} the features of the {self.name} depend on the first token alone: "
                "choose last or mean"
            )

    def tokenize(self, captions: list[str], lang: str | Sequence[str] | None = None) -> list[list[int]]:
        """Turn captions into token ids with the tower's prompt and special tokens, cut at ``max_tokens``.

        ``lang`` (default: the recipe's language), one for all captions or one for each, matters to a tower that is told
        the language by a token.

        Raises:
            UserError: such a tower does not know the language.
        """
        if not captions:
            return []
        if lang is not None and not isinstance(lang, str):
            return self._tokenize_each(captions, lang)
        if (token := language_token(self.tokenizer, lang or self.lang)) is not None:
            self.tokenizer.src_lang = token
        encoded = self.tokenizer(
            self._texts(captions),
            truncation=True,
            max_length=self.max_tokens,
            add_special_tokens=True,
            # A tower trained without a mask (SigLIP) attends to padding, up to a fixed length.
            padding=False if "attention_mask" in self.tokenizer.model_input_names else "max_length",
        )
        ids = cast(list[list[int]], encoded["input_ids"])
        if (largest := max(max(row, default=0) for row in ids)) >= self.vocabulary:
            raise UserError(
                f"the tokenizer does not belong to the {self.name}: it gives token {largest:,}, and the model has "
                f"{self.vocabulary:,}"
            )
        return ids

    def _tokenize_each(self, captions: list[str], langs: Sequence[str]) -> list[list[int]]:
        found: dict[int, list[int]] = {}
        for code in dict.fromkeys(langs):
            rows = [row for row, own in enumerate(langs) if own == code]
            found |= zip(rows, self.tokenize([captions[row] for row in rows], code), strict=True)
        return [found[row] for row in range(len(captions))]

    def _texts(self, captions: list[str]) -> list[str]:
        texts = [self.prompt + caption for caption in captions]
        return [text.lower() for text in texts] if self.lower_case else texts

    def count_cut(self, captions: list[str]) -> int:
        """Return the number of captions that have more than ``max_tokens`` tokens and are cut.

        Raises:
            UserError: the tokenizer knows hardly any of the words, or the prompt leaves no room for them.
        """
        whole = self.tokenizer(self._texts(captions), verbose=False)["input_ids"]
        unknown = self.tokenizer.unk_token_id
        if unknown is not None and sum(row.count(unknown) for row in whole) > sum(map(len, whole)) / 2:
            raise UserError(
                f"the tokenizer of the {self.name} knows hardly any word of the captions: most tokens are "
                f"{self.tokenizer.unk_token}; are its files in the tower's folder?"
            )
        if self.prompt and len(self.tokenizer([self.prompt])["input_ids"][0]) >= self.max_tokens:
            raise UserError(f'text.prompt "{self.prompt}" takes all of text.max_tokens = {self.max_tokens}')
        return sum(len(ids) > self.max_tokens for ids in whole)

    def collate(self, ids: list[list[int]]) -> Tokens:
        """Pad token ids to the longest of the batch."""
        length = max(map(len, ids))
        values = torch.full((len(ids), length), self.pad)
        mask = torch.zeros((len(ids), length), dtype=torch.bool)
        for row, sequence in enumerate(ids):
            values[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
            mask[row, : len(sequence)] = True
        return Tokens(values, mask)

    def features(self, model: nn.Module, x: Tokens) -> torch.Tensor:
        """Return pooled features ``(B, width)`` of ``model``, which is the tower's own or a cut twin of it.

        Raises:
            UserError: the model gives no hidden states of its last layer, or not what ``pooling`` takes.
        """
        mask = None if x.mask.device.type == "meta" else x.mask.long()
        output = model(input_ids=x.ids, attention_mask=mask)
        wanted = "pooler_output" if self.pooling == "pooler" else "last_hidden_state"
        found = getattr(output, wanted, None)
        if found is None:
            way_out = ": choose text.pooling mean, cls, max or last" if self.pooling == "pooler" else ""
            raise UserError(f"the {self.name} gives no {wanted}{way_out}")
        return cast(torch.Tensor, found) if self.pooling == "pooler" else masked_pool(found, x.mask, self.pooling)

    def mean_state(self, x: Tokens, hidden: torch.Tensor) -> torch.Tensor:
        """Return the mean ``(B, W)`` of hidden states ``(B, L, W)`` over the real tokens."""
        return masked_pool(hidden, x.mask, "mean")

    def probe(self) -> Tokens:
        """Return two rows of token ids: one of ``max_tokens``, and one of half as many with padding."""
        length, words = self._probe_tokens, self.vocabulary
        device = next(self.model.parameters()).device
        ids = torch.arange(2 * length, device=device).view(2, length) * 31 % words
        ids = torch.where(ids == self.pad, (self.pad + 1) % words, ids)
        mask = torch.ones_like(ids, dtype=torch.bool)
        if length > 2:
            mask[1, (length + 1) // 2 :] = False
        return Tokens(torch.where(mask, ids, self.pad), mask)

    def hidden(self, x: Tokens, values: torch.Tensor) -> Tokens:
        """Put hidden states ``(B, L, W)`` beside the token ids; those of padding are not kept."""
        return Tokens(x.ids, x.mask, values.masked_fill(~x.mask.unsqueeze(-1), 0))

    def values(self, x: Tokens) -> torch.Tensor:
        """Return the hidden states ``(B, L, W)``."""
        assert x.hidden is not None
        return x.hidden


def _facts(config: PretrainedConfig) -> str:
    """Return the configuration as JSON with sorted keys, without the model's path and the version that wrote it."""
    facts = config.to_dict()
    for key in ("_name_or_path", "transformers_version", "use_cache"):
        facts.pop(key, None)
    return json.dumps(facts, sort_keys=True, default=str)
