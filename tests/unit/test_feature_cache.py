from __future__ import annotations

import json
import os
import shutil
from importlib.metadata import version

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from polyalign.config import plugins
from polyalign.config.schema import Cache
from polyalign.data.pairs import FileImage, PairTable
from polyalign.models import feature_cache as cache
from polyalign.models.embed import embed, prepare
from polyalign.models.feature_cache import CachedFeatures
from polyalign.training.train import Loop
from polyalign.utils import row_blocks, row_files, row_store
from polyalign.utils.errors import UserError
from tests import tiny

FULL, HALF, NONE = Cache(dtype="float32"), Cache(dtype="float16"), Cache(prefix=False)
BF16 = Cache(dtype="float32", precision="bf16")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("POLYALIGN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


@pytest.fixture(scope="module")
def table() -> PairTable:
    return tiny.table().take_pairs(range(20))


@pytest.fixture
def frozen():
    return tiny.aligner()


def rows_in(_) -> list[int]:
    return [entry.rows for entry in row_blocks.entries()]


def stores_in(_) -> list[str]:
    return sorted(entry.name for entry in row_blocks.entries())


# The same training with and without


def trained(
    name: str, layers: str, towers: str, config: Cache, tmp_path
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Train four steps and give the losses and what came out."""
    sections = {"strategy": {"layers": layers, "towers": towers}, "text": {"model": str(tiny.text("xlmr"))}}
    recipe = tiny.resolved(name, **sections, optim={"epochs": 1}, train={"evals": 4})
    aligner = tiny.build_aligner(recipe)
    features = {split: prepare(aligner, tiny.table(split), config) for split in ("train", "dev")}
    loop = Loop(recipe, aligner, features["train"], [features["dev"]], Accelerator())
    state = loop.run(tmp_path / "state", resume=False)
    return [look.loss for look in state.dev_evaluations], {name: p.detach() for name, p in aligner.trainable().items()}


# Of these nothing lies below what trains.
WHOLE = ("bitfit", "full", "scratch")
RUNS = [
    (name, layers, "text" if name == "lit" else "both")
    for name in plugins.plugin_names("strategies")
    for layers in ("all", "last:1")
    if (name, layers) != ("scratch", "last:1") and not (name in WHOLE and layers == "all")
]


@pytest.mark.parametrize("name", WHOLE)
def test_a_strategy_that_trains_from_the_bottom_up_has_only_pixels_cached(name, table, folder):
    features = prepare(tiny.aligner(name), table, FULL)
    assert (features.images.cut, features.captions.cut) == (0, 0)
    assert [path.split("-")[:2] for path in stores_in(folder)] == [["vision", "0"]]


@pytest.mark.parametrize(("name", "layers", "towers"), RUNS, ids=map("-".join, RUNS))
def test_losses_and_weights_are_the_same_with_and_without_it(name, layers, towers, tmp_path):
    losses, weights = trained(name, layers, towers, FULL, tmp_path)
    plain_losses, plain_weights = trained(name, layers, towers, NONE, tmp_path)
    assert len(losses) == 4
    np.testing.assert_allclose(losses, plain_losses, rtol=1e-5)
    for key, weight in weights.items():
        # The softmax does not see a bias on the keys: its gradient is rounding alone, which Adam makes steps of.
        if not key.endswith(("key.bias", "qkv.bias")):
            torch.testing.assert_close(weight, plain_weights[key], rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.parametrize(("name", "layers"), [("projection", "all"), ("lit", "all"), ("lilt", "last:1")])
def test_half_precision_is_close(name, layers, tmp_path):
    losses, _ = trained(name, layers, "text", HALF, tmp_path)
    plain_losses, _ = trained(name, layers, "text", NONE, tmp_path)
    np.testing.assert_allclose(losses, plain_losses, rtol=5e-3)


def test_embeddings_are_the_same_with_and_without_it(frozen, table):
    plain = embed(frozen, table, config=NONE)
    for config, tolerance in ((FULL, 1e-5), (HALF, 2e-2)):
        found = embed(frozen, table, config=config)
        np.testing.assert_allclose(found.images, plain.images, atol=tolerance)
        np.testing.assert_allclose(found.captions, plain.captions, atol=tolerance)


@pytest.mark.parametrize("cut", range(6))
def test_a_store_holds_what_the_stage_takes(frozen, table, cut):
    images, captions = (
        cache.image_features(frozen.vision, table.images, cut, FULL),
        cache.caption_features(frozen.text, table.captions, cut, FULL),
    )
    rows = np.array([3, 0, 7])
    pixels = torch.stack([frozen.vision.transform(table.images[row].open()) for row in rows])
    tokens = frozen.text.collate(frozen.text.tokenize([table.captions[row] for row in rows]))
    with torch.no_grad():
        stage = frozen.vision.prefix(pixels, cut)
        torch.testing.assert_close(images.batch(rows), stage, rtol=1e-4, atol=1e-5)
        stage = frozen.text.prefix(tokens, cut)
    found = captions.batch(rows)
    if cut == 0:
        assert torch.equal(found.mask, stage.mask)
        assert torch.equal(found.ids, stage.ids)
    elif cut < 5:
        assert torch.equal(found.mask, stage.mask)
        torch.testing.assert_close(found.hidden[stage.mask], stage.hidden[stage.mask], rtol=1e-4, atol=1e-5)
    else:
        torch.testing.assert_close(found, stage, rtol=1e-4, atol=1e-5)
    assert len(images) == len(table.images)
    assert len(captions) == len(table.captions)
    assert images.batch(rows).dtype == (torch.uint8 if cut == 0 else torch.float32)


@pytest.mark.parametrize("cut", [1, 3, 5])
def test_captions_filled_in_order_of_length_lie_where_each_alone_would(frozen, cut, monkeypatch):
    captions = [" ".join(["red"] * count) for count in (7, 2, 9, 1, 5, 2, 8, 3, 6, 4)]
    captions[5] = "blue then"  # as long as the second, and another
    monkeypatch.setattr(cache, "_BATCH", 3)
    widths, whole = [], frozen.text.prefix

    def noted(x, cut):
        widths.append(x.ids.shape[1])
        return whole(x, cut)

    monkeypatch.setattr(frozen.text, "prefix", noted)
    store = cache.caption_features(frozen.text, captions, cut, FULL)
    assert widths == [4, 7, 10, 11]  # two of them special; in the order given it would be 11, 7, 10, 6
    for row, caption in enumerate(captions):
        tokens = frozen.text.collate(frozen.text.tokenize([caption]))
        with torch.no_grad():
            alone, found = whole(tokens, cut), store.batch(np.array([row]))
        if cut < 5:
            alone, found = alone.hidden, found.hidden
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)


def test_a_ragged_batch_by_hand():
    store = CachedFeatures(np.array([1, 2, 3, 4, 5, 6]), 0, np.array([0, 3, 4, 6]), pad=9)
    batch = store.batch(np.array([1, 2, 1]))
    assert batch.ids.tolist() == [[4, 9], [5, 6], [4, 9]]
    assert batch.mask.tolist() == [[True, False], [True, True], [True, False]]
    assert len(store) == 3


# Found again, and only when it is the same


def test_a_second_run_finds_it_and_runs_no_tower(frozen, table, monkeypatch):
    first = prepare(frozen, table, FULL)
    again = tiny.aligner()

    def fail(*_):
        raise AssertionError("the frozen part ran again")

    monkeypatch.setattr(again.vision, "prefix", fail)
    monkeypatch.setattr(again.text, "prefix", fail)
    second = prepare(again, table, FULL)
    assert np.array_equal(first.images.values, second.images.values)
    assert np.array_equal(first.captions.values, second.captions.values)
    spent = cache.together([first.images, first.captions])
    assert cache.together([second.images, second.captions, first.images]) == spent
    assert spent.seconds > 0
    assert spent.cpu_seconds > 0


def test_strategies_share_what_lies_below_them(table, folder):
    prepare(tiny.aligner("lit"), table, FULL)
    prepare(tiny.aligner("projection"), table, FULL)
    prepare(tiny.aligner("lora", strategy={"layers": "last:1"}), table, FULL)
    prepare(tiny.aligner("lilt", strategy={"layers": "last:1"}), table, FULL)
    kinds = [name.rsplit("-", 1)[0] for name in stores_in(folder)]
    assert kinds == ["text-3", "text-5", "vision-3", "vision-5"]


@pytest.mark.parametrize(
    ("kind", "other"),
    [
        ("vision", {"pooling": "mean"}),
        ("vision", {"pooling": "max"}),
        ("vision", {"crop_pct": 0.5}),
        ("vision", {"mean": (0.1, 0.1, 0.1)}),
        ("vision", {"args": {"num_heads": 4}}),
        ("text", {"pooling": "max"}),
        ("text", {"model": "xlmr"}),
    ],
)
def test_another_way_of_computing_is_not_found_as_the_first(kind, other, table, folder):
    if kind == "text" and "model" in other:
        other = {"model": str(tiny.text(other["model"]))}
    prepare(tiny.aligner(), table, FULL)
    assert len(stores_in(folder)) == 2
    aligner = tiny.aligner(**{kind: other})
    found = embed(aligner, table, config=FULL)
    assert len(stores_in(folder)) == 3
    plain = embed(aligner, table, config=NONE)
    np.testing.assert_allclose(found.images, plain.images, atol=1e-5)
    np.testing.assert_allclose(found.captions, plain.captions, atol=1e-5)


def test_captions_that_are_cut_are_not_found_as_whole_ones(table):
    prepare(tiny.aligner(), table, FULL)
    aligner = tiny.aligner(text={"max_tokens": 5})
    found, plain = (embed(aligner, table, config=config) for config in (FULL, NONE))
    np.testing.assert_allclose(found.captions, plain.captions, atol=1e-5)


def edited_text(tmp_path, **changes):
    """A copy of the text tower whose weights are the same and whose config.json is not."""
    out = shutil.copytree(tiny.text(), tmp_path / "text")
    facts = json.loads((out / "config.json").read_text(encoding="utf-8"))
    (out / "config.json").write_text(json.dumps({**facts, **changes}), encoding="utf-8")
    return {"model": str(out)}


@pytest.mark.parametrize("changes", [{"num_attention_heads": 4}, {"hidden_act": "relu"}, {"layer_norm_eps": 0.1}])
def test_the_same_text_weights_with_another_config_are_not_found_as_the_first(changes, table, folder, tmp_path):
    prepare(tiny.aligner(), table, FULL)
    aligner = tiny.aligner(text=edited_text(tmp_path, **changes))
    found = embed(aligner, table, config=FULL)
    assert len(stores_in(folder)) == 3
    np.testing.assert_allclose(found.captions, embed(aligner, table, config=NONE).captions, atol=1e-5)


def test_where_a_tower_lies_and_who_wrote_its_config_change_no_key(table, folder, tmp_path):
    prepare(tiny.aligner(), table, FULL)
    vision = shutil.copytree(tiny.vision(), tmp_path / "vision")
    prepare(
        tiny.aligner(vision={"model": str(vision)}, text=edited_text(tmp_path, transformers_version="0.1")), table, FULL
    )
    assert len(stores_in(folder)) == 2


def timm_folder(out, **changes):
    """The vision tower as a folder in timm's own format, whose arguments are in its config.json."""
    out.mkdir()
    shutil.copy(tiny.vision() / "model.safetensors", out)
    facts = {"architecture": "vit_tiny_patch16_224", "num_classes": 0, "model_args": {**tiny.VIT, **changes}}
    facts["pretrained_cfg"] = {"input_size": [3, tiny.PX, tiny.PX], "num_classes": 0}
    (out / "config.json").write_text(json.dumps(facts), encoding="utf-8")
    return {"model": str(out)}


def test_the_same_timm_folder_with_other_arguments_is_not_found_as_the_first(table, folder, tmp_path):
    prepare(tiny.aligner(vision=timm_folder(tmp_path / "vision")), table, FULL)
    shutil.rmtree(tmp_path / "vision")
    aligner = tiny.aligner(vision=timm_folder(tmp_path / "vision", num_heads=4))
    found = embed(aligner, table, config=FULL)
    assert len(stores_in(folder)) == 3
    np.testing.assert_allclose(found.images, embed(aligner, table, config=NONE).images, atol=1e-5)


@pytest.mark.parametrize(
    ("library", "release", "new"),
    [
        ("torch", "99.1.0", ["text-5", "vision-5"]),
        ("timm", "99.1.0", ["vision-5"]),
        ("transformers", "99.1.0", ["text-5"]),
        ("numpy", "99.1.0", []),
    ],
)
def test_features_of_another_version_of_a_library_are_not_found(library, release, new, table, folder, monkeypatch):
    prepare(tiny.aligner(), table, FULL)
    before, aligner = stores_in(folder), tiny.aligner()
    monkeypatch.setattr(cache, "version", lambda name: release if name == library else version(name))
    prepare(aligner, table, FULL)
    assert [name.rsplit("-", 1)[0] for name in stores_in(folder) if name not in before] == new


@pytest.mark.parametrize("name", ["lilt", "lit", "layernorm", "full"])
def test_a_trained_tower_that_was_frozen_again_is_not_kept_as_the_pretrained_one(name, table, folder):
    trained, plain = tiny.aligner(name), tiny.aligner()
    with torch.no_grad():
        for parameter in trained.trainable().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    trained.requires_grad_(False)
    expected = embed(trained, table, config=NONE), embed(plain, table, config=NONE)
    assert np.abs(expected[0].captions - expected[1].captions).max() > 0.01
    row_files.clear()
    for aligner, right in zip((trained, plain), expected, strict=True):
        found = embed(aligner, table, config=FULL)
        np.testing.assert_allclose(found.images, right.images, atol=1e-5)
        np.testing.assert_allclose(found.captions, right.captions, atol=1e-5)
    pretrained = [name for name in stores_in(folder) if name.startswith("text-5")]
    prepare(trained, table, FULL)
    assert [name for name in stores_in(folder) if name.startswith("text-5")] == pretrained
    assert len(pretrained) == 1


def test_a_reinitialised_tower_is_never_kept_as_the_pretrained_one(table, folder):
    scratch = tiny.aligner("scratch")
    scratch.requires_grad_(False)
    for tower, refs, fill in (
        (scratch.vision, table.images, cache.image_features),
        (scratch.text, table.captions, cache.caption_features),
    ):
        assert len(fill(tower, refs, 5, FULL)) == len(refs)
    assert stores_in(folder) == []


@pytest.mark.parametrize("cut", [0, 5])
def test_a_changed_image_file_is_not_found_as_the_old_one(frozen, cut, tmp_path, folder):
    path = tmp_path / "photo.png"
    shutil.copy(tiny.table().images[0].path, path)
    old = cache.image_features(frozen.vision, [FileImage(path)], cut, FULL).batch(np.array([0]))
    os.utime(path, ns=(1, 1))
    same = cache.image_features(frozen.vision, [FileImage(path)], cut, FULL).batch(np.array([0]))
    assert torch.equal(old, same)
    assert rows_in(folder) == [2]
    shutil.copy(tiny.table().images[1].path, path)
    new = cache.image_features(frozen.vision, [FileImage(path)], cut, FULL).batch(np.array([0]))
    assert not torch.equal(old, new)
    assert rows_in(folder) == [3]


@pytest.mark.parametrize("cut", [0, 3, 5])
def test_tables_share_what_they_have_in_common(cut, frozen, table, folder, monkeypatch):
    """Whatever the order of tables and rows, each image and caption is computed once, and its values are right."""
    images, captions = list(table.images), ["red", "a red and blue", "green", "red then blue", "a blue and a green"]
    alone = [cache.image_features(frozen.vision, [one], cut, NONE if cut == 0 else FULL).values[0] for one in images]
    words = [cache.caption_features(frozen.text, [one], cut, FULL) for one in captions]
    row_files.clear()
    seen, whole = [], frozen.vision.prefix
    monkeypatch.setattr(frozen.vision, "prefix", lambda x, cut: seen.append(len(x)) or whole(x, cut))
    for rows in ([3, 1], [1, 2, 3, 3, 1], [4], [0, 1, 2, 3, 4], [4, 2, 0]):
        found = cache.image_features(frozen.vision, [images[row] for row in rows], cut, FULL)
        assert len(found) == len(rows)
        for place, row in enumerate(rows):
            np.testing.assert_allclose(found.batch(np.array([place]))[0], alone[row], rtol=1e-4, atol=1e-5)
        found = cache.caption_features(frozen.text, [captions[row] for row in rows], cut, FULL)
        for place, row in enumerate(rows):
            one, other = (store.batch(np.array([at])) for store, at in ((found, place), (words[row], 0)))
            if cut < 5:
                assert torch.equal(one.ids, other.ids)
                one, other = (x.hidden if cut else x.ids for x in (one, other))
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert seen == [2, 1, 1, 1]


def test_ten_photos_more_are_ten_photos_to_compute(frozen, folder, tmp_path, monkeypatch):
    rng, paths = np.random.default_rng(0), [tmp_path / f"{number}.png" for number in range(210)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(path)
    opened, whole = [], FileImage.open
    monkeypatch.setattr(FileImage, "open", lambda self: opened.append(self.path) or whole(self))
    refs = [FileImage(path) for path in paths]
    cache.image_features(frozen.vision, refs[:50] + refs[60:], 5, FULL)
    opened.clear()
    found = cache.image_features(frozen.vision, refs, 5, FULL)
    assert sorted(opened) == sorted(paths[50:60])
    assert np.array_equal(found.values[0:210], cache.image_features(frozen.vision, refs, 5, FULL).values[0:210])
    row_files.clear()
    np.testing.assert_allclose(found.values, cache.image_features(frozen.vision, refs, 5, FULL).values, atol=1e-5)


def test_what_several_tables_took_counts_each_row_once(frozen, table):
    whole = cache.image_features(frozen.vision, table.images, 5, FULL)
    halves = [cache.image_features(frozen.vision, table.images[part], 5, FULL) for part in (slice(6), slice(4, None))]
    spent, both = cache.together([whole]), cache.together(halves)
    assert both.seconds == pytest.approx(spent.seconds)
    assert cache.together([*halves, whole]).seconds == pytest.approx(spent.seconds)
    assert cache.together(halves[:1]).seconds == pytest.approx(spent.seconds * 6 / len(whole))
    text = cache.caption_features(frozen.text, table.captions, 5, FULL)
    assert cache.together([whole, text]).seconds > spent.seconds


def test_precisions_are_kept_apart(frozen, table, folder):
    for config in (FULL, HALF, FULL):
        assert prepare(frozen, table, config).images.values.dtype == config.dtype
    assert len(stores_in(folder)) == 4


def test_what_was_computed_in_bf16_is_kept_apart(frozen, table, folder, monkeypatch):
    prepare(frozen, table, FULL)
    plain = stores_in(folder)
    for gains, kept in ((False, 2), (True, 4)):
        monkeypatch.setattr(cache.precision, "_cpu_gains", lambda gains=gains: gains)
        prepare(frozen, table, FULL.model_copy(update={"precision": "auto"}))
        assert len(stores_in(folder)) == kept
    prepare(frozen, table, BF16)
    assert len(stores_in(folder)) == 4
    assert set(plain) < set(stores_in(folder))


@pytest.mark.parametrize("strategy", ["projection", "lilt", "lilt-deep"])
def test_embeddings_in_bf16_are_close_and_of_unit_length(strategy, table):
    # What trains is evaluated in bf16 as well: in lilt that is all but the pixels.
    aligner = tiny.aligner(strategy)
    plain, found = (embed(aligner, table, config=config) for config in (FULL, BF16))
    for one, other in ((plain.images, found.images), (plain.captions, found.captions)):
        assert not np.array_equal(one, other)
        assert (one * other).sum(1).min() > 0.999
        np.testing.assert_allclose(np.linalg.norm(other, axis=1), 1, rtol=1e-5)


def test_pixels_are_the_same_bytes_in_every_precision(table, folder):
    aligner = tiny.aligner("full")
    for config in (FULL, BF16):
        assert prepare(aligner, table, config).images.values.dtype == np.uint8
    assert len(stores_in(folder)) == 1


def test_weights_without_a_fingerprint_are_never_kept(frozen, table, folder):
    frozen.vision.fingerprint = frozen.text.fingerprint = None
    features = prepare(frozen, table, FULL)
    assert len(features.images) == len(table.images)
    assert not folder.exists()


# On disk


@pytest.mark.parametrize("what", ["images", "captions"])
def test_more_than_the_limit_is_an_error_before_anything_is_written(frozen, table, what, folder):
    rows = len(table.images if what == "images" else set(table.captions))
    fits, tight = (Cache(dtype="float32", max_gib=size / 2**30) for size in (rows * 32 * 4, rows * 32 * 4 - 1))
    fill = {
        "images": lambda config: cache.image_features(frozen.vision, table.images, 5, config),
        "captions": lambda config: cache.caption_features(frozen.text, table.captions, 5, config),
    }[what]
    said = rf"the cache of \d+ {what} would take .*B, more than cache.max_gib = .*--set cache.prefix=false"
    with pytest.raises(UserError, match=said):
        fill(tight)
    assert not list(folder.rglob("*.rows"))
    assert len(fill(fits)) >= rows


def test_a_stop_in_the_middle_keeps_what_was_computed(frozen, table, folder, monkeypatch):
    def stop(_, done, total):
        if done > 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(cache, "_BATCH", 2)
    monkeypatch.setattr(row_store, "_BLOCK_SECONDS", 0)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "progress", stop)
        with pytest.raises(KeyboardInterrupt):
            cache.image_features(frozen.vision, table.images, 5, FULL)
    assert 2 <= rows_in(folder)[0] <= 6
    found = cache.image_features(frozen.vision, table.images, 5, FULL)
    assert rows_in(folder) == [len(table.images)]
    row_files.clear()
    np.testing.assert_allclose(
        found.values, cache.image_features(frozen.vision, table.images, 5, FULL).values, atol=1e-6
    )


def test_what_is_on_disk_can_be_listed_and_cleared(frozen, table, folder):
    assert row_blocks.entries() == []
    prepare(frozen, table, FULL)
    distinct = len(set(table.captions))
    found = sorted(row_blocks.entries(), key=lambda entry: entry.space.what)
    assert [(entry.space.what, entry.rows, entry.bytes) for entry in found] == [
        ("captions", distinct, distinct * 32 * 4),
        ("images", 10, 10 * 32 * 4),
    ]
    assert [entry.space.tower for entry in found] == [str(tiny.text()), str(tiny.vision())]
    assert row_files.clear() > sum(entry.bytes for entry in found)
    assert row_blocks.entries() == []
    assert [path.name for path in folder.iterdir()] == ["CACHEDIR.TAG"]


def test_the_folder_is_in_the_users_cache_unless_told(monkeypatch, tmp_path):
    assert row_files.folder() == tmp_path / "cache" / "features"
    monkeypatch.delenv("POLYALIGN_CACHE")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(row_files.folder()) == "/home/somebody/.cache/polyalign/features"
