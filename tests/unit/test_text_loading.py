"""Text towers of other kinds than BERT: encoder-decoder, dual, decoder-only and sentence-transformers folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    M2M100Config,
    M2M100Model,
    NllbTokenizer,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Model,
)

from polyalign.config.tower import TextSpec
from polyalign.models.towers.common import masked_pool
from polyalign.models.towers.text import TextTower
from polyalign.models.towers.text_loading import build_text
from polyalign.utils.errors import UserError
from tests import architectures, tiny

CAPTIONS = ["red", "a red and a blue , below a green", "black yellow"]


def tokenizer_of(out: Path) -> int:
    """Put the tiny XLM-R's tokenizer into a folder and return the size of its vocabulary."""
    tokenizer = AutoTokenizer.from_pretrained(tiny.text("xlmr"))
    tokenizer.save_pretrained(out)
    return len(tokenizer)


def features(tower: TextTower, captions: list[str] = CAPTIONS, lang: str | None = None) -> torch.Tensor:
    with torch.no_grad():
        return tower(tower.collate(tower.tokenize(captions, lang)))


def pooled(folder: Path, encoder: torch.nn.Module) -> torch.Tensor:
    """The mean over real tokens of an encoder run as transformers documents it."""
    inputs = AutoTokenizer.from_pretrained(folder)(CAPTIONS, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = encoder.eval()(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).last_hidden_state
    return masked_pool(hidden, inputs.attention_mask.bool(), "mean")


@pytest.mark.parametrize("saved", [T5Model, T5EncoderModel])
def test_a_t5_folder_is_read_with_or_without_its_decoder(tmp_path, saved):
    size = tokenizer_of(tmp_path)
    config = T5Config(vocab_size=size, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    network = saved(config)
    tiny.jitter(network)
    network.save_pretrained(tmp_path)
    tower = build_text(TextSpec(model=str(tmp_path)))
    torch.testing.assert_close(features(tower), pooled(tmp_path, network.get_encoder()))
    assert not [name for name, _ in tower.named_parameters() if "decoder" in name]


def test_the_text_side_of_a_clip_folder_is_a_tower(tmp_path):
    size = tokenizer_of(tmp_path)
    side = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    text = {**side, "vocab_size": size, "max_position_embeddings": 40, "eos_token_id": 2, "projection_dim": 32}
    config = CLIPConfig(text_config=text, vision_config={**side, "image_size": 32, "patch_size": 8}, projection_dim=32)
    network = CLIPModel(config)
    tiny.jitter(network)
    network.save_pretrained(tmp_path)
    tower = build_text(TextSpec(model=str(tmp_path), pooling="pooler", max_tokens=40))
    inputs = AutoTokenizer.from_pretrained(tmp_path)(CAPTIONS, padding=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        expected = network.eval().text_model(**inputs).pooler_output
    torch.testing.assert_close(features(tower), expected)
    assert not [name for name, _ in tower.named_parameters() if "vision" in name]


def test_a_decoder_pools_its_last_token_and_keeps_no_keys(tmp_path):
    size = tokenizer_of(tmp_path)
    sizes = {**architectures.SMALL, "vocab_size": size, "num_key_value_heads": 2, "head_dim": 8}
    network = Qwen3Model(Qwen3Config(**sizes))
    tiny.jitter(network)
    network.save_pretrained(tmp_path)
    tower = build_text(TextSpec(model=str(tmp_path), pooling="last", max_tokens=30))
    for caption in CAPTIONS:
        ids = AutoTokenizer.from_pretrained(tmp_path)(caption, return_tensors="pt").input_ids
        with torch.no_grad():
            expected = network.eval()(input_ids=ids).last_hidden_state[:, -1]
        torch.testing.assert_close(features(tower, [caption]), expected)
    together = features(tower)
    for row, caption in enumerate(CAPTIONS):
        torch.testing.assert_close(together[row], features(tower, [caption])[0], rtol=1e-4, atol=1e-5)
    assert tower.model.config.use_cache is False


def test_a_tokenizer_without_a_pad_token_pads_with_its_end_token(tmp_path, caplog):
    shutil.copytree(tiny.text("bert"), tmp_path, dirs_exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.pad_token, tokenizer.eos_token = None, "[SEP]"
    tokenizer.save_pretrained(tmp_path)
    with caplog.at_level("INFO"):
        tower = build_text(TextSpec(model=str(tmp_path)))
    assert "has no pad token: [SEP], its end of sequence, is used for padding" in caplog.text
    assert tower.collate([[5], [5, 6]]).ids.tolist() == [[5, tokenizer.eos_token_id], [5, 6]]
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no pad token and no end-of-sequence token"):
        build_text(TextSpec(model=str(tmp_path)))


def test_pooler_of_a_model_without_one_is_refused():
    with pytest.raises(UserError, match=r"gives no pooler_output: choose text\.pooling"):
        build_text(TextSpec(model=str(tiny.text("distilbert")), pooling="pooler"))


# Languages


@pytest.fixture(scope="module")
def nllb(tmp_path_factory) -> Path:
    """A tiny NLLB: an M2M-100 network and a tokenizer with the FLORES-200 codes."""
    out = tmp_path_factory.mktemp("nllb")
    letters = sorted(set("".join(CAPTIONS).replace(" ", "")))
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", *letters]
    tokenizer = NllbTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[])
    tokenizer.save_pretrained(out)
    small = {**architectures.TEXT["m2m_100"], "vocab_size": len(tokenizer), "max_position_embeddings": 80}
    torch.manual_seed(0)
    network = M2M100Model(M2M100Config(**small, pad_token_id=1, bos_token_id=0, eos_token_id=2))
    tiny.jitter(network)
    network.save_pretrained(out)
    return out


def test_nllb_is_told_the_language_by_its_flores_token(nllb):
    tower = build_text(TextSpec(model=str(nllb)))
    tokenizer = AutoTokenizer.from_pretrained(nllb)
    for lang, code in (("sw", "swh_Latn"), ("qu", "quy_Latn"), ("gn", "grn_Latn"), ("sw", "swh_Latn")):
        ids = tower.tokenize(CAPTIONS, lang)
        assert {row[0] for row in ids} == {tokenizer.convert_tokens_to_ids(code)}
        assert {row[-1] for row in ids} == {tokenizer.eos_token_id}
    assert (features(tower, lang="sw") - features(tower, lang="qu")).abs().max() > 1e-3


def test_nllb_is_its_encoder_alone(nllb):
    tower = build_text(TextSpec(model=str(nllb)))
    tokenizer = AutoTokenizer.from_pretrained(nllb, src_lang="swh_Latn")
    inputs = tokenizer(CAPTIONS, padding=True, return_tensors="pt")
    encoder = M2M100Model.from_pretrained(nllb).get_encoder().eval()
    with torch.no_grad():
        hidden = encoder(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).last_hidden_state
    expected = masked_pool(hidden, inputs.attention_mask.bool(), "mean")
    torch.testing.assert_close(features(tower, lang="sw"), expected)
    assert not [name for name, _ in tower.named_parameters() if "decoder" in name]


def test_the_recipes_language_is_the_default_and_a_language_must_be_known(nllb):
    tower = build_text(TextSpec(model=str(nllb)))
    with pytest.raises(UserError, match="needs to know the language of the captions"):
        tower.tokenize(CAPTIONS)
    tower.lang = "sw"
    assert tower.tokenize(CAPTIONS) == tower.tokenize(CAPTIONS, "sw") != tower.tokenize(CAPTIONS, "de")
    tower.tokenizer = type("Deaf", (), {"src_lang": "x", "get_added_vocab": lambda _self: {"deu_Latn": 7}})()
    with pytest.raises(UserError, match=r"knows no language sw \(swh_Latn\); it knows 1, such as deu_Latn"):
        tower.tokenize(CAPTIONS)


# Sentence-transformers folders


def saved(out: Path, pooling: str, *, dense: bool = False, prompt: str | None = None) -> Path:
    """Save a model as sentence-transformers does."""
    reference = pytest.importorskip("sentence_transformers")
    parts = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    encoder = pytest.importorskip("sentence_transformers.base.modules").Transformer(str(tiny.text("xlmr")))
    modules = [encoder, parts.Pooling(32, pooling_mode=pooling)]
    if dense:
        torch.manual_seed(3)
        modules += [parts.Dense(32, 16, activation_function=torch.nn.Tanh()), parts.Normalize()]
    prompts = {} if prompt is None else {"prompts": {"query": prompt}, "default_prompt_name": "query"}
    reference.SentenceTransformer(modules=modules, **prompts).save(str(out))
    return out


@pytest.mark.parametrize(("pooling", "ours"), [("cls", "cls"), ("mean", "mean"), ("max", "max"), ("lasttoken", "last")])
def test_pooling_is_that_of_sentence_transformers(tmp_path, pooling, ours):
    folder = saved(tmp_path, pooling)
    tower = build_text(TextSpec(model=str(folder)))
    assert tower.pooling == ours
    _assert_as_the_reference(folder, tower)


def test_dense_normalisation_and_prompt_are_read_from_the_folder(tmp_path):
    folder = saved(tmp_path, "mean", dense=True, prompt="red ")
    tower = build_text(TextSpec(model=str(folder)))
    assert (tower.width, tower.prompt) == (16, "red ")
    _assert_as_the_reference(folder, tower)
    plain = build_text(TextSpec(model=str(folder), prompt=""))
    assert plain.tokenize(["blue"]) != tower.tokenize(["blue"])
    assert plain.fingerprint == tower.fingerprint
    weights = load_file(folder / "2_Dense" / "model.safetensors")
    save_file({key: value + 1 for key, value in weights.items()}, folder / "2_Dense" / "model.safetensors")
    assert build_text(TextSpec(model=str(folder))).fingerprint != tower.fingerprint


def _assert_as_the_reference(folder: Path, tower: TextTower) -> None:
    reference = pytest.importorskip("sentence_transformers").SentenceTransformer(str(folder), device="cpu")
    np.testing.assert_allclose(features(tower).numpy(), reference.encode(CAPTIONS), rtol=1e-4, atol=1e-5)


def test_the_oldest_layout_has_the_encoder_in_a_subfolder(tmp_path):
    inner = shutil.copytree(tiny.text("bert"), tmp_path / "0_Transformer")
    modules = [{"type": "sentence_transformers.models.Transformer", "path": "0_Transformer"}]
    modules += [{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (tmp_path / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")
    tower = build_text(TextSpec(model=str(tmp_path)))
    torch.testing.assert_close(features(tower), features(build_text(TextSpec(model=str(inner), pooling="cls"))))


@pytest.mark.parametrize(
    ("modules", "pooling", "complaint"),
    [
        (["WordEmbeddings", "LSTM"], {}, "must be a Transformer"),
        (["Transformer", "LSTM"], {}, "module LSTM is not supported"),
        (["Transformer", "Normalize", "Pooling"], {}, "Normalize module before Pooling is not supported"),
        (["Transformer", "Pooling"], {"pooling_mode": "weightedmean"}, "its pooling weightedmean is not supported"),
        (["Transformer", "Pooling"], {}, "its pooling is not stated"),
        (["Transformer", "Dense"], {"in_features": 32, "out_features": 8}, "has no 1_x/model.safetensors"),
        (
            ["Transformer", "Dense"],
            {"in_features": 32, "out_features": 8, "activation_function": "evil.Code"},
            "activation Code of its Dense module is not supported",
        ),
    ],
)
def test_modules_that_are_not_supported_are_named(tmp_path, modules, pooling, complaint):
    shutil.copytree(tiny.text("bert"), tmp_path, dirs_exist_ok=True)
    listed = [{"type": f"sentence_transformers.models.{kind}", "path": f"{n}_x"} for n, kind in enumerate(modules)]
    (tmp_path / "modules.json").write_text(json.dumps(listed), encoding="utf-8")
    (tmp_path / "1_x").mkdir()
    (tmp_path / "1_x" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")
    with pytest.raises(UserError, match=complaint) as caught:
        build_text(TextSpec(model=str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_a_tower_trained_without_a_mask_reads_padding_up_to_its_length():
    tower = build_text(TextSpec(model=str(tiny.text("xlmr")), max_tokens=20))
    tower.tokenizer.model_input_names = ["input_ids"]
    assert [len(ids) for ids in tower.tokenize(CAPTIONS)] == [20, 20, 20]
    assert tower.collate(tower.tokenize(CAPTIONS)).mask.all()


def test_captions_that_are_cut_are_counted():
    tower = build_text(TextSpec(model=str(tiny.text("bert")), max_tokens=6))
    assert tower.count_cut(["red", "red and a blue", "red and a blue , below"]) == 1


def test_the_tokens_of_a_pretrained_encoder_give_what_its_own_forward_gives():
    for family in ("bert", "xlmr", "distilbert"):
        tower = build_text(TextSpec(model=str(tiny.text(family)), pooling="mean"))
        network = AutoModel.from_config(AutoConfig.from_pretrained(tiny.text(family)))
        network.load_state_dict(load_file(tiny.text(family) / "model.safetensors"), strict=False)
        tokenizer = AutoTokenizer.from_pretrained(tiny.text(family))
        inputs = tokenizer(CAPTIONS, padding=True, return_tensors="pt")
        with torch.no_grad():
            hidden = network.eval()(**inputs).last_hidden_state
        torch.testing.assert_close(features(tower), masked_pool(hidden, inputs.attention_mask.bool(), "mean"))


@pytest.mark.parametrize("content", ["[]", "{}", '[{"path": ""}]', "7", '[{"type": "x.Transformer", "path": ""}, 3]'])
def test_a_strange_list_of_modules_is_an_error_of_one_line(tmp_path, content):
    shutil.copytree(tiny.text("bert"), tmp_path, dirs_exist_ok=True)
    (tmp_path / "modules.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        build_text(TextSpec(model=str(tmp_path)))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lower_case_is_that_of_the_folder(tmp_path):
    folder = saved(tmp_path, "mean")
    settings = json.loads((folder / "sentence_bert_config.json").read_text(encoding="utf-8"))
    (folder / "sentence_bert_config.json").write_text(json.dumps({**settings, "do_lower_case": True}), encoding="utf-8")
    tower = build_text(TextSpec(model=str(folder)))
    assert tower.tokenize(["RED"]) == tower.tokenize(["red"])


def test_pooling_without_the_prompt_is_refused(tmp_path):
    folder = saved(tmp_path, "mean", prompt="red ")
    path = folder / "1_Pooling" / "config.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**facts, "include_prompt": False}), encoding="utf-8")
    with pytest.raises(UserError, match="pooling without the prompt is not supported"):
        build_text(TextSpec(model=str(folder)))


# What is refused


def folder_with(out: Path, **config: object) -> Path:
    """A copy of the tiny BERT with another config.json."""
    shutil.copytree(tiny.text("bert"), out, dirs_exist_ok=True)
    facts = json.loads((out / "config.json").read_text(encoding="utf-8"))
    (out / "config.json").write_text(json.dumps({**facts, **config}), encoding="utf-8")
    return out


@pytest.mark.parametrize(
    "config", [{"vocab_size": 3000}, {"hidden_size": 64}, {"hidden_act": "foo"}, {"num_hidden_layers": "three"}]
)
def test_a_configuration_that_does_not_fit_the_weights_is_an_error_of_one_line(tmp_path, config):
    with pytest.raises(
        UserError, match=r"cannot load the text tower .*check the files|builds no text encoder"
    ) as caught:
        build_text(TextSpec(model=str(folder_with(tmp_path, **config))))
    assert "\n" not in str(caught.value)


def test_weights_of_more_layers_than_the_configuration_states_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"weights of layers that its config\.json does not state, such as .*layer\.2"):
        build_text(TextSpec(model=str(folder_with(tmp_path, num_hidden_layers=2))))


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    size = 9
    network = AutoModel.from_config(AutoConfig.from_pretrained(tiny.text("bert"), vocab_size=size))
    shutil.copytree(tiny.text("bert"), tmp_path, dirs_exist_ok=True)
    network.save_pretrained(tmp_path)
    tower = build_text(TextSpec(model=str(tmp_path)))
    with pytest.raises(UserError, match=r"the tokenizer does not belong to the text tower .*gives token \d+, and .* 9"):
        tower.tokenize(CAPTIONS)


def test_a_folder_without_tokenizer_files_is_refused_when_captions_are_read(tmp_path):
    shutil.copytree(tiny.text("bert"), tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob("*tok*"):
        path.unlink()
    for path in tmp_path.glob("vocab*"):
        path.unlink()
    with pytest.raises(UserError, match=r"knows hardly any word|cannot load the text tower"):
        build_text(TextSpec(model=str(tmp_path))).count_cut(CAPTIONS)


def test_a_prompt_that_leaves_no_room_is_refused():
    tower = build_text(TextSpec(model=str(tiny.text("bert")), max_tokens=6, prompt="a red and a blue "))
    with pytest.raises(UserError, match=r"text\.prompt .* takes all of text\.max_tokens = 6"):
        tower.count_cut(CAPTIONS)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    shutil.copytree(tiny.text("bert"), tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    weights["encoder.layer.1.output.dense.weight"][0, 0] = float("nan")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="gives features that are not finite: check its weights"):
        build_text(TextSpec(model=str(tmp_path)))


def test_the_first_token_of_a_decoder_is_no_pooling():
    with pytest.raises(UserError, match=r"text\.pooling = cls .* depend on the first token alone: choose last or mean"):
        architectures.text("qwen3", pooling="cls")


def test_a_mistyped_folder_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "towers").mkdir()
    with pytest.raises(UserError, match="no such folder: towers/bertt"):
        build_text(TextSpec(model="towers/bertt"))
