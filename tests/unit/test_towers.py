from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_data_config

from polyalign.config.tower import Preprocessing, TextSpec, VisionSpec
from polyalign.models.towers.common import fingerprint, masked_pool, structure
from polyalign.models.towers.text import TextTower, Tokens
from polyalign.models.towers.text_loading import build_text
from polyalign.models.towers.vision import VisionTower, make_transform
from polyalign.models.towers.vision_loading import build_vision, preprocessing_of
from polyalign.utils.errors import UserError
from tests import architectures, tiny

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
        ({"model": "vit_tiny_patch16_224"}, "timm cannot build .* .without network, give a local folder"),
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
    with pytest.raises(UserError, match=r"cannot (load the text tower|read .*config.json)") as caught:
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


# What is refused when a tower is built


def test_more_tokens_than_the_encoder_reads_are_refused_with_the_number_that_fits():
    positions = json.loads((tiny.text("xlmr") / "config.json").read_text(encoding="utf-8"))["max_position_embeddings"]
    for family, fits in (("bert", positions), ("xlmr", positions - 2)):  # XLM-R numbers positions from two
        assert encoder(family, max_tokens=fits).max_tokens == fits
        with pytest.raises(UserError, match=rf"cannot read text.max_tokens = 200 tokens: set it to {fits} or less"):
            encoder(family, max_tokens=200)


def test_an_image_size_that_the_model_does_not_take_is_refused():
    with pytest.raises(UserError, match=r"cannot be run on images of 28 x 28 px .*img_size.*: .*28"):
        build_vision(VisionSpec(model=str(tiny.vision()), image_px=28, args={"img_size": 32}))


def test_a_fixed_size_model_is_built_for_the_stated_size():
    weights = tiny.vision() / "model.safetensors"
    args = {**tiny.VIT}
    del args["img_size"]
    spec = VisionSpec(model="vit_tiny_patch16_224", weights=weights, args=args, image_px=(48, 64))
    tower = build_vision(spec)
    assert tower.preprocessing.size == (48, 64)
    assert tower.transform(Image.new("RGB", (90, 70))).shape == (3, 48, 64)
    assert tower.model.pos_embed.shape == (1, 1 + 6 * 8, 32)


def test_a_network_that_ignores_the_mask_is_refused():
    with pytest.raises(UserError, match=r"padding changes the features of the text tower \(FNetModel\)"):
        architectures.text("fnet")


def test_a_grey_model_takes_one_channel():
    tower = build_vision(VisionSpec(model="test_vit", args={"in_chans": 1}), pretrained=False)
    assert tower.transform(Image.new("RGB", (200, 200), (255, 0, 0))).shape[0] == 1
    assert len(tower.preprocessing.mean) == 1


def test_registers_are_no_class_token():
    spec = VisionSpec(model="vit_medium_patch16_reg4_gap_256", args={**tiny.VIT}, image_px=32, pooling="cls")
    with pytest.raises(UserError, match="has no class token"):
        build_vision(spec, pretrained=False)


# Cuts


def test_a_tower_that_gives_other_features_when_cut_is_computed_whole(caplog):
    aligner = architectures.aligned("text", "longformer", "layernorm", "last:1")
    with caplog.at_level("INFO"):
        assert aligner.cuts()[1] == 0
        assert aligner.cuts()[1] == 0
    assert [record.message for record in caplog.records] == [
        "the text tower (LongformerModel) cannot be cut at stage 3: it is computed whole at every step"
    ]


def test_t5_is_cut_although_its_position_bias_comes_from_the_first_block():
    tower = architectures.text("t5")
    x = tower.probe()
    with torch.no_grad():
        for cut in range(tower.whole + 1):
            torch.testing.assert_close(tower.suffix(tower.prefix(x, cut), cut), tower(x), rtol=1e-4, atol=1e-5)


# Images as timm prepares them


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos"])
@pytest.mark.parametrize("px", [32, (24, 40)])
@pytest.mark.parametrize("shape", [(50, 41), (31, 90)])
def test_pixels_are_those_of_timms_own_transform(crop_mode, interpolation, px, shape):
    how = Preprocessing(
        image_px=px, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), crop_pct=0.9, interpolation=interpolation,
        crop_mode=crop_mode,
    )  # fmt: skip
    image = Image.effect_noise(shape, 80).convert("RGB")
    tower = build_vision(VisionSpec(model=str(tiny.conv())), preprocessing=how)
    reference = create_transform(
        (3, *how.size), is_training=False, interpolation=interpolation, mean=how.mean, std=how.std, crop_pct=0.9,
        crop_mode=crop_mode,
    )  # fmt: skip
    scaled = (tower.transform(image) - tower.mean) / tower.std
    worst = (scaled[0] - reference(image)).abs() * tower.std[0] / 255
    assert worst.max() <= 1 / 255


@pytest.mark.parametrize(
    "name",
    [
        "vit_base_patch16_siglip_224",
        "vit_base_patch16_clip_224.openai",
        "efficientnet_b0.ra_in1k",
        "eva02_base_patch14_448.mim_in22k_ft_in22k",
        "convnext_base.clip_laion2b_augreg_ft_in12k_in1k_384",
        "resnet50.a1_in1k",
        "tf_efficientnetv2_b0.in1k",
        "vit_so150m2_patch16_reg1_gap_256.sbb_e200_in12k_ft_in1k",
        "beit_base_patch16_224.in22k_ft_in22k_in1k",
        "mobilenetv4_conv_small.e2400_r224_in1k",
    ],
)
def test_preprocessing_is_read_from_timms_configuration_of_the_weights(name):
    config = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    how = preprocessing_of(config)
    image = Image.effect_noise((300, 217), 80).convert("RGB")
    ours = make_transform(how)(image)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (how.mean, how.std))
    theirs = create_transform(**config, is_training=False)(image) * std + mean
    assert (ours / 255 - theirs).abs().max() <= 1 / 255


@pytest.mark.parametrize(
    ("stated", "complaint"),
    [
        ({"mean": (0.5,)}, "mean has 1 values and std 3"),
        ({"std": (0.0, 0.5, 0.5)}, "std must be above zero"),
        ({"mean": (0.5,), "std": (0.2,)}, "cannot be run"),
        ({"args": {"global_pool": ""}, "pooling": "tower"}, "gives features of shape .* not one vector a row"),
    ],
)
def test_preprocessing_and_pooling_that_cannot_be_right_are_refused(stated, complaint):
    with pytest.raises(UserError, match=complaint) as caught:
        vit(**stated)
    assert "\n" not in str(caught.value)
