"""Towers of a few thousand random weights, and a world of coloured quarters that they learn in a second.

Each is made once a session, from a seed, in the ways a user's own would come: towers as local folders, data as a
folder of images with a CSV.
"""

from __future__ import annotations

import csv
import itertools
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import timm
import tomli_w
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    BertTokenizer,
    DistilBertConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from polyalign.config import language as languages
from polyalign.config import resolve as recipe
from polyalign.config.run_files import WEIGHTS
from polyalign.config.schema import Recipe
from polyalign.data.pairs import PairTable
from polyalign.data.sources import folder as folder_source
from polyalign.evaluation.encoders import Aligned
from polyalign.models.aligner import Aligner
from polyalign.models.build import build_aligner
from polyalign.utils import storage

PX = 32
COLORS = {
    "red": (220, 30, 30),
    "green": (30, 180, 40),
    "blue": (40, 50, 220),
    "white": (240, 240, 240),
    "black": (15, 15, 15),
    "yellow": (230, 220, 40),
}
WORDS = (*COLORS, "then", "a", "and", "below", ",")
SPLITS = {"train": 64, "dev": 24, "test": 24}
CAPTIONS_PER_IMAGE = 2
VIT = {"img_size": PX, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}

_ROOT = tempfile.TemporaryDirectory(prefix="polyalign-tiny-")


def _fresh(name: str) -> Path:
    path = Path(_ROOT.name) / name
    path.mkdir(parents=True)
    return path


def jitter(module: torch.nn.Module, seed: int = 0) -> None:
    """Move every parameter off its initial value, so that norms, biases and zeros would be seen to change."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def vision(**args: Any) -> Path:
    """A three-layer ViT of random weights as a local folder; ``args`` are timm's, over ``VIT``."""
    return _timm("vit_tiny_patch16_224", **{**VIT, **args})


def conv() -> Path:
    """A small convolutional network with batch norms."""
    return _timm("test_resnet")


@cache
def _timm(model: str, **args: Any) -> Path:
    out = _fresh(f"vision/{model}-{'-'.join(map(str, args.values()))}")
    torch.manual_seed(1)
    network = timm.create_model(model, pretrained=False, num_classes=0, **args)
    jitter(network)
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, out / "model.safetensors")
    facts = {"model": model, "args": args, "image_px": PX, "mean": [0.5] * 3, "std": [0.25] * 3, "crop_pct": 1.0}
    (out / "tower.toml").write_text(tomli_w.dumps(facts), encoding="utf-8")
    return out


SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}


def text(family: str = "bert") -> Path:
    """A three-layer BERT, XLM-R or DistilBERT of random weights and its tokenizer as a Hugging Face folder."""
    return _encoder(family)


@cache
def _encoder(family: str) -> Path:
    out = _fresh(f"text/{family}")
    torch.manual_seed(2)
    network = {"bert": _bert, "xlmr": _xlmr, "distilbert": _distilbert}[family](out)
    jitter(network)
    network.save_pretrained(out)
    return out


def _bert(out: Path) -> torch.nn.Module:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(out)
    return BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=80, **SIZES))


def _xlmr(out: Path) -> torch.nn.Module:
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    letters = sorted(set("".join(WORDS)) | {"▁"})
    pieces = [*special, *letters, *(f"▁{word}" for word in WORDS), "<mask>"]
    unigram = [(piece, 0.0 if piece in special else -float(len(pieces) - len(piece))) for piece in pieces]
    fast = Tokenizer(models.Unigram(unigram, unk_id=3))
    fast.normalizer = normalizers.NFKC()
    fast.pre_tokenizer = pre_tokenizers.Metaspace()
    fast.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    names = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}
    tokens = {f"{name}_token": token for name, token in names.items()}
    PreTrainedTokenizerFast(tokenizer_object=fast, **tokens).save_pretrained(out)
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    return XLMRobertaModel(
        XLMRobertaConfig(vocab_size=len(pieces), max_position_embeddings=80, type_vocab_size=1, **ids, **SIZES)
    )


def _distilbert(out: Path) -> torch.nn.Module:
    _bert(out)
    config: PretrainedConfig = DistilBertConfig(
        vocab_size=5 + len(WORDS), dim=32, n_layers=3, n_heads=2, hidden_dim=64, max_position_embeddings=80
    )
    return AutoModel.from_config(config)


