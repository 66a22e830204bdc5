from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from polyalign.config import resolve as recipe
from polyalign.evaluation import evaluate as evaluation
from polyalign.evaluation.evaluate import evaluate
from polyalign.evaluation.results import Run
from polyalign.experiments import run_folders as runs
from polyalign.training import train
from polyalign.utils.errors import UserError
from tests import tiny


def train_into(folder: Path, name: str = "projection", *, resume=False, overwrite=False, **sections) -> Run:
    found = runs.train_into(folder, tiny.resolved(name, **sections), resume=resume, overwrite=overwrite)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train_into(folder)
    return folder


@pytest.fixture
def finished(trained, tmp_path) -> Path:
    """A finished run."""
    return shutil.copytree(trained, tmp_path / "run")


def named(tmp_path: Path, name: str, sections: dict[str, Any]) -> str:
    """Return the name of a run of the tiny recipe with these settings."""
    path = str(tiny.write(tmp_path / "tiny.toml"))
    return runs.default_folder(recipe.resolve(path, "en", name, sections), path).as_posix()


@pytest.mark.parametrize(
    ("name", "sections", "folder"),
    [
        ("lilt", {}, "runs/tiny-en-lilt-all-s0"),
        ("lit", {}, "runs/tiny-en-lit-all-s0"),
        ("lit", {"strategy": {"towers": "vision"}}, "runs/tiny-en-lit-vision-all-s0"),
        (
            "bitfit",
            {"strategy": {"towers": "text", "layers": "last:2"}, "data": {"budget": "1k-pairs"}, "train": {"seed": 7}},
            "runs/tiny-en-bitfit-text-last2-1k-pairs-s7",
        ),
        ("lilt", recipe.budget_overrides("20min+1GiB"), "runs/tiny-en-lilt-20min+1GiB-s0"),
    ],
)
def test_a_run_is_named_after_what_it_is(name, sections, folder, tmp_path):
    assert named(tmp_path, name, sections) == folder


def test_runs_of_other_settings_have_other_names_and_seeds_share_theirs(tmp_path):
    plain = named(tmp_path, "lilt", {})
    changed: list[dict[str, Any]] = [
        {"optim": {"lr": 0.5}},
        {"optim": {"lr": 0.25}},
        {"strategy": {"reduction": 3}},
        {"source": {"root": str(tmp_path / "one" / "photos")}},
        {"source": {"root": str(tmp_path / "two" / "photos")}},
        {"train": {"max_seconds": 0.1234567890123456}},
    ]
    names = [named(tmp_path, "lilt", one) for one in changed]
    assert len({plain, *names}) == len(changed) + 1
    assert named(tmp_path, "lilt", {"optim": {"lr": 0.5}, "train": {"seed": 1}}) == names[0].replace("-s0-", "-s1-")
    preset = tiny.resolved("lilt").optim.lr
    assert named(tmp_path, "lilt", {"optim": {"lr": preset}}) == plain, "a setting that is the recipe's own"


def test_a_recipe_that_needs_settings_has_names_too(tmp_path):
    path = tiny.write(tmp_path / "bare.toml", source={"name": "folder"})
    raw = path.read_text(encoding="utf-8")
    path.write_text("\n".join(line for line in raw.splitlines() if not line.startswith("root")), encoding="utf-8")
    found = [
        runs.default_folder(recipe.resolve(str(path), "en", "lilt", {"source": {"root": root}}), str(path)).name
        for root in ("one", "two")
    ]
    assert all(name.startswith("bare-en-lilt-all-s0-") for name in found)
    assert found[0] != found[1]


def test_a_finished_run_is_given_back_and_not_trained_again(finished, caplog):
    before = {path: path.stat().st_mtime_ns for path in finished.iterdir()}
    for resume in (False, True):
        assert train_into(finished, resume=resume) == Run.load_json(finished / train.RESULT)
    assert {path: path.stat().st_mtime_ns for path in finished.iterdir()} == before
    assert caplog.messages == [f"the run in {finished} is already finished; train it again with --overwrite"] * 2


def test_a_run_that_was_finished_before_a_setting_came_is_given_back(finished):
    run = Run.load_json(finished / train.RESULT)
    del run.recipe["cache"]["precision"]
    run.save_json(finished / train.RESULT)
    assert train_into(finished) == run


def test_a_finished_run_of_other_settings_is_not_given_back(finished):
    with pytest.raises(UserError, match="holds a run with other settings: use another --out, or --overwrite"):
        train_into(finished, train={"seed": 1})


