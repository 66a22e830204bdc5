from __future__ import annotations

import json
import sys

import pytest

from polyalign import catalogue, cli, runs
from tests import tiny


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["polyalign", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        shown = capsys.readouterr()
        return caught.value.code or 0, shown.out, shown.err

    return call


def test_datasets_are_listed_and_told_in_full(run):
    code, out, _ = run("datasets")
    assert code == 0
    assert all(name in out for name in catalogue.infos())
    assert "COCO train2014" in run("datasets", "xtd")[1]
    assert json.loads(run("datasets", "xtd", "--json")[1])["xtd"]["origin"] == "human"
    assert set(json.loads(run("datasets", "--json")[1])) == set(catalogue.infos())
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
    assert (code, "none of the 3 test images" in out) == (0, True)
    code, out, _ = run("leakage", f"{tmp_path / 'two'}:test", tmp_path / "two", "--no-pixels")
    assert (code, "3 of the 3 test images" in out) == (1, True)


def test_leakage_between_what_is_not_there_says_so(run, tmp_path):
    code, _, err = run("leakage", "xtd", tmp_path, "--train-set", "rooot=x")
    assert (code, "root=FOLDER" in err) == (2, True)


def test_zeroshot_classifies_a_folder_in_the_language_of_its_names(run, tmp_path):
    folder, photos = tmp_path / "run", tmp_path / "photos"
    runs.train_into(folder, tiny.resolved(), resume=False, overwrite=False, say=tiny.quiet)
    for name in ("red", "blue"):
        (photos / name).mkdir(parents=True)
        tiny.draw((name,) * 4).save(photos / name / "a.png")
    code, out, _ = run("zeroshot", folder, photos, "--prompt", "{} then {}", "--json")
    found = json.loads(out)
    assert (code, found["classes"], found["images"], found["lang"]) == (0, 2, 2, "en")
    assert found["templates"] == ["{} then {}"]
    code, _, err = run("zeroshot", folder, photos, "--lang", "de")
    assert (code, "give names in de with --names" in err) == (2, True)
    (tmp_path / "names.tsv").write_text("red\trot\nblue\tblau\n", encoding="utf-8")
    code, out, _ = run("zeroshot", folder, photos, "--lang", "de", "--names", tmp_path / "names.tsv")
    assert (code, "photos" in out) == (0, True)
    code, _, err = run("zeroshot", folder, photos, "--prompt", "a photo")
    assert (code, "has no {}" in err) == (2, True)
