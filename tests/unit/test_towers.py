from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from polyalign.config.tower import TextSpec, VisionSpec
from polyalign.models.towers.common import fingerprint, masked_pool, structure
from polyalign.models.towers.text import TextTower, Tokens
from polyalign.models.towers.text_loading import build_text
from polyalign.models.towers.vision import VisionTower
from polyalign.models.towers.vision_loading import build_vision
from polyalign.utils.errors import UserError
from tests import tiny

FAMILIES = ("bert", "xlmr", "distilbert")
CAPTIONS = ["red", "a red and a blue , below a green then a white", "black yellow"]


def vit(pooling: str = "tower", **spec: object) -> VisionTower:
    return build_vision(VisionSpec(model=str(tiny.vision()), pooling=pooling, **spec)).eval()


def encoder(family: str = "bert", **spec: object) -> TextTower:
    return build_text(TextSpec(model=str(tiny.text(family)), **spec)).eval()


def pixels(count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, tiny.PX, tiny.PX), generator=generator, dtype=torch.uint8)


# Pooling


def test_masked_pooling_by_hand():
    tokens = torch.tensor([[[1.0, -4.0], [3.0, -2.0], [100.0, 100.0]], [[5.0, 6.0], [-100.0, -100.0], [7.0, 7.0]]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_pool(tokens, mask, "cls").tolist() == [[1, -4], [5, 6]]
    assert masked_pool(tokens, mask, "mean").tolist() == [[2, -3], [5, 6]]
    assert masked_pool(tokens, mask, "max").tolist() == [[3, -2], [5, 6]]


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_masked_pooling_equals_a_naive_twin(pooling):
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(5, 7, 3)).astype(np.float32)
    lengths = [1, 7, 3, 4, 6]
    mask = np.arange(7) < np.array(lengths)[:, None]
    reduce = {"cls": lambda x: x[0], "mean": lambda x: x.mean(0), "max": lambda x: x.max(0)}[pooling]
    naive = np.stack([reduce(row[:length]) for row, length in zip(tokens, lengths, strict=True)])
    found = masked_pool(torch.from_numpy(tokens), torch.from_numpy(mask), pooling)
    np.testing.assert_allclose(found.numpy(), naive, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_vision_pooling_leaves_the_class_token_out_of_means(pooling):
    tower = vit(pooling)
    tokens = tower.model.forward_features((pixels() - tower.mean) / tower.std)
    naive = {"cls": tokens[:, 0], "mean": tokens[:, 1:].mean(1), "max": tokens[:, 1:].amax(1)}[pooling]
    torch.testing.assert_close(tower(pixels()), naive)


@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize("model", ["test_resnet", "test_convnext", "swin_tiny_patch4_window7_224"])
def test_vision_pooling_of_a_map_is_over_places_whatever_their_order(model, pooling):
    args = {"img_size": 64, "depths": (1, 1), "embed_dim": 24, "num_heads": (2, 2)} if "swin" in model else {}
    spec = VisionSpec(model=model, args=args, pooling=pooling, image_px=64)
    tower = build_vision(spec, pretrained=False).eval()
    x = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    found = tower(x)
    places = tower.model.forward_features((x - tower.mean) / tower.std)
    channels = places.flatten(1, 2) if "swin" in model else places.flatten(2).transpose(1, 2)
    assert found.shape == (2, tower.width)
    torch.testing.assert_close(found, channels.mean(1) if pooling == "mean" else channels.amax(1))


@pytest.mark.parametrize("pooling", ["tower", "mean"])
def test_width_is_what_the_pooling_gives_where_a_head_widens_it(pooling):
    tower = build_vision(VisionSpec(model="mobilenetv3_small_050", pooling=pooling), pretrained=False).eval()
    assert tower(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).shape == (1, tower.width)


def test_a_network_without_a_class_token_says_so():
    with pytest.raises(UserError, match=r"has no class token: choose vision\.pooling tower, mean or max"):
        build_vision(VisionSpec(model=str(tiny.conv()), pooling="cls"))


# Stages


@pytest.mark.parametrize("pooling", ["tower", "cls", "mean", "max"])
def test_a_vision_tower_cut_anywhere_gives_what_the_whole_gives(pooling):
    tower = vit(pooling)
    assert tower.whole == len(tower.stages()) == 5
    whole = tower(pixels())
    for cut in range(tower.whole + 1):
        assert torch.equal(tower.suffix(tower.prefix(pixels(), cut), cut), whole), cut


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_tower_cut_anywhere_gives_what_the_whole_gives(family, pooling):
    tower = encoder(family, pooling=pooling)
    assert tower.whole == len(tower.stages()) == 5
    tokens = tower.collate(tower.tokenize(CAPTIONS))
    whole = tower(tokens)
    for cut in range(tower.whole + 1):
        below = tower.prefix(tokens, cut)
        assert isinstance(below, Tokens) == (cut < tower.whole)
        assert torch.equal(tower.suffix(below, cut), whole), cut


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_tower_gives_what_its_model_gives(family):
    tower = encoder(family, pooling="mean")
    tokens = tower.collate(tower.tokenize(CAPTIONS))
    hidden = tower.model(input_ids=tokens.ids, attention_mask=tokens.mask.long()).last_hidden_state
    torch.testing.assert_close(tower(tokens), masked_pool(hidden, tokens.mask, "mean"))


def test_a_vision_tower_gives_what_timm_gives_for_its_own_preprocessing():
    tower = vit()
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, **tiny.VIT).eval()
    network.load_state_dict(load_file(tiny.vision() / "model.safetensors"))
    expected = network((pixels() / 255 - 0.5) / 0.25)
    torch.testing.assert_close(tower(pixels()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tower", [vit, encoder], ids=["vision", "text"])
def test_stages_hold_every_parameter_once(tower):
    built = tower()
    found = [id(parameter) for stage in built.stages() for parameter in stage]
    assert len(found) == len(set(found))
    assert set(found) == {id(parameter) for parameter in built.model.parameters()}


def test_a_network_without_transformer_blocks_is_one_stage():
    tower = build_vision(VisionSpec(model=str(tiny.conv())))
    assert (tower.whole, len(tower.stages()), tower.blocks) == (1, 1, [])


# Padding and tokens


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_no_embedding(family, pooling):
    tower = encoder(family, pooling=pooling)
    ids = tower.tokenize(CAPTIONS)
    assert len({len(sequence) for sequence in ids}) == 3
    together = tower(tower.collate(ids))
    for row, sequence in enumerate(ids):
        torch.testing.assert_close(tower(tower.collate([sequence]))[0], together[row], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_long_captions_are_cut_by_the_tokenizer_and_keep_their_end_token(family):
    tower = encoder(family, max_tokens=6)
    short, long = tower.tokenize(["red", " ".join(["blue"] * 40)])
    assert len(long) == 6
    assert (short[0], short[-1]) == (long[0], long[-1])


def test_a_text_without_spaces_is_cut_too():
    assert [len(ids) for ids in encoder("xlmr", max_tokens=8).tokenize(["red" * 50])] == [8]


def test_no_captions_give_no_tokens():
    assert encoder().tokenize([]) == []


# Preprocessing


def test_an_image_becomes_pixels_of_the_towers_size():
    image = Image.effect_noise((50, 41), 80).convert("RGB")
    found = vit().transform(image)
    assert (found.shape, found.dtype) == ((3, tiny.PX, tiny.PX), torch.uint8)


def test_preprocessing_is_the_folders_and_a_recipe_may_state_another():
    assert vit().preprocessing.mean == (0.5, 0.5, 0.5)
    stated = vit(mean=(0.1, 0.2, 0.3), crop_pct=0.5)
    assert stated.preprocessing.mean == (0.1, 0.2, 0.3)
    assert (stated.preprocessing.std, stated.preprocessing.crop_pct) == ((0.25, 0.25, 0.25), 0.5)


def test_preprocessing_of_a_timm_model_is_timms_own():
    tower = build_vision(VisionSpec(model="deit_base_patch16_224", args={"img_size": 256}), pretrained=False)
    assert tower.preprocessing.mean == pytest.approx((0.485, 0.456, 0.406))
    assert tower.preprocessing.image_px == 256


def test_saved_preprocessing_replaces_all_of_the_models():
    saved = vit().preprocessing.model_copy(update={"image_px": 48})
    tower = build_vision(VisionSpec(model=str(tiny.conv())), preprocessing=saved)
    assert tower.preprocessing == saved


# Local files


def test_a_safetensors_file_goes_with_the_timm_name_and_arguments():
    half = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    weights = tiny.vision() / "model.safetensors"
    spec = VisionSpec(model="vit_tiny_patch16_224", weights=weights, args=tiny.VIT, **half)
    tower = build_vision(spec).eval()
    assert torch.equal(tower(pixels()), vit()(pixels()))
    assert tower.fingerprint == vit().fingerprint


def test_fingerprints_tell_weights_apart_and_nothing_else():
    one, other = vit().model, vit().model
    assert fingerprint(one) == fingerprint(other)
    with torch.no_grad():
        next(other.parameters()).flatten()[0] += 1e-6
    assert fingerprint(one) != fingerprint(other)


def test_building_without_weights_is_random_and_has_no_fingerprint():
    tower = build_vision(VisionSpec(model=str(tiny.vision())), pretrained=False)
    assert tower.fingerprint is None
    assert build_text(TextSpec(model=str(tiny.text())), pretrained=False).fingerprint is None


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ({"model": "vit_tny_patch16_224"}, 'timm knows no model "vit_tny_patch16_224": did you mean "vit_'),
        ({"model": "./nowhere"}, r"no such folder: \./nowhere"),
        ({"model": "timm/some-model"}, "no such folder: timm/some-model .a hub model is written hf-hub:timm/some"),
        ({"model": "vit_tiny_patch16_224", "args": {"img_sizes": 32}}, "timm cannot build vit_tiny_patch16_224 with"),
        ({"model": "vit_tiny_patch16_224", "weights": "gone.safetensors"}, "cannot read weights from gone.safetensors"),
        ({"model": "vit_tiny_patch16_224"}, "timm cannot build .* .offline. give a local folder"),
    ],
)
def test_a_vision_tower_that_is_not_there_is_an_error_of_one_line(spec, complaint, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=complaint) as caught:
        build_vision(VisionSpec(**spec))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("facts", "complaint"),
    [
        ("model = ", "cannot read .*tower.toml"),
        ('model = "vit_tiny_patch16_224"\nimg_size = 3', "tower.toml: img_size: Extra inputs"),
        ("args = { depth = 1 }", "tower.toml: model: Field required"),
    ],
)
def test_a_folder_that_says_nonsense_is_an_error_of_one_line(facts, complaint, tmp_path):
    (tmp_path / "tower.toml").write_text(facts, encoding="utf-8")
    with pytest.raises(UserError, match=complaint) as caught:
        build_vision(VisionSpec(model=str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_an_empty_folder_is_no_tower(tmp_path):
    with pytest.raises(UserError, match=r"holds no vision tower: expected tower\.toml"):
        build_vision(VisionSpec(model=str(tmp_path)))
    with pytest.raises(UserError, match="cannot load the text tower"):
        build_text(TextSpec(model=str(tmp_path)))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda state: state.pop("norm.weight"), r"does not fit the model: 1 tensors missing \['norm.weight'\]"),
        (lambda state: state.update(odd=torch.zeros(1)), r"0 tensors missing \[\], 1 not wanted \['odd'\]"),
        (lambda state: state.update({"norm.weight": torch.zeros(3)}), "size mismatch for norm.weight.*check the timm"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, complaint, tmp_path):
    state = load_file(tiny.vision() / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "w.safetensors")
    spec = VisionSpec(model="vit_tiny_patch16_224", args=tiny.VIT, weights=tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=complaint):
        build_vision(spec)


def test_a_classifier_in_the_weights_is_left_out(tmp_path):
    state = load_file(tiny.vision() / "model.safetensors")
    save_file({**state, "head.weight": torch.zeros(10, 32), "head.bias": torch.zeros(10)}, tmp_path / "w.safetensors")
    tower = build_vision(VisionSpec(model="vit_tiny_patch16_224", args=tiny.VIT, weights=tmp_path / "w.safetensors"))
    assert tower.fingerprint == vit().fingerprint


@pytest.mark.parametrize("model", ["./nowhere", "/nowhere", "google-bert/bert-base-uncased"])
def test_a_text_tower_that_is_not_there_is_an_error_of_one_line(model):
    with pytest.raises(UserError, match=r"no such folder|cannot load the text tower .* local folder") as caught:
        build_text(TextSpec(model=model))
    assert "\n" not in str(caught.value)


def test_a_text_tower_whose_weights_are_not_all_there_is_refused(tmp_path):
    folder = shutil.copytree(tiny.text(), tmp_path / "text")
    state = load_file(folder / "model.safetensors")
    lost = next(name for name in state if "layer.1" in name)
    del state[lost]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"lacks 1 of the tower's weights, such as {lost}"):
        build_text(TextSpec(model=str(folder)))


@pytest.mark.parametrize("content", [b"{}", b"\x00nothing of the kind", b""])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_text_tower_with_a_corrupt_file_is_an_error_of_one_line(name, content, tmp_path):
    folder = shutil.copytree(tiny.text("xlmr"), tmp_path / "text")
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match="cannot load the text tower") as caught:
        build_text(TextSpec(model=str(folder)))
    assert "\n" not in str(caught.value)


