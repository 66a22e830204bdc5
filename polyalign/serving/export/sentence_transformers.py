"""sentence-transformers: a router to a text and an image tower, each with a dense layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from polyalign.data.pairs import ImageRef
from polyalign.evaluation.encoders import Encoder, Vectors, in_batches
from polyalign.models.towers.saving import POOLINGS, save_encoder, save_vision
from polyalign.models.towers.sentence_transformers import UnitLength
from polyalign.models.towers.text import TextTower
from polyalign.models.towers.text_loading import quiet
from polyalign.serving.export import plain
from polyalign.utils import storage

if TYPE_CHECKING:
    from polyalign.serving.export.run import Source

LIBRARIES = {"sentence-transformers": "sentence_transformers"}
EXTRA = "export"
OPTIONS: tuple[str, ...] = ()
TOLERANCE = 1e-4

problem = plain.problem

_POOLED = {"method": "forward", "method_output_name": "pooler_output"}


def write(folder: Path, source: Source) -> None:
    """Write a ``SentenceTransformer``: ``model.encode`` takes sentences and PIL images."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Router, Transformer
    from sentence_transformers.sentence_transformer.modules import Normalize

    aligner, text = source.aligner, source.aligner.text
    with storage.temporary_folder(folder / "towers") as towers, quiet():
        save_encoder(towers / "text", cast(PreTrainedModel, text.model))
        plain.save_tokenizer(towers / "text", text)
        save_vision(towers / "vision", aligner.vision)
        image = Transformer(
            str(towers / "vision"), modality_config={"image": _POOLED}, module_output_name="sentence_embedding"
        )
        routes = {
            "text": [*_text(towers / "text", text), _dense(aligner.text_projection)],
            "image": [image, _dense(aligner.vision_projection)],
        }
        prompts = {"text": text.prompt} if text.prompt else None
        default = "text" if text.prompt else None
        modules: list[nn.Module] = [Router(routes), Normalize()]
        model = SentenceTransformer(modules=modules, device="cpu", prompts=prompts, default_prompt_name=default)
        model.save(str(folder), create_model_card=False)


def _text(folder: Path, text: TextTower) -> list[Any]:
    """Return the modules of the text tower: the encoder, its pooling, and what a sentence encoder has on top."""
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    how: dict[str, Any] = {"max_seq_length": text.max_tokens, "do_lower_case": text.lower_case}
    if text.pooling == "pooler":
        pooled = {"modality_config": {"text": _POOLED}, "module_output_name": "sentence_embedding"}
        parts = [Transformer(str(folder), **pooled, **how)]
    else:
        encoder = Transformer(str(folder), **how)
        parts = [encoder, Pooling(encoder.get_embedding_dimension(), POOLINGS[text.pooling])]
    for part in text.head:
        parts.append(Normalize() if isinstance(part, UnitLength) else _dense(*cast(nn.Sequential, part)))
    return parts


def _dense(linear: nn.Module, activation: nn.Module | None = None) -> Any:
    from sentence_transformers.base.modules import Dense

    assert isinstance(linear, nn.Linear)
    return Dense(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        activation_function=activation or nn.Identity(),
        init_weight=linear.weight.detach(),
        init_bias=linear.bias,
    )


@dataclass(frozen=True)
class Reloaded:
    """A ``SentenceTransformer`` as an encoder."""

    name: str
    model: Any

    def encode_image(self, images: Sequence[ImageRef]) -> Vectors:
        """Return unit vectors ``(N, D)``."""
        return in_batches(images, lambda batch: self._encode([image.open() for image in batch]), "images")

    def encode_text(self, texts: Sequence[str], lang: str | None = None) -> Vectors:
        """Return unit vectors ``(N, D)``."""
        return in_batches(texts, lambda batch: self._encode(list(batch)), "sentences")

    def _encode(self, inputs: list[Any]) -> torch.Tensor:
        return cast(torch.Tensor, self.model.encode(inputs, convert_to_tensor=True, show_progress_bar=False))


def reload(folder: Path) -> dict[str, Encoder]:
    """Open the folder with sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    with quiet():
        return {"fp32": Reloaded(str(folder), SentenceTransformer(str(folder), device="cpu"))}
