from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from polyalign.config.tower import STARTER
from polyalign.data.starter import world
from polyalign.pretrain import loop, vision, vision_folder, vision_starter
from polyalign.pretrain.pixels import normalised, shifted, stored
from polyalign.pretrain.probe import linear_probe
from polyalign.pretrain.vision_task import Tower
from polyalign.utils.errors import UserError

TINY = {"args": {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2}, "image_px": 32}
STARTER_TINY = vision.Config(
    **TINY, object_pictures=40, object_steps=3, scene_pictures=40, scene_steps=3, probe_pictures=50, batch_size=8
)


class StoppedError(Exception):
    pass


def stop_at(task: str, step: int) -> object:
    def progress(name: str, done: int, total: int, note: str = "") -> None:
        if (name, done) == (task, step):
            raise StoppedError

    return progress


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vision.run(STARTER_TINY, tmp_path_factory.mktemp("whole"), resume=False)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for number in range(60):
        color, name = ((200, 40, 40), "red") if number % 2 else ((40, 40, 200), "blue")
        pixels = np.clip(np.array(color) + rng.normal(0, 25, (40, 50, 3)), 0, 255).astype(np.uint8)
        path = tmp_path / "photos" / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return tmp_path / "photos"


@pytest.fixture
def every_step_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = loop.run_stages.__kwdefaults__
    monkeypatch.setitem(defaults, "save_every_s", 0.0)


def test_what_comes_out_is_a_tower_that_timm_loads_in_half_precision_with_its_card(whole: Path) -> None:
    facts = tomllib.loads((whole / "tower.toml").read_text())
    model = timm.create_model(facts["model"], num_classes=0, **facts["args"])
    state = weights(whole)
    assert all(tensor.dtype == torch.float16 for tensor in state.values())
    model.load_state_dict(state)
    assert facts["image_px"] == 32
    assert facts["crop_pct"] == 1.0
    card = (whole / "README.md").read_text()
    assert "kind_0" in card
    assert "held-out" in card
    assert sorted(path.name for path in whole.iterdir()) == ["README.md", "model.safetensors", "tower.toml"]


@pytest.mark.parametrize(("task", "step"), [("objects", 1), ("objects", 3), ("scenes", 2), ("preparing scenes", 5)])
@pytest.mark.usefixtures("every_step_saved")
def test_a_stopped_and_resumed_pretraining_ends_in_the_same_weights(
    whole: Path, tmp_path: Path, task: str, step: int
) -> None:
    with pytest.raises(StoppedError):
        vision.run(STARTER_TINY, tmp_path, resume=False, progress=stop_at(task, step))
    vision.run(STARTER_TINY, tmp_path, resume=True)
    assert all(torch.equal(tensor, weights(tmp_path)[name]) for name, tensor in weights(whole).items())
    assert (tmp_path / "README.md").read_text() == (whole / "README.md").read_text()


def test_another_seed_gives_other_weights(whole: Path, tmp_path: Path) -> None:
    vision.run(STARTER_TINY.model_copy(update={"seed": 1}), tmp_path, resume=False)
    name = "patch_embed.proj.weight"
    assert not torch.equal(weights(whole)[name], weights(tmp_path)[name])


def test_no_picture_of_pretraining_has_a_held_out_combination() -> None:
    objects = vision_starter.objects(3000, np.random.default_rng(0), 32).labels
    scenes = vision_starter.scenes(1500, np.random.default_rng(0), 32, held_out=False).labels
    names = list(vision_starter.SCENE_LABELS)
    columns = [(names.index(f"kind_{slot}"), names.index(f"color_{slot}")) for slot in (0, 1)]
    seen = {(k, c) for k, c, _ in objects.tolist()}
    seen |= {(row[k], row[c]) for row in scenes.tolist() for k, c in columns}
    shown = {(world.KINDS[k], world.COLORS[c]) for k, c in seen}
    assert len(shown) == 24 * 10 - len(world.HELD_OUT)
    assert not shown & world.HELD_OUT


def test_scene_labels_number_the_facts_from_the_left_or_upper_thing() -> None:
    things = (world.Thing("tree", "pink", "large", 3), world.Thing("house", "red", "small", 1))
    below = world.Scene("sand", things, "below", seed=0)
    assert vision_starter.scene_labels(below) == [0, 0, 0, 0, 1, 7, 1, 2, 1, 1]
    left = world.Scene("sand", things, "left", seed=0)
    assert vision_starter.scene_labels(left) == [1, 7, 1, 2, 0, 0, 0, 0, 0, 1]


def test_a_tree_of_folders_is_learned_as_classes(photos: Path, tmp_path: Path) -> None:
    config = vision.Config(**TINY, images=photos, steps=12, batch_size=16, warmup_steps=2)
    card = (vision.run(config, tmp_path / "out", resume=False) / "README.md").read_text()
    assert "to name the folder, of 2, on 54 images" in card
    assert "| folder named by a linear layer | 100.0% |" in card


def test_a_flat_folder_is_learned_by_its_views_and_resumes_to_the_same_weights(
    photos: Path, tmp_path: Path, every_step_saved: None
) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in photos.rglob("*.png"):
        path.rename(flat / path.name)
    config = vision.Config(**TINY, images=flat, steps=4, batch_size=16, warmup_steps=1)
    first, second = tmp_path / "first", tmp_path / "second"
    vision.run(config, first, resume=False)
    with pytest.raises(StoppedError):
        vision.run(config, second, resume=False, progress=stop_at("views", 2))
    vision.run(config, second, resume=True)
    assert all(torch.equal(tensor, weights(second)[name]) for name, tensor in weights(first).items())
    assert "two random views" in (first / "README.md").read_text()


