"""Masked language modelling: encoders with their head, masking of batches, and low-rank updates."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraModel
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForMaskedLM, DataCollatorForLanguageModeling, PreTrainedModel

from polyalign.config.tower import TextSpec
from polyalign.models.towers.text_loading import load_tokenizer
from polyalign.utils.errors import UserError, first_line


def load(spec: TextSpec, *, new_head: bool, seed: int) -> tuple[PreTrainedModel, Any]:
    """Load an encoder with its masked-language-model head, and its tokenizer.

    ``new_head`` accepts an encoder without the head, which gets a random one.

    Raises:
        UserError: they cannot be loaded, or weights are missing, which transformers would initialise at random.
    """
    tokenizer = load_tokenizer(spec)
    how: dict[str, Any] = {"use_safetensors": True, "output_loading_info": True}
    torch.manual_seed(seed)  # for a new head
    try:
        model, info = AutoModelForMaskedLM.from_pretrained(
            tokenizer.name_or_path, revision=spec.revision, dtype=torch.float32, trust_remote_code=False, **how
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise UserError(f"cannot load {spec.model} as a masked language model: {first_line(error)}") from error
    if tokenizer.mask_token is None:
        raise UserError(f"{spec.model} has no mask token: it is not a masked language model")
    missing = sorted(info["missing_keys"])
    inside = [key for key in missing if key.startswith(f"{model.base_model_prefix}.")]
    if inside:
        raise UserError(f"{spec.model} lacks {len(inside)} of the encoder's weights, for example {inside[0]}")
    if missing and not new_head:
        raise UserError(
            f"{spec.model} has no masked-language-model head in its weights ({missing[0]} is missing): "
            "to train a new head from random weights, add --set new_head=true"
        )
    return model, tokenizer


def insert_low_rank(model: PreTrainedModel, rank: int) -> LoraModel:
    """Put a low-rank update on each linear map of the encoder; only these train, and a head outside the encoder."""
    inside = f"{model.base_model_prefix}."
    maps = [name for name, part in model.named_modules() if isinstance(part, nn.Linear) and name.startswith(inside)]
    low_rank = LoraModel(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=maps), "default")
    encoder = set(model.base_model.parameters())  # with embeddings that the head may share
    for parameter in set(model.parameters()) - encoder:
        parameter.requires_grad_(True)
    return low_rank


class Masking(DataCollatorForLanguageModeling):
    """Tokenises a batch of sentences and masks it: 80 % masked, 10 % replaced, 10 % kept (Devlin et al. 2019).

    The mask depends only on the sentences and the seed, so that held-out sentences have the same mask before and after
    training, and a resumed run sees the same batches as an uninterrupted one.
    """

    def __init__(self, tokenizer: Any, probability: float, max_tokens: int, seed: int) -> None:
        """Mask each token with ``probability``, in sentences truncated to ``max_tokens``."""
        super().__init__(tokenizer, mlm_probability=probability)
        self._max_tokens, self._base_seed = max_tokens, seed

    def torch_call(self, examples: list[Any]) -> dict[str, torch.Tensor]:
        """Return ``input_ids``, ``attention_mask`` and ``labels``, each ``(B, L)``; at least one token is masked."""
        how = {"truncation": True, "max_length": self._max_tokens, "padding": True, "return_special_tokens_mask": True}
        batch = self.tokenizer(examples, **how, return_tensors="pt")
        special = batch["special_tokens_mask"].bool()
        self.generator = torch.Generator().manual_seed(zlib.crc32("\n".join(examples).encode(), self._base_seed))
        ids, labels = self.torch_mask_tokens(batch["input_ids"], special)
        if bool((labels == -100).all()):  # without a masked token the loss is NaN
            place = special.flatten().long().argmin()
            labels.view(-1)[place] = ids.view(-1)[place]
            ids.view(-1)[place] = self.tokenizer.mask_token_id
        return {"input_ids": ids, "attention_mask": batch["attention_mask"], "labels": labels}