def test_overwriting_trains_again_and_keeps_what_is_not_of_the_run(finished):
    assert {path.name for path in finished.iterdir()} <= set(train.FILES), "a run writes what is not listed"
    (finished / "state.safetensors").write_bytes(b"of another run")
    (finished / "tokenizer" / "stale.json").touch()
    (finished / "photos").mkdir()
    (finished / "photos" / "001.jpg").touch()
    (finished / "notes.txt").write_text("mine")
    run = train_into(finished, overwrite=True, train={"seed": 1})
    assert run.seed == 1
    assert not (finished / "tokenizer" / "stale.json").exists()
    assert (finished / "photos" / "001.jpg").is_file()
    assert (finished / "notes.txt").read_text() == "mine"
    assert Run.load_json(finished / train.RESULT) == run


def test_overwriting_removes_a_link_and_not_what_it_points_to(finished, tmp_path):
    shutil.move(finished / "tokenizer", tmp_path / "elsewhere")
    (finished / "tokenizer").symlink_to(tmp_path / "elsewhere")
    shutil.move(finished / "model.safetensors", tmp_path / "precious.safetensors")
    (finished / "model.safetensors").symlink_to(tmp_path / "precious.safetensors")
    before = (tmp_path / "precious.safetensors").read_bytes()
    names = {path.name for path in (tmp_path / "elsewhere").iterdir()}
    train_into(finished, overwrite=True, train={"seed": 1})
    assert not (finished / "tokenizer").is_symlink()
    assert {path.name for path in (tmp_path / "elsewhere").iterdir()} == names
    assert (tmp_path / "precious.safetensors").read_bytes() == before


def test_overwriting_an_unfinished_run_keeps_a_tokenizer_that_it_has_not_written(tmp_path):
    (tmp_path / "state.safetensors").write_bytes(b"of another run")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "mine.txt").touch()
    train_into(tmp_path, overwrite=True)
    assert (tmp_path / "tokenizer" / "mine.txt").exists()


def test_overwriting_spares_a_folder_that_holds_no_run(tmp_path):
    (tmp_path / "photo.jpg").touch()
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "mine.txt").touch()
    with pytest.raises(UserError, match="contains other files and no run"):
        train_into(tmp_path, overwrite=True)
    assert (tmp_path / "photo.jpg").exists()
    assert (tmp_path / "tokenizer" / "mine.txt").exists()


def test_a_result_that_is_not_of_a_run_is_not_overwritten(tmp_path):
    (tmp_path / "result.json").write_text('{"mine": 1}')
    with pytest.raises(UserError, match=r"result\.json is not a run result"):
        train_into(tmp_path, overwrite=True)
    assert (tmp_path / "result.json").read_text() == '{"mine": 1}'


def test_nothing_to_resume_is_said_and_begun(tmp_path, caplog):
    train_into(tmp_path / "new", resume=True)
    assert caplog.messages[0] == f"nothing to resume in {tmp_path / 'new'}: starting a new run"


def test_evaluating_gives_what_training_measured(trained):
    assert evaluate(trained, langs=[], split="test", overrides={}) == [Run.load_json(trained / train.RESULT).test[0]]


def test_how_it_computes_can_be_another_this_time(trained, monkeypatch):
    made = []
    whole = evaluation.open_model
    monkeypatch.setattr(evaluation, "open_model", lambda *given: made.append(whole(*given)) or made[-1])
    [plain] = evaluate(trained, langs=[], split="test", overrides={})
    [half] = evaluate(trained, langs=[], split="test", overrides={"cache": {"precision": "bf16"}})
    assert [encoder.cache.precision for encoder in made] == ["fp32", "bf16"]
    assert half.mean_recall.value == pytest.approx(plain.mean_recall.value, abs=0.05)
    with pytest.raises(UserError, match=r"with --set: cache.half: .*known: dtype, max_gib, precision, prefix"):
        evaluate(trained, langs=[], split="test", overrides={"cache": {"half": True}})


def test_several_languages_one_result_each(trained):
    results = evaluate(trained, langs=["en", "de", "sw"], split="test", overrides={})
    assert [result.lang for result in results] == ["en", "de", "sw"]


def test_another_split_and_another_source(trained, tmp_path):
    [dev] = evaluate(trained, langs=[], split="dev", overrides={})
    assert dev.gallery == "quarters-dev"
    [starter] = evaluate(
        trained, langs=["sw"], overrides={"source": {"name": "starter", "test_images": 5, "train_images": 9}}
    )
    assert (starter.gallery, starter.images) == ("starter-test", 5)