def test_a_few_corrupt_images_are_left_out_and_counted_and_many_are_an_error(photos: Path) -> None:
    (photos / "red" / "1.png").write_bytes(b"\x89PNG broken")
    found = vision_folder.find(photos)
    assert (len(found.paths), found.corrupt, found.classes) == (59, 1, ("blue", "red"))
    assert found.labels.tolist() == [0] * 30 + [1] * 29
    for number in range(3, 11, 2):
        (photos / "red" / f"{number}.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"5 of 60 images .* cannot be decoded"):
        vision_folder.find(photos)


def test_bad_folders_are_errors_that_say_what_to_do(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        vision_folder.find(tmp_path / "nothing")
    (photos / "blue").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="one folder of images, red: give that one"):
        vision_folder.find(photos)
    (photos / "red" / "1.png").rename(photos / "1.png")
    with pytest.raises(UserError, match="1 images beside sub-folders"):
        vision_folder.find(photos)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has 0 images"):
        vision_folder.find(tmp_path / "empty")


def test_a_model_that_timm_cannot_build_is_an_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="timm cannot build no_such_net"):
        vision.run(vision.Config(model="no_such_net"), tmp_path, resume=False)


def test_a_size_that_the_model_does_not_take_is_an_error_that_says_what_to_change(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"takes no images of 96 px .* change image_px or args.img_size"):
        vision.run(vision.Config(image_px=96), tmp_path, resume=False)


def test_any_timm_model_can_be_pretrained(photos: Path, tmp_path: Path) -> None:
    config = vision.Config(model="test_convnext", image_px=64, images=photos, steps=2, batch_size=8)
    out = vision.run(config, tmp_path / "out", resume=False)
    assert tomllib.loads((out / "tower.toml").read_text())["args"] == {}
    timm.create_model("test_convnext", num_classes=0).load_state_dict(weights(out))


def test_nt_xent_equals_a_loop_over_pairs() -> None:
    views = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    unit = views / views.norm(dim=1, keepdim=True)
    losses = []
    for i in range(8):
        partner = (i + 4) % 8
        scores = {j: float(unit[i] @ unit[j]) / 0.2 for j in range(8) if j != i}
        losses.append(np.log(np.exp(list(scores.values())).sum()) - scores[partner])
    assert vision_folder.nt_xent(views).item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_probe_reads_off_what_is_there_and_guesses_at_what_is_not() -> None:
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (600,), generator=rng)
    noise = torch.randn(600, 6, generator=rng)
    signal = torch.nn.functional.one_hot(labels, 3).float() @ torch.randn(3, 6, generator=rng) * 4
    (seen,) = linear_probe((signal + noise)[:400], labels[:400], [((signal + noise)[400:], labels[400:])])
    (blind,) = linear_probe(noise[:400], labels[:400], [(noise[400:], labels[400:])])
    assert seen > 0.9
    assert 0.2 < blind < 0.5


def test_pixels_are_stored_once_and_come_back_as_they_were(tmp_path: Path) -> None:
    images = [Image.new("RGB", (4, 3), (i, 2 * i, 3 * i)) for i in range(5)]
    path = tmp_path / "some.npy"
    pixels = stored(path, 5, images.__getitem__)
    assert pixels.shape == (5, 3, 4, 3)
    assert pixels[4, 2, 3].tolist() == [4, 8, 12]
    assert np.array_equal(pixels, stored(path, 5, [].__getitem__))
    x = normalised(np.asarray(pixels), (0.5, 0.5, 0.0), (0.5, 0.25, 1.0))
    assert x.shape == (5, 3, 3, 4)
    assert x[4, :, 0, 0].tolist() == pytest.approx([(4 / 255 - 0.5) / 0.5, (8 / 255 - 0.5) / 0.25, 12 / 255])


def test_shifting_moves_the_picture_and_draws_its_border_out() -> None:
    pixels = np.zeros((40, 6, 6, 3), dtype=np.uint8)
    pixels[:, 2, 3] = 255
    moved = shifted(pixels, 2, np.random.default_rng(0))
    spots = np.argwhere(moved[..., 0])
    assert moved.shape == pixels.shape
    assert len(spots) == 40
    assert set(spots[:, 1]) == {0, 1, 2, 3, 4}
    assert set(spots[:, 2]) == {1, 2, 3, 4, 5}


def test_the_shipped_tower_loads_and_a_linear_layer_reads_kinds_and_colours_off_it() -> None:
    folder = STARTER / "vision"
    facts = tomllib.loads((folder / "tower.toml").read_text())
    assert (folder / "model.safetensors").stat().st_size < 10_000_000
    config = vision.Config.model_validate(
        {k: v for k, v in facts.items() if k != "crop_pct"} | {"probe_pictures": 2000}
    )
    tower = Tower(config)
    tower.model.load_state_dict(weights(folder))
    measured = vision_starter.probe(config, tower)
    like = {name: float(text.split("%")[0]) for name, text in measured.items() if "%" in text}
    for slot in (0, 1):
        assert 40 < like[f"kind_{slot}"] < 99
        assert 55 < like[f"color_{slot}"] < 99.9
    assert like["axis"] > 80
