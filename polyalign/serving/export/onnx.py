"""ONNX: a graph for images and one for text, in the layout of CLIP on the hub, which transformers.js opens."""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers import AutoTokenizer

from polyalign.config.tower import Preprocessing
from polyalign.data.pairs import ImageRef
from polyalign.evaluation.encoders import Encoder, Vectors, in_batches
from polyalign.models.aligner import Aligner
from polyalign.models.towers.common import read_json
from polyalign.models.towers.text import Tokens
from polyalign.models.towers.vision import VisionTower, make_transform
from polyalign.serving.export.plain import is_masked, save_tokenizer
from polyalign.utils import storage

if TYPE_CHECKING:
    from polyalign.serving.export.run import Source

LIBRARIES = {"onnx": "onnx", "onnxscript": "onnxscript", "onnxruntime": "onnxruntime"}
EXTRA = "export"
OPTIONS = ("int8",)
TOLERANCE = 1e-4

OPSET = 18
GRAPHS = "onnx"
PRECISIONS = {"fp32": "", "int8": "_int8"}
"""Endings of the names of the graphs, as transformers.js expects them for its option ``dtype``."""

logger = logging.getLogger(__name__)

_RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


class ImageGraph(nn.Module):
    """Unit vectors ``image_embeds`` ``(B, D)`` of scaled pixels ``(B, C, H, W)``."""

    def __init__(self, aligner: Aligner) -> None:
        super().__init__()
        self.aligner = aligner

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Undo the scaling, which the tower does itself."""
        tower = self.aligner.vision
        return self.aligner.encode_image(pixel_values * tower.std + tower.mean)


class TextGraph(nn.Module):
    """Unit vectors ``text_embeds`` ``(B, D)`` of token ids and their mask ``(B, L)``."""

    def __init__(self, aligner: Aligner) -> None:
        super().__init__()
        self.aligner = aligner

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Encode tokens."""
        return self.aligner.encode_text(Tokens(input_ids, attention_mask.bool()))


def problem(aligner: Aligner) -> str | None:
    """Return None: a graph holds every strategy."""
    return None


def write(folder: Path, source: Source) -> None:
    """Write graphs, tokenizer, and the configuration files of a CLIP model."""
    aligner, text = source.aligner, source.aligner.text
    (folder / GRAPHS).mkdir()
    batch, length = torch.export.Dim("batch", min=1), torch.export.Dim("length", min=1, max=text.max_tokens)
    pixels = (aligner.vision.probe() - aligner.vision.mean) / aligner.vision.std
    tokens = text.probe()
    for kind, graph, inputs, shapes in (
        ("vision", ImageGraph(aligner), {"pixel_values": pixels}, {"pixel_values": {0: batch}}),
        (
            "text",
            TextGraph(aligner),
            {"input_ids": tokens.ids, "attention_mask": tokens.mask.long()},
            dict.fromkeys(("input_ids", "attention_mask"), {0: batch, 1: length} if is_masked(text) else {0: batch}),
        ),
    ):
        path = folder / GRAPHS / f"{kind}_model.onnx"
        _write_graph(path, graph.eval(), inputs, shapes, f"{'image' if kind == 'vision' else 'text'}_embeds")
        if source.int8:
            _quantize(path, path.with_stem(f"{path.stem}{PRECISIONS['int8']}"))
    save_tokenizer(folder, text)
    for name, facts in (("config.json", _config(source)), ("preprocessor_config.json", _preprocessor(aligner.vision))):
        storage.write_text(folder / name, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")


def _write_graph(
    path: Path, graph: nn.Module, inputs: dict[str, torch.Tensor], shapes: dict[str, Any], output: str
) -> None:
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            graph,
            kwargs=inputs,
            dynamo=True,
            dynamic_shapes=shapes,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=[output],
            verbose=False,
        )
    assert program is not None
    program.save(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter and the quantizer say about their own internals."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _quantize(path: Path, out: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(path, out, weight_type=QuantType.QInt8)


def _config(source: Source) -> dict[str, Any]:
    """Return the configuration of a CLIP model, and under ``polyalign`` what that does not state."""
    aligner, text = source.aligner, source.aligner.text
    return {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": aligner.text_projection.out_features,
        "logit_scale_init_value": math.log(aligner.scale.item()),
        "text_config": {"model_type": "clip_text_model", "max_position_embeddings": text.max_tokens},
        "vision_config": {"model_type": "clip_vision_model", "image_size": aligner.vision.preprocessing.size[0]},
        "transformers.js_config": {"dtype": "fp32"},
        "polyalign": {
            "lang": source.recipe.lang,
            "opset": OPSET,
            "embeds": "image_embeds and text_embeds have unit length: their dot product is the cosine similarity",
            "logit_bias": None if aligner.logit_bias is None else aligner.logit_bias.item(),
            "prompt": text.prompt,
            "lower_case": text.lower_case,
            "pad_token_id": text.pad,
            "padding": "longest" if is_masked(text) else "max_length",
            "max_tokens": text.max_tokens,
            "preprocessing": aligner.vision.preprocessing.model_dump(mode="json"),
        },
    }


def _preprocessor(tower: VisionTower) -> dict[str, Any]:
    """Return the preprocessing in the words of CLIP's, as far as it has them."""
    how = tower.preprocessing
    height, width = how.size
    sizes = [math.floor(one / how.crop_pct) for one in how.size]
    shortest = how.crop_mode == "center" and height == width
    if len(how.mean) == 1 or not (shortest or how.crop_mode == "squash"):
        logger.warning(
            "warning: preprocessor_config.json cannot describe grey images, the crop mode border, or images not "
            "square: prepare them as config.json says under polyalign.preprocessing"
        )
    return {
        "image_processor_type": "CLIPImageProcessor",
        "feature_extractor_type": "CLIPFeatureExtractor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": sizes[0]} if shortest else {"height": sizes[0], "width": sizes[1]},
        "resample": _RESAMPLE[how.interpolation],
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": how.mean,
        "image_std": how.std,
    }