def test_an_image_that_cannot_be_read_is_left_out_with_its_captions_and_told(trained, tmp_path, caplog):
    data = shutil.copytree(tiny.data(), tmp_path / "data")
    lost, broken = (data / "images" / f"{number:03d}.png" for number in (len(tiny.table().images) + 24, 100))
    lost.unlink()
    broken.write_bytes(broken.read_bytes()[:60])
    source = {"source": {"name": "folder", "root": str(data)}}
    with pytest.raises(UserError, match=r"1 missing .* 1 corrupt .* more than data.max_corrupt = 0.01"):
        evaluate(trained, langs=[], split="test", overrides=source)
    caplog.clear()
    [result] = evaluate(trained, langs=[], split="test", overrides={**source, "data": {"max_corrupt": 0.1}})
    assert (result.images, result.captions) == (22, 44)
    assert len(caplog.messages) == 1
    assert "of 24 images 1 missing" in caplog.messages[0]


@pytest.mark.parametrize(
    ("langs", "split", "overrides", "said"),
    [
        (["swx"], "test", {}, 'unknown language "swx": did you mean "sw"'),
        (["en"], "tset", {}, "tset"),
        (["en"], "test", {"optim": {"lrr": 1}}, 'with --set: optim.lrr: .* did you mean "lr"'),
        (["ar"], "test", {"source": {"name": "starter"}}, "Arabic|ar"),
    ],
)
def test_what_cannot_be_evaluated_is_an_error_of_one_line(langs, split, overrides, said, trained):
    with pytest.raises(UserError, match=said) as caught:
        evaluate(trained, langs=langs, split=split, overrides=overrides)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(UserError, match="holds no finished checkpoint"):
        evaluate(tmp_path, langs=[], split="test", overrides={})


def test_what_to_try_next_is_another_strategy(trained):
    run = Run.load_json(trained / train.RESULT)
    commands = runs.next_commands(trained, run)
    assert commands[0].startswith(f"polyalign eval {trained}")
    assert "--strategy lilt" in commands[1]


# The data


def write_captions(folder: Path, rows: list[str]) -> Path:
    data = shutil.copytree(tiny.data(), folder)
    (data / "captions.csv").write_text("\n".join(["image,caption,split", *rows]) + "\n", encoding="utf-8")
    return data


def rows(*splits: str, captions: str = "red blue") -> list[str]:
    return [f"{number:03d}.png,{captions},{split}" for number, split in enumerate(splits)]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (rows("train", "dev"), 'no row with split "test"'),
        (rows("train", "dev", "test", captions=" "), "no image has a caption that is not blank"),
        (
            [*rows("train", "dev", "test"), "002.png,blue,train"],
            "leakage: 1 of the 1 image .*data.leakage=exclude",
        ),
    ],
)
def test_data_that_cannot_be_trained_on_is_an_error_of_one_line(lines, said, tmp_path):
    data = write_captions(tmp_path / "data", lines)
    with pytest.raises(UserError, match=said) as caught:
        train_into(tmp_path / "run", source={"root": str(data)})
    assert "\n" not in str(caught.value)


def test_leaked_images_can_be_left_out_unless_nothing_is_left(tmp_path, caplog):
    lines = [*rows("train", "train", "dev", "test"), "003.png,blue,train"]
    data = write_captions(tmp_path / "data", lines)
    run = train_into(tmp_path / "run", source={"root": str(data)}, data={"leakage": "exclude"}, optim={"epochs": 1})
    assert run.pairs == 2
    assert caplog.messages[0].startswith("left out of training: 1 of the 1 image")
    write_captions(tmp_path / "all", [*rows("train", "dev", "test"), "001.png,red,train", "002.png,red,train"][1:])
    with pytest.raises(UserError, match="all images are also in a set that is tested on"):
        train_into(tmp_path / "none", source={"root": str(tmp_path / "all")}, data={"leakage": "exclude"})


def test_a_budget_is_a_part_of_the_pairs(tmp_path):
    run = train_into(tmp_path / "run", data={"budget": "40-pairs"}, optim={"epochs": 1})
    assert (run.pairs, run.budget) == (40, "40-pairs")
    with pytest.raises(UserError, match="quarters-train has 128 pairs for en, fewer than 129-pairs"):
        train_into(tmp_path / "more", data={"budget": "129-pairs"})


def test_fewer_pairs_than_a_batch_train_all_the_same(tmp_path):
    run = train_into(tmp_path / "run", data={"budget": "5-pairs"}, optim={"epochs": 2})
    assert (run.steps, run.pairs_seen) == (2, 10)


def test_a_folder_of_other_files_is_not_trained_into(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="contains other files and no run: use a new folder"):
            train_into(tmp_path, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]