@cache
def data() -> Path:
    """A folder of images of four coloured quarters, two captions each, with splits; no two images are alike.

    Captions are in English, and in a German that says them backwards.
    """
    out = _fresh("quarters")
    (out / "images").mkdir()
    scenes = list(itertools.product(COLORS, repeat=4))
    order = np.random.default_rng(0).permutation(len(scenes))
    splits = [split for split, count in SPLITS.items() for _ in range(count)]
    with (out / "captions.csv").open("w", encoding="utf-8", newline="") as file:
        sheet = csv.writer(file)
        sheet.writerow(["image", "caption", "split", "caption_de"])
        for number, split in enumerate(splits):
            scene = scenes[order[number]]
            draw(scene).save(out / "images" / f"{number:03d}.png")
            for caption in captions(scene):
                sheet.writerow([f"{number:03d}.png", caption, split, " ".join(caption.split()[::-1])])
    return out


@cache
def bilingual() -> Path:
    """The quarters in English, and in a German that says them backwards, of every other training image."""
    out = _fresh("bilingual")
    (out / "images").symlink_to(data() / "images")
    with (data() / "captions.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with (out / "captions.csv").open("w", encoding="utf-8", newline="") as file:
        sheet = csv.writer(file)
        sheet.writerow(["image", "lang", "caption", "split"])
        for number, row in enumerate(rows):
            sheet.writerow([row["image"], "en", row["caption"], row["split"]])
            if row["split"] != "train" or number % 4 < 2:
                sheet.writerow([row["image"], "de", " ".join(row["caption"].split()[::-1]), row["split"]])
    return out


def draw(scene: tuple[str, ...]) -> Image.Image:
    """Paint the four quarters."""
    small = np.array([COLORS[color] for color in scene], np.uint8).reshape(2, 2, 3)
    return Image.fromarray(small.repeat(PX // 2, 0).repeat(PX // 2, 1))


def captions(scene: tuple[str, ...]) -> tuple[str, str]:
    """Say the quarters in two ways, of different lengths."""
    return " ".join(scene), "a {} and a {} , below a {} then a {}".format(*scene)


@cache
def table(split: str = "train", /) -> PairTable:
    """Load a split of the quarters."""
    return folder_source.load(folder_source.Config(root=data()), languages.load_language("en"), split)


def settings(strategy: str = "projection", /, **sections: dict[str, Any]) -> dict[str, Any]:
    """State a recipe for the tiny towers and the quarters; ``sections`` are laid over it."""
    raw: dict[str, Any] = {
        "name": "tiny",
        "lang": "en",
        "vision": {"model": str(vision())},
        "text": {"model": str(text()), "max_tokens": 24},
        "projection": {"dim": 16},
        "strategy": {"name": strategy},
        "source": {"name": "folder", "root": str(data())},
        "optim": {"lr": 3e-3, "batch_size": 32, "epochs": 3, "warmup_steps": 2},
        "train": {"evals": 3, "patience": 3},
        "cache": {"dtype": "float32"},
    }
    return recipe.merge(raw, sections)


def resolved(strategy: str = "projection", /, **sections: dict[str, Any]) -> Recipe:
    """Resolve ``settings`` to a recipe."""
    return recipe.validate(settings(strategy, **sections), "the tiny recipe")


def aligner(strategy: str = "projection", /, **sections: dict[str, Any]) -> Aligner:
    """Build what ``settings`` describe."""
    return build_aligner(resolved(strategy, **sections))


def encoder(model: Aligner) -> Aligned:
    """Wrap an aligner as what tasks evaluate; without a fingerprint nothing of it is kept on disk."""
    recipe = resolved()
    return Aligned("tiny", model, recipe, recipe.cache, Path())


def write(path: Path, strategy: str = "projection", /, **sections: dict[str, Any]) -> Path:
    """Write ``settings`` as a recipe for the command line, which gives the language itself."""
    raw = settings(strategy, **sections)
    del raw["name"], raw["lang"]
    path.write_text(tomli_w.dumps(raw), encoding="utf-8")
    return path


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Read what a run trained."""
    return storage.load_tensors(folder / WEIGHTS)[0]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Tell whether two states are equal to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def quiet(*_: object) -> None:
    """Stand for a progress display or a voice."""
