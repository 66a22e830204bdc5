from __future__ import annotations

import json
import os
import random
import re
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
from polyalign.utils import storage
from polyalign.utils.errors import UserError
from polyalign.utils.lock import LOCK_FILES, locked
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
        ("lilt", {}, "runs/tiny-quarters-en-lilt-all-s0"),
        ("lit", {}, "runs/tiny-quarters-en-lit-all-s0"),
        ("lit", {"strategy": {"towers": "vision"}}, "runs/tiny-quarters-en-lit-vision-all-s0"),
        (
            "bitfit",
            {"strategy": {"towers": "text", "layers": "last:2"}, "data": {"budget": "1k-pairs"}, "train": {"seed": 7}},
            "runs/tiny-quarters-en-bitfit-text-last2-1k-pairs-s7",
        ),
        ("lilt", recipe.budget_overrides("20min+1GiB"), "runs/tiny-quarters-en-lilt-20min+1GiB-s0"),
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
    assert all(
        name.startswith(f"bare-{root}-en-lilt-all-s0-") for name, root in zip(found, ("one", "two"), strict=True)
    )
    assert found[0][-6:] != found[1][-6:]


def test_a_finished_run_is_given_back_and_not_trained_again(finished, caplog):
    before = {path: path.stat().st_mtime_ns for path in finished.iterdir() if path.name not in LOCK_FILES}
    for resume in (False, True):
        assert train_into(finished, resume=resume) == Run.load_json(finished / train.RESULT)
    assert {path: path.stat().st_mtime_ns for path in finished.iterdir() if path.name not in LOCK_FILES} == before
    assert caplog.messages == [f"the run in {finished} is already finished; train it again with --overwrite"] * 2


def test_a_run_that_was_finished_before_a_setting_came_is_given_back(finished):
    run = Run.load_json(finished / train.RESULT)
    del run.recipe["cache"]["precision"]
    run.save_json(finished / train.RESULT)
    assert train_into(finished) == run


def test_a_finished_run_of_other_settings_is_not_given_back(finished):
    with pytest.raises(UserError, match="holds a run with other settings: use another --out, or --overwrite"):
        train_into(finished, train={"seed": 1})


def test_a_folder_in_which_a_run_was_killed_while_it_wrote_its_first_file_is_no_folder_of_others(tmp_path):
    (tmp_path / f".{runs.MANIFEST}.x1{storage.PARTIAL}").touch()
    assert train_into(tmp_path).steps


# Overwriting


def tree(folder: Path) -> dict[str, bytes | str | None]:
    """Return the contents of all files below a folder, the targets of links, and None for folders."""
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    return {
        name: str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        for name, path in paths.items()
    }


OWN = {*train.FILES, runs.MANIFEST, *LOCK_FILES}


@pytest.mark.parametrize("seed", range(6))
def test_overwriting_keeps_all_that_the_run_did_not_write(seed, finished, tmp_path, monkeypatch):
    assert {path.name for path in finished.iterdir()} <= OWN, "a run writes what is not listed"
    monkeypatch.setattr(train, "train", lambda recipe, out, resume, track: None)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious.txt").write_text("precious")
    chance, foreign = random.Random(seed), {}
    for number in range(12):
        parts = [chance.choice(["photos", "model.safetensors.bak", ".hidden", "result", "Tokenizer", "é"])]
        parts += [chance.choice("abc") for _ in range(chance.randrange(3))] + [f"{number}.json"]
        path = finished.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        if chance.random() < 0.3:
            path.symlink_to(chance.choice([outside, outside / "precious.txt", outside / "nowhere"]))
        else:
            path.write_bytes(chance.randbytes(20))
    foreign = {name: held for name, held in tree(finished).items() if name.split("/")[0] not in OWN}
    train_into_nothing = runs.train_into(finished, tiny.resolved(), resume=False, overwrite=True)
    assert train_into_nothing is None
    left = tree(finished)
    assert {name: left.pop(name) for name in foreign} == foreign
    assert set(left) <= {runs.MANIFEST, *LOCK_FILES, "tokenizer"}
    assert tree(outside) == {"precious.txt": b"precious"}


def test_overwriting_trains_again(finished):
    run = train_into(finished, overwrite=True, train={"seed": 1})
    assert run.seed == 1
    assert Run.load_json(finished / train.RESULT) == run
    assert train_into(finished, overwrite=True).seed == 0


@pytest.mark.parametrize("name", ["model.safetensors", "recipe.toml", "result.json", "tokenizer/x"])
@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_a_file_in_the_place_of_one_of_the_run_is_refused_and_nothing_is_touched(kind, name, finished, tmp_path):
    place = finished / name
    place.unlink(missing_ok=True)
    if kind == "file":
        place.write_text("mine")
    elif kind == "link":
        (tmp_path / "mine").write_text("mine")
        place.symlink_to(tmp_path / "mine")
    else:
        place.mkdir()
        (place / "mine").write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(UserError, match="is not as a run left it: move it away, or use another --out"):
        train_into(finished, overwrite=True)
    assert tree(tmp_path) == before


