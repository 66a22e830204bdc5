"""transformers: a model with code of its own, which holds adapters.

transformers' ``VisionTextDualEncoder`` cannot hold these models exactly: it takes BERT's pooler and has no bias.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import transformers
from safetensors.torch import save_file
from torch import nn
from transformers import AutoTokenizer

from polyalign.data.pairs import ImageRef
from polyalign.evaluation.encoders import Encoder, Vectors, in_batches
from polyalign.models.aligner import Aligner
from polyalign.models.heads import Corrected
from polyalign.models.strategies.lilt import Adapted, Adapter
from polyalign.models.towers.saving import plain_tensors, timm_config
from polyalign.models.towers.staging import is_inside
from polyalign.models.towers.text_loading import quiet
from polyalign.serving.export import plain
from polyalign.serving.export.modeling_polyalign import PolyalignModel
from polyalign.utils import storage
from polyalign.utils.text import clean

if TYPE_CHECKING:
    from polyalign.serving.export.run import Source

LIBRARIES: dict[str, str] = {}
EXTRA = ""
OPTIONS: tuple[str, ...] = ()
TOLERANCE = 1e-4

_CODE = Path(__file__).with_name("modeling_polyalign.py")
_PLACES = {"vision.model.": "vision.timm_model.", "text.model.": "text.", "text.head.": "text_head."}
_SIDES = ("vision_projection", "text_projection")


def problem(aligner: Aligner) -> str | None:
    """Return what of the model the code cannot hold, or None."""
    _, unknown = _inserted(aligner)
    if unknown is not None:
        return f"training inserted {clean(unknown, 80)}"
    if aligner.text.lower_case:
        return "its text tower lowers the case of sentences"
    name = type(aligner.text.model).__name__
    return plain.of_towers(aligner) or (None if hasattr(transformers, name) else f"transformers has no {name} by name")


def _inserted(aligner: Aligner) -> tuple[list[dict[str, Any]], str | None]:
    """Return the adapters and blocks that training inserted, and the path of what is neither, if anything is."""
    found: list[dict[str, Any]] = []
    seen: list[str] = []
    for path in aligner.changed_modules():
        if any(is_inside(path, outer) for outer in seen):
            continue
        seen.append(path)
        module = aligner.get_submodule(path)
        above, _, index = path.rpartition(".")
        if isinstance(module, nn.Sequential) and isinstance(module[0], Adapter):
            found.append({"kind": "before", "path": _place(path), "sizes": _sizes(module[0].down)})
        elif isinstance(module, Adapted):
            found.append({"kind": "after", "path": _place(path), "sizes": _sizes(module.adapter.down)})
        elif isinstance(aligner.get_submodule(above), nn.ModuleList | nn.Sequential) and index.isdecimal():
            if path.startswith("vision."):  # the configuration of the text tower states its number of blocks
                found.append({"kind": "block", "path": _place(above), "sizes": []})
        elif path not in _SIDES or _hidden(module) is None:
            return found, path
    return found, None


def _sizes(linear: nn.Linear) -> list[int]:
    return [linear.in_features, linear.out_features]


def _hidden(projection: nn.Module) -> int | None:
    """Return the width of the two layers beside a projection; None if there are others, or none."""
    layers = projection.correction if isinstance(projection, Corrected) else None
    is_mlp = isinstance(layers, nn.Sequential) and [type(one) for one in layers] == [
        *(nn.LayerNorm, nn.Linear, nn.GELU, nn.Linear)
    ]
    return cast(nn.Linear, cast(nn.Sequential, layers)[1]).out_features if is_mlp else None


def _place(path: str) -> str:
    """Return the path in the written model of a path in the aligner."""
    before = next((start for start in _PLACES if path.startswith(start)), "")
    return _PLACES.get(before, "") + path.removeprefix(before)


def write(folder: Path, source: Source) -> None:
    """Write weights, configuration and code; ``AutoModel`` opens it with ``trust_remote_code=True``."""
    aligner, text = source.aligner, source.aligner.text
    tensors = {_place(name): one for name, one in plain_tensors(aligner).items()}
    tensors["logit_scale"] = aligner.scale.detach().log()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    plain.save_tokenizer(folder, text)
    sides = {side: getattr(aligner, side) for side in _SIDES}
    config = {
        "model_type": "polyalign",
        "architectures": ["PolyalignModel"],
        "auto_map": {"AutoConfig": f"{_CODE.stem}.PolyalignConfig", "AutoModel": f"{_CODE.stem}.PolyalignModel"},
        "dtype": "float32",
        "vision": timm_config(aligner.vision),
        "text": text.model.config.to_dict(),  # type: ignore[union-attr,operator]
        "text_class": type(text.model).__name__,
        "text_head": [_head(part) for part in text.head],
        "pooling": text.pooling,
        "prompt": text.prompt,
        "inserted": _inserted(aligner)[0],
        "has_logit_bias": aligner.logit_bias is not None,
        **{
            name: {"width": side.in_features, "out": side.out_features, "hidden": _hidden(side)}
            for name, side in sides.items()
        },
    }
    storage.write_text(folder / "config.json", json.dumps(config, indent=2, default=str) + "\n")
    storage.write_text(folder / _CODE.name, _CODE.read_text(encoding="utf-8"))


def _head(part: nn.Module) -> dict[str, Any]:
    if not isinstance(part, nn.Sequential):
        return {"kind": type(part).__name__, "sizes": []}
    linear, activation = cast(nn.Linear, part[0]), part[1]
    return {"kind": type(activation).__name__, "sizes": _sizes(linear), "bias": linear.bias is not None}


@dataclass(frozen=True)
class Reloaded:
    """A model of transformers as an encoder."""

    name: str
    model: Any
    tokenizer: Any

    def encode_image(self, images: Sequence[ImageRef]) -> Vectors:
        """Return unit vectors ``(N, D)``."""

        def encode(batch: Sequence[ImageRef]) -> torch.Tensor:
            pixels = self.model.preprocess([image.open() for image in batch])
            return cast(torch.Tensor, self.model.get_image_features(pixels))

        return in_batches(images, encode, "images in transformers")

    def encode_text(self, texts: Sequence[str], lang: str | None = None) -> Vectors:
        """Return unit vectors ``(N, D)``."""

        def encode(batch: Sequence[str]) -> torch.Tensor:
            said = [self.model.config.prompt + text for text in batch]
            tokens = self.tokenizer(said, padding=True, truncation=True, return_tensors="pt")
            return cast(torch.Tensor, self.model.get_text_features(**tokens))

        return in_batches(texts, encode, "sentences in transformers")


def reload(folder: Path) -> dict[str, Encoder]:
    """Open the folder with transformers, and with the code of this package, of which it has a copy."""
    with quiet():
        model = PolyalignModel.from_pretrained(folder, trust_remote_code=False, use_safetensors=True).eval()  # type: ignore[no-untyped-call]
        tokenizer = AutoTokenizer.from_pretrained(folder, config=model.config, trust_remote_code=False)
        return {"fp32": Reloaded(str(folder), model, tokenizer)}