class Graphs:
    """The graphs in a folder as an encoder, run by ONNX Runtime."""

    def __init__(self, folder: Path, precision: str) -> None:
        """Open the graphs of a precision, and the tokenizer."""
        import onnxruntime

        self.name = f"{folder} {precision}"
        self.facts: dict[str, Any] = read_json(folder / "config.json")["polyalign"]
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self.transform = make_transform(how := Preprocessing.model_validate(self.facts["preprocessing"]))
        self.mode = "RGB" if len(how.mean) == 3 else "L"
        self.mean, self.std = (np.array(one, np.float32).reshape(-1, 1, 1) * 255 for one in (how.mean, how.std))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        places = [folder / GRAPHS / f"{kind}_model{PRECISIONS[precision]}.onnx" for kind in ("vision", "text")]
        start, cpu = onnxruntime.InferenceSession, ["CPUExecutionProvider"]
        self.vision, self.text = (start(place, options, providers=cpu) for place in places)

    def encode_image(self, images: Sequence[ImageRef]) -> Vectors:
        """Return unit vectors ``(N, D)``."""

        def encode(batch: Sequence[ImageRef]) -> torch.Tensor:
            pixels = np.stack([self.transform(image.open().convert(self.mode)) for image in batch])
            scaled = ((pixels - self.mean) / self.std).astype(np.float32)
            return torch.from_numpy(self.vision.run(None, {"pixel_values": scaled})[0])

        return in_batches(images, encode, "images in ONNX Runtime")

    def encode_text(self, texts: Sequence[str], lang: str | None = None) -> Vectors:
        """Return unit vectors ``(N, D)``; the language is that of the run."""
        padding, most, prompt = (self.facts[key] for key in ("padding", "max_tokens", "prompt"))

        def encode(batch: Sequence[str]) -> torch.Tensor:
            said = [prompt + text for text in batch]
            said = [text.lower() for text in said] if self.facts["lower_case"] else said
            tokens = self.tokenizer(
                said, padding=padding, truncation=True, max_length=most, return_tensors="np", return_attention_mask=True
            )
            names = ("input_ids", "attention_mask")
            return torch.from_numpy(self.text.run(None, {name: tokens[name].astype(np.int64) for name in names})[0])

        return in_batches(texts, encode, "sentences in ONNX Runtime")


def reload(folder: Path) -> dict[str, Encoder]:
    """Open the graphs with ONNX Runtime: those in float32 and, where there are any, those with 8-bit weights."""
    there = [key for key, ending in PRECISIONS.items() if (folder / GRAPHS / f"text_model{ending}.onnx").is_file()]
    return {precision: Graphs(folder, precision) for precision in there}