def test_overwriting_removes_a_link_and_not_what_it_points_to(finished, tmp_path):
    for name in ("tokenizer", "model.safetensors"):
        shutil.move(finished / name, tmp_path / name)
        (finished / name).symlink_to(tmp_path / name)
    before = {name: held for name, held in tree(tmp_path).items() if not name.startswith("run")}
    (tmp_path / "link").symlink_to(finished)
    train_into(tmp_path / "link", overwrite=True, train={"seed": 1})
    assert not (finished / "tokenizer").is_symlink()
    assert before.items() <= tree(tmp_path).items()


def test_an_interrupt_while_overwriting_loses_nothing_foreign_and_can_be_repeated(finished, monkeypatch):
    (finished / "notes.txt").write_text("mine")
    unlink, calls = Path.unlink, []

    def interrupted(path: Path, **options: Any) -> None:
        if path.parent == finished and path.name in train.FILES:
            calls.append(path)
            if len(calls) == 3:
                raise KeyboardInterrupt
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_into(finished, overwrite=True)
    monkeypatch.undo()
    assert not (finished / train.RESULT).exists()
    assert train_into(finished, overwrite=True, train={"seed": 1}).seed == 1
    assert (finished / "notes.txt").read_text() == "mine"


def test_an_interrupted_run_is_overwritten_but_not_what_has_come_since(tmp_path, monkeypatch):
    def interrupted(recipe: object, out: Path, resume: bool, track: None) -> None:
        (out / train.STATE).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(train, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_into(tmp_path)
    with pytest.raises(UserError, match="holds an unfinished run: continue it with --resume"):
        train_into(tmp_path)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "mine.txt").touch()
    with pytest.raises(UserError, match=r"mine\.txt is not as a run left it"):
        train_into(tmp_path, overwrite=True)
    shutil.move(tmp_path / "tokenizer", tmp_path / "mine")
    train_into(tmp_path, overwrite=True)
    assert (tmp_path / "mine" / "mine.txt").exists()


def test_a_run_that_was_killed_is_overwritten(tmp_path):
    (tmp_path / runs.MANIFEST).write_text(json.dumps(dict.fromkeys(train.FILES)))
    (tmp_path / train.STATE).write_bytes(b"half")
    train_into(tmp_path, overwrite=True)


@pytest.mark.parametrize("names", [("state.safetensors",), ("result.json",), ("result.json", "towers.json")])
def test_a_run_without_a_list_of_its_files_is_not_overwritten(names, tmp_path):
    for name in names:
        (tmp_path / name).write_text("{}")
    before = tree(tmp_path)
    with pytest.raises(UserError, match="does not list the files of its run, as older versions wrote it: delete"):
        train_into(tmp_path, overwrite=True)
    assert {name: held for name, held in tree(tmp_path).items() if name not in LOCK_FILES} == before


@pytest.mark.parametrize("listed", ["[]", "{", "[" * 100_000, "\0"])
def test_a_list_of_files_that_cannot_be_read_is_a_user_error(listed, finished):
    (finished / runs.MANIFEST).write_text(listed)
    before = tree(finished)
    with pytest.raises(UserError, match=re.escape(runs.MANIFEST)):
        train_into(finished, overwrite=True)
    assert tree(finished) == before


def test_folders_that_are_no_runs_are_refused_and_nothing_is_touched(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").touch()
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    for out in (".", "photos", "photos/1.jpg", "/"):
        for overwrite in (False, True):
            with pytest.raises(UserError) as caught:
                train_into(Path(out), overwrite=overwrite)
            assert "\n" not in str(caught.value)
    assert tree(tmp_path) == before


def test_a_run_in_use_is_told(finished):
    with locked(finished), pytest.raises(UserError, match=f"is in use by process {os.getpid()} on "):
        train_into(finished)


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
    results = evaluate(trained, langs=["en", "de"], split="test", overrides={})
    assert [result.lang for result in results] == ["en", "de"]


@pytest.mark.parametrize("langs", [["sw"], ["en", "sw"], ["sw", "th"]])
def test_captions_are_not_given_for_a_language_that_they_do_not_state(langs, trained):
    with pytest.raises(UserError, match=r"the same captions in .* state the language .* --set source\.lang="):
        evaluate(trained, langs=langs, split="test", overrides={})
    source = {**tiny.resolved().source, "lang": "th", "caption_column": "caption"}
    [result] = evaluate(trained, langs=["th"], split="test", overrides={"source": source})
    assert result.lang == "th"
    with pytest.raises(UserError, match=r"has captions in th \(source\.lang\), not in sw"):
        evaluate(trained, langs=["sw"], split="test", overrides={"source": source})


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
    lines = ["000.png,green,train", *rows("train", "train", "dev", "test")[1:], "003.png,blue,train"]
    data = write_captions(tmp_path / "data", lines)
    run = train_into(tmp_path / "run", source={"root": str(data)}, data={"leakage": "exclude"}, optim={"epochs": 1})
    assert run.pairs == 2
    assert any(one.startswith("left out of training: 1 of the 1 image") for one in caplog.messages)
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


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_in_the_place_of_a_file_is_refused_before_training(finished, overwrite, monkeypatch):
    monkeypatch.setattr(train, "train", lambda *_, **__: pytest.fail("trained"))
    (finished / "recipe.toml").unlink()
    (finished / "recipe.toml").mkdir()
    with pytest.raises(UserError, match=r"recipe\.toml is not as a run left it"):
        train_into(finished, overwrite=overwrite)
