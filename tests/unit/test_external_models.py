from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    BertTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from polyalign.evaluation import external_models
from polyalign.evaluation import suites as suite
from polyalign.evaluation.evaluate import evaluate, evaluate_suite
from polyalign.utils.errors import UserError
from tests import tiny

SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SEEN = {**SIZE, "image_size": 32, "patch_size": 8}
CAPTIONS = ["red then a blue", "green"]


def tokenizer(out):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *tiny.WORDS]
    made = BertTokenizer(vocab={word: index for index, word in enumerate(words)}, model_max_length=16)
    made.save_pretrained(out)
    return len(words)


def clip(out):
    words = {"vocab_size": tokenizer(out), "max_position_embeddings": 16, "eos_token_id": 3, "bos_token_id": 2}
    config = CLIPConfig(text_config={**SIZE, **words}, vision_config=SEEN, projection_dim=16)
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(out)
    processor(CLIPImageProcessor, out)


def siglip(out):
    words = {"vocab_size": tokenizer(out), "max_position_embeddings": 16}
    torch.manual_seed(0)
    SiglipModel(SiglipConfig(text_config={**SIZE, **words}, vision_config=SEEN)).save_pretrained(out)
    processor(SiglipImageProcessor, out)


def dual(out):
    words = {"vocab_size": tokenizer(out), "max_position_embeddings": 16}
    vision, text = CLIPConfig(vision_config=SEEN).vision_config, tiny.BertConfig(**SIZE, **words)
    torch.manual_seed(0)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=16)
    VisionTextDualEncoderModel(config).save_pretrained(out)
    processor(CLIPImageProcessor, out)


def processor(kind, out):
    sizes = {"crop_size": {"height": 32, "width": 32}} if kind is CLIPImageProcessor else {}
    size = {"shortest_edge": 32} if sizes else {"height": 32, "width": 32}
    kind(size=size, **sizes).save_pretrained(out)


@pytest.mark.parametrize("make", [clip, siglip, dual])
def test_a_local_folder_of_transformers_gives_unit_vectors_that_no_batch_changes(make, tmp_path):
    make(tmp_path)
    peer = external_models.load(f"hf:{tmp_path}")
    table = tiny.table("test")
    images, captions = (peer.encode_image(table.images[:3]), peer.encode_text(CAPTIONS))
    assert images.shape[1] == captions.shape[1]
    for rows in (images, captions):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(peer.encode_text(CAPTIONS[1:])[0], captions[1], atol=1e-5)
    np.testing.assert_allclose(peer.encode_image(table.images[2:3])[0], images[2], atol=1e-5)
    assert np.abs(captions[0] - captions[1]).max() > 1e-4


def test_a_peer_is_measured_by_eval_and_in_a_suite_as_a_run_is(tmp_path):
    clip(tmp_path)
    model, source = f"hf:{tmp_path}", {"source": {"name": "folder", "root": str(tiny.data())}}
    [result] = evaluate(model, langs=["en"], split="test", overrides=source)
    assert (result.images, result.captions) == (24, 48)
    one = suite.Suite(name="ours", benchmarks=[{**source["source"], "languages": ["en"]}])
    found = evaluate_suite(model, one, ["en"], allow_absent=False)
    assert found.results == (result.without_ranks(),)
    assert found.model == model
    with pytest.raises(UserError, match="name one with --lang"):
        evaluate(model, langs=[], split="test", overrides=source)
    with pytest.raises(UserError, match="with --data or --suite"):
        evaluate(model, langs=["en"], split="test", overrides={})
    nowhere = {"source": {"name": "folder", "root": str(tmp_path / "nowhere")}}
    with pytest.raises(UserError, match=r"there is no folder .*nowhere"):  # before the model, which is not there either
        evaluate("hf:nothing", langs=["en"], split="test", overrides=nowhere)


def open_clip_folder(out):
    open_clip = pytest.importorskip("open_clip")
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    out.mkdir(exist_ok=True)
    (out / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    model = open_clip.CLIP(16, open_clip.model.CLIPVisionCfg(**vision), open_clip.model.CLIPTextCfg(**text))
    save_file(model.state_dict(), out / "open_clip_model.safetensors")
    return model


@pytest.mark.filterwarnings("ignore")
def test_a_local_folder_of_open_clip_gives_what_open_clip_gives(tmp_path):
    model = open_clip_folder(tmp_path)
    import open_clip

    peer = external_models.load(f"open_clip:{tmp_path}")
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(CAPTIONS)
    with torch.no_grad():
        expected = model.eval().encode_text(tokens, normalize=True).numpy()
    np.testing.assert_allclose(peer.encode_text(CAPTIONS), expected, atol=1e-5)
    assert peer.encode_image(tiny.table("test").images[:2]).shape == (2, 16)


@pytest.mark.filterwarnings("ignore")
def test_mclip_averages_over_real_tokens_and_goes_through_its_linear_layer(tmp_path):
    open_clip_folder(tmp_path / "vision")
    text, base = tmp_path / "text", tmp_path / "text" / "base"
    text.mkdir()
    words = tokenizer(text)
    torch.manual_seed(0)
    encoder = tiny.BertModel(tiny.BertConfig(**SIZE, vocab_size=words, max_position_embeddings=16)).eval()
    encoder.config.save_pretrained(base)
    weights = {f"transformer.{key}": value for key, value in encoder.state_dict().items()}
    linear = torch.nn.Linear(32, 16)
    weights |= {f"LinearTransformation.{key}": value.data for key, value in linear.named_parameters()}
    save_file(weights, text / "model.safetensors")
    (text / "config.json").write_text(json.dumps({"modelBase": "base", "numDims": 16, "model_type": "bert"}))
    peer = external_models.load(f"mclip:{text}+{tmp_path / 'vision'}")
    found = peer.encode_text(CAPTIONS)
    # "green" alone: [CLS] green [SEP], no padding to leave out
    ids = torch.tensor([[2, 5 + tiny.WORDS.index("green"), 3]])
    with torch.no_grad():
        plain = linear(encoder(input_ids=ids).last_hidden_state.mean(1))
    expected = torch.nn.functional.normalize(plain, dim=-1).numpy()
    np.testing.assert_allclose(found[1], expected[0], atol=1e-5)
    with pytest.raises(UserError, match=r"which vision tower .* belongs to is not known"):
        external_models.load(f"mclip:{text}")


def test_what_is_no_peer_or_not_there_says_so(tmp_path):
    assert not external_models.is_external("runs/starter-sw")
    assert not external_models.is_external(str(tmp_path))
    assert external_models.is_external("hf:openai/clip-vit-base-patch32")
    with pytest.raises(UserError, match=r"hf:.*cannot be loaded"):
        external_models.load(f"hf:{tmp_path / 'nothing'}")
    with pytest.raises(UserError, match="names no model"):
        external_models.load("hf:")
    pytest.importorskip("open_clip")
    with pytest.raises(UserError, match='did you mean "ViT-B-32"'):
        external_models.load("open_clip:ViT-B-33/openai")
    with pytest.raises(UserError, match="say which weights"):
        external_models.load("open_clip:ViT-B-32")