def test_weights_of_the_head_may_be_missing_and_nothing_is_said_of_it(tmp_path, capfd):
    folder = shutil.copytree(tiny.text(), tmp_path / "text")
    state = load_file(folder / "model.safetensors")
    bare = {name: tensor for name, tensor in state.items() if not name.startswith("pooler.")}
    assert len(bare) < len(state)
    save_file(bare, folder / "model.safetensors", {"format": "pt"})
    capfd.readouterr()
    assert build_text(TextSpec(model=str(folder))).fingerprint == encoder().fingerprint
    assert capfd.readouterr() == ("", "")


def test_a_stated_architecture_must_be_that_of_the_weights():
    right = {"model_type": "bert", "hidden_size": 32}
    assert encoder(architecture=right).width == 32
    with pytest.raises(UserError, match=r"is not the architecture the recipe states: it has {'hidden_size': 32}"):
        encoder(architecture={**right, "hidden_size": 64})


def test_an_architecture_is_enough_to_count_parameters(tmp_path):
    config = json.loads((tiny.text() / "config.json").read_text(encoding="utf-8"))
    stated = {key: config[key] for key in ("model_type", "vocab_size", "max_position_embeddings", *tiny.SIZES)}
    with torch.device("meta"):
        tower = build_text(TextSpec(model="not/there", architecture=stated), pretrained=False)
    assert sum(p.numel() for p in tower.parameters()) == sum(p.numel() for p in encoder().parameters())


