"""What the formats of other libraries hold: two networks as they are known there, a pooling, and a linear map each."""

from __future__ import annotations

from pathlib import Path

from polyalign.models.aligner import Aligner
from polyalign.models.towers.external import ExternalVision
from polyalign.models.towers.languages import language_token
from polyalign.models.towers.text import TextTower
from polyalign.utils.text import clean


def problem(aligner: Aligner) -> str | None:
    """Return what of the model is more than that, or None."""
    changed = aligner.changed_modules()
    return f"training inserted modules, such as {clean(changed[0], 80)}" if changed else of_towers(aligner)


def of_towers(aligner: Aligner) -> str | None:
    """Return what of the two towers other libraries do not know, or None."""
    if isinstance(aligner.vision, ExternalVision):
        return "its vision tower is the image side of a published model, not a network of timm"
    if aligner.vision.pooling != "tower":
        return f"its vision.pooling = {aligner.vision.pooling} is not the vision tower's own"
    if not is_masked(aligner.text):
        return "its text tower reads a fixed number of tokens, without a mask"
    return None


def is_masked(text: TextTower) -> bool:
    """Whether the tower masks padding; one trained without a mask reads a fixed number of tokens."""
    return "attention_mask" in text.tokenizer.model_input_names


def save_tokenizer(folder: Path, text: TextTower) -> None:
    """Write the tokenizer, which cuts sentences and states the language as the tower does."""
    tokenizer = text.tokenizer
    if (token := language_token(tokenizer, text.lang)) is not None:
        tokenizer.src_lang = token
    tokenizer.model_max_length = text.max_tokens
    tokenizer.save_pretrained(folder)
