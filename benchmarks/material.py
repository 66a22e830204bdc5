"""The two towers and the pairs that every training step is measured on: sizes are real, weights and pairs random."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import tomli_w
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import BertConfig, BertModel, BertTokenizer
from transformers.utils import logging

from polyalign.data.pairs import PairTable


@dataclass(frozen=True)
class Size:
    """A timm vision transformer, and the sizes of a BERT."""

    vision: str
    px: int
    vocab: int
    layers: int
    width: int

    def describe(self) -> str:
        """Say it in a line."""
        return f"{self.vision} at {self.px} px, BERT of {self.layers} layers {self.width} wide"


SIZES = {
    "test": Size("test_vit", 160, 50, 2, 64),
    "tiny": Size("deit_tiny_patch16_224", 224, 30_522, 4, 256),
    "small": Size("deit_small_patch16_224", 224, 30_522, 4, 256),
    "base": Size("deit_base_patch16_224", 224, 30_522, 12, 768),
}

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# Token counts of Flickr8k's English captions under XLM-R, special tokens counted: 14 on average.
_MEAN_TOKENS, _SD_TOKENS, _FEWEST, LONGEST = 14, 4, 6, 32


def write_towers(folder: Path, size: Size) -> None:
    """Write both towers with random weights: a folder as polyalign takes it, and one as transformers does."""
    torch.manual_seed(0)
    vision = folder / "vision"
    vision.mkdir(parents=True)
    network = timm.create_model(size.vision, pretrained=False, num_classes=0)
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, vision / "model.safetensors")
    facts = {"model": size.vision, "image_px": size.px, "mean": [0.5] * 3, "std": [0.5] * 3}
    (vision / "tower.toml").write_text(tomli_w.dumps({**facts, "crop_pct": 1.0}), encoding="utf-8")
    words = [*_SPECIAL, *(f"w{number}" for number in range(size.vocab - len(_SPECIAL)))]
    BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(folder / "text")
    config = BertConfig(
        vocab_size=size.vocab,
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=max(1, size.width // 64),
        intermediate_size=4 * size.width,
    )
    logging.disable_progress_bar()
    BertModel(config, add_pooling_layer=False).save_pretrained(folder / "text")


@dataclass(frozen=True)
class Noise:
    """A picture of noise."""

    seed: int
    px: int

    def open(self) -> Image.Image:
        """Draw it."""
        pixels = np.random.default_rng(self.seed).integers(0, 256, (self.px, self.px, 3), np.uint8)
        return Image.fromarray(pixels)

    def key(self) -> str:
        """Name it."""
        return f"noise {self.seed} {self.px}"


def pairs(size: Size, count: int) -> PairTable:
    """Make so many pairs of a picture and a caption; the first caption is the longest."""
    rng = np.random.default_rng(1)
    tokens = rng.normal(_MEAN_TOKENS, _SD_TOKENS, count).round().clip(_FEWEST, LONGEST).astype(int)
    tokens[0] = LONGEST
    words = [rng.integers(0, size.vocab - len(_SPECIAL), length - 2) for length in tokens]
    return PairTable(
        name="noise",
        lang="en",
        origin="generated",
        image_ids=tuple(str(number) for number in range(count)),
        images=tuple(Noise(number, size.px) for number in range(count)),
        captions=tuple(" ".join(f"w{word}" for word in caption) for caption in words),
        image_of=np.arange(count),
    )
