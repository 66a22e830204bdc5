"""Tiny towers of many architectures with random weights, and the check of a strategy on one of them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torch
from transformers import AutoConfig
from transformers.utils import logging

from polyalign.config.plugins import load_plugin
from polyalign.config.tower import Preprocessing, TextSpec
from polyalign.models import checkpoint
from polyalign.models.aligner import Aligner
from polyalign.models.branches import branches
from polyalign.models.towers import text_loading
from polyalign.models.towers.base import Tower
from polyalign.models.towers.text import TextTower
from polyalign.models.towers.vision import VisionTower
from polyalign.training.guards import rehearse
from polyalign.utils.errors import UserError
from tests import tiny

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 120,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_SEQ = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_heads": 4}
_M2M = {"d_model": 32, "encoder_layers": 3, "decoder_layers": 1}
_HEADS = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}

TEXT: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 16},
    "bart": {**_M2M, **_HEADS},
    "bert": {},
    "camembert": {},
    "clip_text_model": {"projection_dim": 32},
    "deberta": {},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "distilbert": {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 64},
    "electra": {"embedding_size": 16},
    "ernie": {},
    "esm": {"mask_token_id": 3},
    "eurobert": {"num_key_value_heads": 2},
    "flaubert": {"emb_dim": 32, "n_layers": 3, "n_heads": 4},
    "fnet": {},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 40},
    "ibert": {},
    "jina_embeddings_v3": {},
    "longformer": {"attention_window": 8},
    "m2m_100": {**_M2M, **_HEADS},
    "megatron-bert": {},
    "modernbert": {"cls_token_id": 1, "sep_token_id": 2},
    "mpnet": {},
    "mt5": _SEQ,
    "nomic_bert": {},
    "nystromformer": {"segment_means_seq_len": 40, "num_landmarks": 4},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "rembert": {"input_embedding_size": 16},
    "roberta": {},
    "roberta-prelayernorm": {},
    "roformer": {},
    "siglip": {
        "text_config": {**SMALL, "projection_size": 32},
        "vision_config": {**SMALL, "image_size": 16, "patch_size": 8},
    },
    "squeezebert": {"embedding_size": 32},
    "t5": _SEQ,
    "umt5": _SEQ,
    "xlm": {"emb_dim": 32, "n_layers": 3, "n_heads": 4},
    "xlm-roberta": {},
    "xlm-roberta-xl": {},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
}

_VIT = {"embed_dim": 32, "depth": 3, "num_heads": 4, "img_size": 32, "patch_size": 8}
_SWIN = {"img_size": 64, "embed_dim": 16, "depths": (1, 2), "num_heads": (2, 4), "window_size": 4}
_CONVNEXT = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}

VISION: dict[str, tuple[int, dict[str, Any]]] = {
    "beit_base_patch16_224": (32, _VIT),
    "beitv2_base_patch16_224": (32, _VIT),
    "cait_xxs24_224": (32, _VIT),
    "coat_lite_tiny": (128, {"img_size": 128, "embed_dims": (8, 16, 16, 16), "serial_depths": (1, 1, 1, 2)}),
    "convit_tiny": (32, {**_VIT, "local_up_to_layer": 2}),
    "convnext_atto": (64, _CONVNEXT),
    "convnextv2_atto": (64, _CONVNEXT),
    "davit_tiny": (56, {"depths": (1, 1), "embed_dims": (16, 32), "num_heads": (2, 4)}),
    "deit3_small_patch16_224": (32, _VIT),
    "deit_tiny_distilled_patch16_224": (32, _VIT),
    "edgenext_xx_small": (64, {"depths": (1, 1, 2, 2), "dims": (8, 16, 16, 32)}),
    "eva02_tiny_patch14_224": (32, _VIT),
    "fastvit_t8": (64, {"layers": (1, 1, 1, 1), "embed_dims": (8, 8, 16, 16)}),
    "hiera_tiny_224": (64, {"img_size": (64, 64)}),
    "levit_128s": (128, {"img_size": 128, "embed_dim": (16, 32, 32), "depth": (1, 1, 1)}),
    "mixer_s16_224": (32, {"img_size": 32}),
    "mobilenetv2_050": (64, {}),
    "mobilenetv3_small_050": (64, {}),
    "mobilevit_xxs": (64, {}),
    "pit_ti_224": (64, {"img_size": 64}),
    "pvt_v2_b0": (64, {"depths": (1, 1, 1, 1), "embed_dims": (8, 8, 16, 16), "num_heads": (1, 1, 2, 2)}),
    "regnetx_002": (64, {}),
    "resnet10t": (64, {"layers": (1, 1, 1, 1), "channels": (8, 16, 16, 32)}),
    "swin_tiny_patch4_window7_224": (64, _SWIN),
    "swinv2_tiny_window8_256": (64, _SWIN),
    "visformer_tiny": (64, {"img_size": 64, "embed_dim": 32, "depth": (1, 1, 2)}),
    "vit_base_patch16_siglip_224": (32, _VIT),
    "vit_base_patch32_clip_224": (32, _VIT),
    "vit_relpos_medium_patch16_cls_224": (32, _VIT),
    "vit_small_patch14_dinov2": (32, _VIT),
    "vit_small_patch14_reg4_dinov2": (32, _VIT),
    "vit_small_patch16_dinov3": (32, _VIT),
    "xcit_nano_12_p16_224": (32, {"img_size": 32, "embed_dim": 32, "depth": 3, "num_heads": 4}),
}

STRATEGIES = ("projection", "mlp", "side", "layernorm", "bitfit", "lora", "lilt", "lilt-deep", "lit", "full", "scratch")
LAYERS = ("all", "last:1")


def text(name: str, pooling: str = "mean") -> TextTower:
    """A three-layer encoder of a family of transformers."""
    logging.set_verbosity_error()
    spec = TextSpec(model=name, pooling=pooling, max_tokens=12)
    config = AutoConfig.for_model(name, **(TEXT[name] if name == "siglip" else {**SMALL, **TEXT[name]}))
    torch.manual_seed(0)
    fresh = partial(text_loading._random, config, "mean")
    model = fresh()
    tiny.jitter(model)
    tower = TextTower(model.eval(), None, spec, fresh, torch.nn.Sequential())
    tower.fingerprint = "random"
    return tower


def vision(name: str) -> VisionTower:
    """A small timm model."""
    torch.manual_seed(0)
    px, args = VISION[name]
    fresh = partial(timm.create_model, name, num_classes=0, **args)
    model = fresh().eval()
    tiny.jitter(model)
    how = Preprocessing(image_px=px, mean=(0.5,) * 3, std=(0.25,) * 3, crop_pct=1, interpolation="bicubic")
    tower = VisionTower(model, how, "tower", fresh)
    tower.fingerprint = "random"
    return tower


@dataclass
class Fixed:
    """The other tower, which no strategy touches."""

    vision: VisionTower
    text: TextTower


def aligned(kind: str, name: str, strategy: str, layers: str) -> Aligner:
    """Apply a strategy to one tower."""
    towers = {"vision": vision, "text": text}
    other = tiny.aligner()
    pair = {"vision": other.vision, "text": other.text, kind: towers[kind](name)}
    torch.manual_seed(1)
    aligner = Aligner(pair["vision"], pair["text"], 8)
    module = load_plugin("strategies", strategy)
    known = {key for key, _ in aligner.named_parameters()}
    module.apply(aligner, module.Config(towers=kind, layers=layers))
    aligner.record_trainable(inserted_beside=known)
    return aligner.eval()


def outcome(kind: str, name: str, strategy: str, layers: str) -> str:
    """Return ``works``, ``works, computed whole``, or ``refused: `` and the message.

    Raises:
        AssertionError: the cell does neither: something that should train does not move, something frozen moves, a cut
            or padding changes the features, a closed strategy is not closed, or a checkpoint does not restore.
    """
    warnings.simplefilter("ignore")
    try:
        aligner = aligned(kind, name, strategy, layers)
    except UserError as error:
        return f"refused: {error}"
    tower: Tower = getattr(aligner, kind)
    if strategy in ("lilt", "lora"):
        before = aligned(kind, name, "projection", "all")
        _same(features(tower), features(getattr(before, kind)), "does not start at the pretrained tower")
    if strategy == "lilt-deep":
        _check_closed(kind, name, tower)
    if kind == "text":
        _check_padding(tower)
    before = {key: value.clone() for key, value in _tensors(aligner).items()}
    try:
        unused = _train(aligner, kind)
    except UserError as error:
        return f"refused: {error}"
    after = _tensors(aligner)
    moving = {*aligner.trainable(), *checkpoint.trained_state(aligner)}
    still = [key for key in aligner.trainable() if torch.equal(before[key], after[key]) and kind in key.split(".")[0]]
    assert not set(still) - unused, f"does not move: {still[:3]}"
    moved = [key for key in set(before) - moving if not torch.equal(before[key], after[key])]
    assert not moved, f"is frozen and moves: {moved[:3]}"
    first = tower.first_trainable(list(aligner.trainable().values()))
    cut = aligner.cuts()[0 if kind == "vision" else 1]
    x = tower.probe()
    with torch.no_grad():
        _same(tower.suffix(tower.prefix(x, cut), cut), tower(x), f"cut at {cut} changes the features")
    twin = aligned(kind, name, strategy, layers)
    checkpoint.restore(twin, {k: v.clone() for k, v in checkpoint.trained_state(aligner).items()}, "memory")
    if strategy == "scratch":
        twin.load_state_dict(aligner.state_dict())  # buffers of a random tower are drawn anew
    _same(features(getattr(twin.eval(), kind)), features(tower), "a checkpoint does not restore the tower")
    return "works" if cut == first else "works, computed whole"


def _tensors(aligner: Aligner) -> dict[str, torch.Tensor]:
    saved = aligner.state_dict()
    buffers = {name: buffer for name, buffer in aligner.named_buffers() if name in saved}
    return {**dict(aligner.named_parameters()), **buffers}


def features(tower: Tower) -> torch.Tensor:
    """Features of the tower's own probe."""
    with torch.no_grad():
        return tower(tower.probe())


