from __future__ import annotations

import json

import pytest

from polyalign.data import catalogue
from polyalign.data.readers.info import LABELLED
from polyalign.experiments import run_folders as runs
from tests import tiny


def test_datasets_are_listed_and_told_in_full(run):
    code, out, _ = run("datasets")
    assert code == 0
    assert all(name in out for name in catalogue.infos())
    assert "COCO train2014" in run("datasets", "xtd")[1]
    assert json.loads(run("datasets", "xtd", "--json")[1])["xtd"]["origin"] == "human"
    assert set(json.loads(run("datasets", "--json")[1])) == {*catalogue.infos(), *LABELLED}
    assert "ethz/food101, split validation" in run("datasets", "food101")[1]
    code, _, err = run("data", "get", "food101")
    assert (code, "which polyalign zeroshot loads" in err) == (2, True)
    code, _, err = run("datasets", "xtdd")
    assert (code, 'did you mean "xtd"' in err) == (2, True)


def test_leakage_is_found_by_pixels_and_by_id_and_tells_by_its_exit_code(run, tmp_path):
    for folder, names in (("one", "abc"), ("two", "xyz")):
        (tmp_path / folder).mkdir()
        rows = ["image,caption,split"]
        for name, scene in zip(names, (("red",) * 4, ("red", "blue") * 2, ("blue", "red") * 2), strict=True):
            tiny.draw(scene).save(tmp_path / folder / f"{name}.png")
            rows.append(f"{name}.png,a scene,{'train' if folder == 'one' else 'test'}")
        (tmp_path / folder / "captions.csv").write_text("\n".join(rows), encoding="utf-8")
    code, out, _ = run("leakage", tmp_path / "one", tmp_path / "two", "--json")
    found = json.loads(out)
    assert code == 1
    assert {(leak["train_id"], leak["test_id"]) for leak in found["leaks"]} >= {("b.png", "y.png"), ("c.png", "z.png")}
    code, out, _ = run("leakage", tmp_path / "one", tmp_path / "two", "--no-pixels")
    assert (code, "none of the 3 images" in out) == (0, True)
    code, out, _ = run("leakage", f"{tmp_path / 'two'}:test", tmp_path / "two", "--no-pixels")
    assert (code, "3 of the 3 images" in out) == (1, True)


def test_leakage_between_what_is_not_there_says_so(run, tmp_path):
    code, _, err = run("leakage", "xtd", tmp_path, "--train-set", "rooot=x")
    assert (code, "root=FOLDER" in err) == (2, True)


def test_zeroshot_classifies_a_folder_in_the_language_of_its_names(run, tmp_path):
    folder, photos = tmp_path / "run", tmp_path / "photos"
    runs.train_into(folder, tiny.resolved(), resume=False, overwrite=False)
    for name in ("red", "blue"):
        (photos / name).mkdir(parents=True)
        tiny.draw((name,) * 4).save(photos / name / "a.png")
    code, out, _ = run("zeroshot", folder, photos, "--prompt", "{} then {}", "--json")
    [found] = json.loads(out)
    assert (code, found["classes"], found["images"], found["lang"]) == (0, 2, 2, "en")
    assert (found["templates"], found["named_by"]) == (["{} then {}"], "the dataset's own")
    code, _, err = run("zeroshot", folder, photos, "--lang", "de")
    assert (code, "give names in de with --names" in err) == (2, True)
    (tmp_path / "names.tsv").write_text("red\trot\nblue\tblau\n", encoding="utf-8")
    code, out, _ = run("zeroshot", folder, photos, "--lang", "de", "--names", tmp_path / "names.tsv")
    assert (code, "photos" in out) == (0, True)
    code, _, err = run("zeroshot", folder, photos, "--prompt", "a photo")
    assert (code, "has no {}" in err) == (2, True)


def test_zeroshot_measures_several_languages_and_leaves_out_what_cannot_be_read(run, tmp_path, monkeypatch):
    folder, photos = tmp_path / "run", tmp_path / "v2"
    runs.train_into(folder, tiny.resolved(), resume=False, overwrite=False)
    for number in range(1000):  # the layout of ImageNetV2
        (photos / str(number)).mkdir(parents=True)
    for number, name in enumerate(tiny.COLORS):
        for copy in range(20):
            tiny.draw((name,) * 4).save(photos / str(number) / f"{copy}.png")
    (photos / "0" / "0.png").write_bytes(b"no image")
    babel = {"SW": [[0, 2], ["red", "blue"]], "DE": [[1, 2, 5], ["green", "blue", "yellow"]], "XX": [[0], ["x"]]}
    (tmp_path / "babel.json").write_text(json.dumps(babel))
    code, out, err = run("zeroshot", folder, photos, "--lang", "all", "--names", tmp_path / "babel.json", "--json")
    found = {one["lang"]: one for one in json.loads(out)}
    assert code == 0
    assert {code: (one["classes"], one["images"]) for code, one in found.items()} == {"sw": (2, 39), "de": (3, 60)}
    assert found["sw"]["templates"] != found["de"]["templates"]
    assert "left out of 120 images 1 corrupt (0" in err
    code, out, _ = run("zeroshot", folder, photos, "--lang", "en", "--json")
    [english] = json.loads(out)
    assert (code, english["classes"], english["named_by"]) == (0, 1000, "WordNet's words, by timm")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], 'cannot load the dataset "nowhere"'),
        (["empty"], "contains no labelled images"),
        (["photos", "--names", "none.tsv"], "cannot read none.tsv: No such file"),
        (["photos", "--lang", "xx"], 'unknown language "xx"'),
        (["photos", "--lang", "all"], "is not the Babel-ImageNet file"),
        (["photos", "--lang", "de"], "give names in de with --names"),
        (["numbers"], "are numbers: give their names with --names"),
    ],
)
def test_what_is_wrong_is_said_before_the_model_is_loaded(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    for name in ("photos/red", "photos/blue", "empty", "numbers/1", "numbers/2"):
        (tmp_path / name).mkdir(parents=True)
        if "/" in name:
            tiny.draw(("red",) * 4).save(tmp_path / name / "a.png")
    lang = [] if "--lang" in arguments else ["--lang", "en"]
    code, out, err = run("zeroshot", "hf:nothing", *arguments, *lang)
    assert (code, out, message in err) == (2, "", True), err
    assert err.strip().count("\n") == 0