@pytest.mark.parametrize("architecture", [{"model_type": "birt"}, {"hidden_size": 32}])
def test_an_architecture_of_no_known_type_is_an_error_of_one_line(architecture):
    with pytest.raises(UserError, match="cannot read the configuration of not/there") as caught:
        build_text(TextSpec(model="not/there", architecture=architecture), pretrained=False)
    assert "\n" not in str(caught.value)


def test_bert_is_taken_without_its_sentence_classifier():
    assert not [name for name, _ in encoder().named_parameters() if "pooler" in name]


@pytest.mark.parametrize("tower", [vit, encoder], ids=["vision", "text"])
def test_reinitialising_changes_every_matrix_and_no_shape(tower):
    built = tower()
    before = {name: parameter.clone() for name, parameter in built.named_parameters()}
    built.reinitialise()
    after = dict(built.named_parameters())
    assert {name: p.shape for name, p in before.items()} == {name: p.shape for name, p in after.items()}
    assert not [name for name, p in before.items() if torch.equal(p, after[name])]


def test_the_structure_tells_apart_what_the_weights_do_not():
    def network(**args: object) -> torch.nn.Module:
        return timm.create_model("vit_tiny_patch16_224", num_classes=0, **{**tiny.VIT, **args})

    plain = structure(network())
    assert structure(network().eval()) == plain
    others = [network(num_heads=4), network(act_layer="relu"), network(global_pool="avg"), network(pre_norm=True)]
    assert len({plain, *map(structure, others)}) == 5


def test_text_weights_in_a_pickle_are_refused(tmp_path):
    folder = shutil.copytree(tiny.text(), tmp_path / "text")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"cannot load the text tower .*model\.safetensors") as caught:
        build_text(TextSpec(model=str(folder)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pretrained", [True, False])
def test_code_that_comes_with_a_text_tower_is_never_run_nor_asked_about(pretrained, tmp_path, monkeypatch):
    ran, asked = tmp_path / "ran", []
    (tmp_path / "mine.py").write_text(f"from pathlib import Path\nPath({str(ran)!r}).touch()\n")
    named = {"AutoConfig": "mine.Config", "AutoModel": "mine.Model", "AutoTokenizer": ["mine.Words", None]}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": named}))
    monkeypatch.setattr("builtins.input", lambda prompt="": asked.append(prompt) or "y")
    with pytest.raises(UserError, match=r"cannot load the text tower|cannot read the configuration"):
        build_text(TextSpec(model=str(tmp_path)), pretrained=pretrained)
    assert not asked
    assert not ran.exists()