def _same(found: torch.Tensor, wanted: torch.Tensor, problem: str) -> None:
    scale = wanted.abs().max()
    assert found.shape == wanted.shape, problem
    assert (found - wanted).abs().max() <= 2e-4 * scale, f"{problem}: {(found - wanted).abs().max() / scale:.2g}"


def _check_closed(kind: str, name: str, tower: Tower) -> None:
    """Maps inside the branches of the new block change nothing: its branches are closed."""
    top = tower.blocks[-1]
    below = tower.blocks[-2]
    ends = {branch.end for branch in branches(tower, below)}
    whole = features(tower)
    kept = {key: value.clone() for key, value in top.state_dict().items()}
    with torch.no_grad():
        for path, module in top.named_modules():
            if isinstance(module, torch.nn.Linear) and path not in ends:
                module.weight.normal_()
    _same(features(tower), whole, "the new block is not closed")
    top.load_state_dict(kept)


def _check_padding(tower: Tower) -> None:
    x = tower.probe()
    with torch.no_grad():
        both = tower(x)
        length = int(x.mask[1].sum())
        alone = tower(type(x)(x.ids[1:, :length], x.mask[1:, :length]))
    _same(alone, both[1:], "padding changes the features")


def _train(aligner: Aligner, kind: str) -> set[str]:
    """Rehearse, train a few steps on the tower's probe, and return the parameters that the network never uses."""
    unused = set(rehearse(aligner))
    optimiser = torch.optim.Adam(aligner.trainable().values(), lr=1e-2)
    tower = getattr(aligner, kind)
    encode = aligner.encode_image if kind == "vision" else aligner.encode_text
    target = torch.nn.functional.normalize(torch.randn(2, 8, generator=torch.Generator().manual_seed(3)), dim=-1)
    aligner.train()
    for _ in range(4):
        optimiser.zero_grad()
        ((encode(tower.probe()) - target) ** 2).sum().backward()
        optimiser.step()
    aligner.eval()
    return unused
