from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    Siglip2Config,
    Siglip2ImageProcessor,
    Siglip2Model,
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
    """A SigLIP whose tokenizer returns an attention mask, as that of the SigLIP 2 models of fixed size may."""
    words = {"vocab_size": tokenizer(out), "max_position_embeddings": 16}
    torch.manual_seed(0)
    model = SiglipModel(SiglipConfig(text_config={**SIZE, **words}, vision_config=SEEN)).eval()
    tiny.jitter(model)
    model.save_pretrained(out)
    processor(SiglipImageProcessor, out)
    return model


def siglip2(out):
    """A SigLIP 2 of variable size (NaFlex), which takes patches, their mask and the shape of the image."""
    words = {"vocab_size": tokenizer(out), "max_position_embeddings": 16}
    seen = {**SIZE, "patch_size": 8, "num_patches": 16}
    torch.manual_seed(0)
    model = Siglip2Model(Siglip2Config(text_config={**SIZE, **words}, vision_config=seen)).eval()
    tiny.jitter(model)
    model.save_pretrained(out)
    Siglip2ImageProcessor(patch_size=8, max_num_patches=16).save_pretrained(out)
    return model


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


@pytest.mark.parametrize("make", [clip, siglip, siglip2, dual])
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


@pytest.mark.parametrize("make", [siglip, siglip2])
def test_siglip_reads_captions_padded_to_the_full_length_without_a_mask(make, tmp_path):
    model = make(tmp_path)
    words = AutoTokenizer.from_pretrained(tmp_path)(["green"], padding="max_length", max_length=16, return_tensors="pt")
    assert 0 < words["attention_mask"].sum() < 16
    with torch.no_grad():
        expected = model.get_text_features(input_ids=words["input_ids"]).pooler_output
        masked = model.get_text_features(**{key: words[key] for key in ("input_ids", "attention_mask")}).pooler_output
    found = external_models.load(f"hf:{tmp_path}").encode_text(["green"])
    np.testing.assert_allclose(found, torch.nn.functional.normalize(expected, dim=-1).numpy(), atol=1e-5)
    assert np.abs(found - torch.nn.functional.normalize(masked, dim=-1).numpy()).max() > 1e-3


def test_half_precision_weights_are_computed_in_float32(tmp_path):
    clip(tmp_path)
    CLIPModel.from_pretrained(tmp_path).half().save_pretrained(tmp_path)
    kept = CLIPModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = torch.tensor([[2, 5 + tiny.WORDS.index("green"), 3]])
    with torch.no_grad():
        expected = torch.nn.functional.normalize(kept.get_text_features(input_ids=ids).pooler_output, dim=-1)
    found = external_models.load(f"hf:{tmp_path}").encode_text(["green"])
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


def test_weights_in_a_pickle_are_refused(tmp_path):
    clip(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"hf:.* cannot be loaded: .*safetensors"):
        external_models.load(f"hf:{tmp_path}")


def test_code_that_comes_with_a_model_is_never_run_nor_asked_about(tmp_path, monkeypatch):
    ran, asked = tmp_path / "ran", []
    (tmp_path / "mine.py").write_text(f"from pathlib import Path\nPath({str(ran)!r}).touch()\n")
    named = {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": named}))
    monkeypatch.setattr("builtins.input", lambda prompt="": asked.append(prompt) or "y")
    with pytest.raises(UserError, match=r"hf:.* cannot be loaded"):
        external_models.load(f"hf:{tmp_path}")
    assert not asked
    assert not ran.exists()


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

    handlers = list(logging.root.handlers)
    logging.root.handlers.clear()  # pytest's, beside which open_clip adds none
    try:
        peer = external_models.load(f"open_clip:{tmp_path}")
        assert not logging.root.handlers
    finally:
        logging.root.handlers[:] = handlers
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(CAPTIONS)
    with torch.no_grad():
        expected = model.eval().encode_text(tokens, normalize=True).numpy()
    np.testing.assert_allclose(peer.encode_text(CAPTIONS), expected, atol=1e-5)
    assert peer.encode_image(tiny.table("test").images[:2]).shape == (2, 16)


@pytest.mark.parametrize("old", [False, True])
def test_mclip_averages_over_real_tokens_and_goes_through_its_linear_layer(old, tmp_path, monkeypatch):
    made = []
    vision = external_models.ExternalModel("vision", images=len, captions=len)
    monkeypatch.setattr(external_models, "_open_clip", lambda name: made.append(name) or vision)
    text, base = tmp_path / "text", tmp_path / "text" / "base"
    text.mkdir()
    words = tokenizer(text)
    torch.manual_seed(0)
    encoder = tiny.BertModel(tiny.BertConfig(**SIZE, vocab_size=words, max_position_embeddings=16)).eval()
    encoder.config.save_pretrained(base)
    weights = {f"transformer.{key}": value for key, value in encoder.state_dict().items()}
    linear = torch.nn.Linear(32, 16)
    weights |= {f"LinearTransformation.{key}": value.data for key, value in linear.named_parameters()}
    if old:  # files written before transformers 4.31 hold this buffer
        weights["transformer.embeddings.position_ids"] = torch.arange(16)[None]
    save_file(weights, text / "model.safetensors")
    (text / "config.json").write_text(json.dumps({"modelBase": "base", "numDims": 16, "model_type": "bert"}))
    peer = external_models.load(f"mclip:{text}+ViT-B-32/openai")
    assert made == ["ViT-B-32/openai"]
    assert peer.images is vision.images
    found = peer.encode_text(CAPTIONS)
    # "green" alone: [CLS] green [SEP], no padding to leave out
    ids = torch.tensor([[2, 5 + tiny.WORDS.index("green"), 3]])
    with torch.no_grad():
        plain = linear(encoder(input_ids=ids).last_hidden_state.mean(1))
    expected = torch.nn.functional.normalize(plain, dim=-1).numpy()
    np.testing.assert_allclose(found[1], expected[0], atol=1e-5)
    with pytest.raises(UserError, match=r"the vision tower of .* is not known: state it"):
        external_models.load(f"mclip:{text}")
    save_file({**weights, "transformer.odd": torch.zeros(1)}, text / "model.safetensors")
    with pytest.raises(UserError, match="cannot be loaded"):
        external_models.load(f"mclip:{text}+ViT-B-32/openai")


def test_what_is_no_peer_or_not_there_says_so(tmp_path):
    assert not external_models.is_external("runs/starter-sw")
    assert not external_models.is_external(str(tmp_path))
    assert external_models.is_external("hf:openai/clip-vit-base-patch32")
    with pytest.raises(UserError, match=r"hf:.*cannot be loaded"):
        external_models.load(f"hf:{tmp_path / 'nothing'}")
    with pytest.raises(UserError, match="name is missing after the colon"):
        external_models.load("hf:")
    pytest.importorskip("open_clip")
    with pytest.raises(UserError, match='did you mean "ViT-B-32"'):
        external_models.load("open_clip:ViT-B-33/openai")
    with pytest.raises(UserError, match="name the weights"):
        external_models.load("open_clip:ViT-B-32")
