from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from polyalign.config import language as languages
from polyalign.config import plugins, shipped
from polyalign.config.source_spec import SourceSpec
from polyalign.evaluation import suites as suite
from polyalign.evaluation.evaluate import evaluate, evaluate_suite
from polyalign.experiments import run_folders as runs
from polyalign.utils.errors import UserError
from tests import tiny

NAMES = [f"COCO_val2014_{number:012d}.jpg" for number in range(1, 13)]


class Colours:
    """Images as their mean colour, captions as a colour that they name: a model that knows what it sees."""

    name = "colours"

    def __init__(self):
        self.asked = []

    def encode_image(self, images):
        self.asked.append(len(images))
        return _unit([np.asarray(image.open()).mean(axis=(0, 1)) for image in images])

    def encode_text(self, captions, lang=None):
        return _unit([[float(part) for part in caption.split()[:3]] for caption in captions])


def _unit(rows):
    rows = np.asarray(rows, dtype=np.float32) + 1
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def root(tmp_path) -> Path:
    """Lay out XTD and XTD200 with twelve photos; the Swahili captions of XTD200 are all of one colour."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (len(NAMES), 3))
    for folder in ("photos", "xtd10/XTD10", "xtd200"):
        (tmp_path / folder).mkdir(parents=True)
    for name, colour in zip(NAMES, colours, strict=True):
        tiny.Image.new("RGB", (16, 16), tuple(map(int, colour))).save(tmp_path / "photos" / name, quality=100)
    right = "\n".join(" ".join(map(str, colour)) for colour in colours)
    names = "\n".join(NAMES)
    (tmp_path / "xtd10" / "XTD10" / "test_image_names.txt").write_text(names)
    (tmp_path / "xtd200" / "test_image_names.txt").write_text(names)
    for code in ("en", "es"):
        (tmp_path / "xtd10" / "XTD10" / f"test_1kcaptions_{code}.txt").write_text(right)
    (tmp_path / "xtd200" / "spa_Latn.txt").write_text(right)
    (tmp_path / "xtd200" / "swh_Latn.txt").write_text("\n".join(["9 9 9"] * len(NAMES)))
    return tmp_path


def made(root, **options) -> suite.Suite:
    return suite.Suite(
        name="ours",
        benchmarks=[{"name": "xtd", "root": "xtd10"}, {"name": "xtd200", "root": "xtd200"}],
    ).within(root, root / "photos", allow_missing=options.get("allow_missing", False))


def measure(root, langs=suite.ALL, encoder=None, **options) -> suite.SuiteResult:
    absent = options.pop("allow_absent", False)
    ready = suite.find(made(root, **options), langs, allow_absent=absent)
    return suite.run(encoder or Colours(), ready)


def test_every_language_of_every_benchmark_is_measured_and_each_photo_embedded_once(root):
    encoder = Colours()
    result = measure(root, encoder=encoder)
    assert [(one.gallery, one.lang, one.origin) for one in result.results] == [
        ("xtd-1k-test", "en", "human"),
        ("xtd-1k-test", "es", "human"),
        ("xtd200-test", "es", "machine"),
        ("xtd200-test", "sw", "machine"),
    ]
    assert encoder.asked == [12]
    assert [one.mean_recall.value == 1 for one in result.results] == [True, True, True, False]
    assert suite.SuiteResult.model_validate_json(result.model_dump_json()) == result


def test_averages_are_over_languages_and_low_resource_ones_apart(root):
    result = measure(root)
    sw = result.results[3].mean_recall.value
    means = {(one.gallery, one.over): one for one in result.averages}
    assert [score.value for score in means["xtd-1k-test", "languages"].scores] == [1] * 7
    assert ("xtd-1k-test", "low-resource languages") not in means
    assert means["xtd200-test", "languages"].scores[6].value == pytest.approx((1 + sw) / 2)
    assert means["xtd200-test", "low-resource languages"].languages == ("sw",)
    assert means["xtd200-test", "low-resource languages"].scores[6].value == pytest.approx(sw)
    assert ("xtd200-test", "low-resource languages") in means
    # Spanish, which two galleries have, counts once: (en 1 + es (1 + 1) / 2 + sw) / 3
    assert means["all galleries", "languages"].scores[6].value == pytest.approx((2 + sw) / 3)


def test_an_average_of_one_result_is_not_shown_but_for_low_resource_languages(root):
    result = measure(root, ["sw"])
    assert [(one.gallery, one.over) for one in result.averages] == [("xtd200-test", "low-resource languages")]
    assert measure(root, ["en"]).averages == ()


def test_the_interval_of_an_average_draws_a_photo_with_its_captions_in_all_languages(root):
    """By hand: of two languages with the same hits the mean is as uncertain as one; of opposite ones it is certain."""
    right = (root / "xtd200" / "spa_Latn.txt").read_text().splitlines()
    swapped = [right[i ^ 1] for i in range(12)]

    def spread(first, second):
        (root / "xtd200" / "spa_Latn.txt").write_text("\n".join(first))
        (root / "xtd200" / "swh_Latn.txt").write_text("\n".join(second))
        found = measure(root)
        [mean] = [one for one in found.averages if (one.gallery, one.over) == ("xtd200-test", "languages")]
        alone = next(one for one in found.results if one.gallery == "xtd200-test").text_to_image.recall[1]
        return alone.high - alone.low, mean.scores[0].high - mean.scores[0].low, mean.scores[0].value

    half = [right[i] if i < 6 else swapped[i] for i in range(12)]
    other = [swapped[i] if i < 6 else right[i] for i in range(12)]
    alone, same, value = spread(half, half)
    assert value == 0.5
    assert same == 0.5  # the percentiles of 12 fair coins are 3 and 9
    assert alone > same, "a single recall has an exact interval, which is wider on so few images"
    assert spread(half, other)[1:] == (0, 0.5)


def test_only_the_languages_asked_for_are_measured(root, caplog):
    result = measure(root, ["sw"])
    assert [(one.gallery, one.lang) for one in result.results] == [("xtd200-test", "sw")]
    assert caplog.messages == ["xtd has no captions in sw"]
    with pytest.raises(UserError, match="no benchmark of the suite ours has files in zu"):
        measure(root, ["zu"])
    with pytest.raises(UserError, match='unknown language "xx"'):
        measure(root, ["xx"])


def test_what_is_not_at_hand_is_an_error_that_says_what_to_place_where_or_left_out_when_asked(root):
    (root / "xtd10").rename(root / "elsewhere")
    get = rf"polyalign data get xtd --root {root}"
    with pytest.raises(UserError, match=rf"^1 of the 2 .* xtd: there is no folder .*xtd10 \({get}\)\. --allow-absent"):
        measure(root)
    result = measure(root, allow_absent=True)
    assert {one.gallery for one in result.results} == {"xtd200-test"}
    assert len(result.left_out) == 1
    assert "xtd10" in result.left_out[0]
    (root / "photos").rename(root / "pictures")
    with pytest.raises(UserError, match="no benchmark of the suite ours has files"):
        measure(root, allow_absent=True)
    with pytest.raises(UserError, match=r"^2 of the 2 .*; xtd200: there is no folder .*photos .*--photos test\)"):
        measure(root)
    (root / "photos").mkdir()
    with pytest.raises(UserError, match=r"xtd200: none of the 12 images .* is in .*photos: is this the right folder"):
        measure(root, allow_missing=True)


def test_a_malformed_file_is_an_error_even_where_absent_ones_are_left_out(root):
    (root / "xtd200" / "swh_Latn.txt").write_text("one line")
    with pytest.raises(UserError, match="must be aligned line by line"):
        measure(root, ["sw"], allow_absent=True)


def test_missing_photos_are_left_out_only_when_asked_and_the_true_gallery_is_shown(root):
    (root / "photos" / NAMES[0]).unlink()
    with pytest.raises(UserError, match="1 of the 12 images"):
        measure(root, allow_absent=True)
    result = measure(root, allow_missing=True)
    assert {one.images for one in result.results} == {11}
    assert result.results[0].gallery == "xtd-1k-test (11 of 12 images)"
    shown = StringIO()
    Console(width=140, file=shown).print(suite.render(result))
    text = shown.getvalue()
    assert "mean of 3 languages" in text
    assert "± half of the 95 % interval" in text
    assert "mean of 1 low-resource language," in text
    row = next(line for line in text.splitlines() if "sw xtd200-test" in line)
    assert row.split()[1:8] == ["xtd200-test", "(11", "of", "12", "images)", "machine", "11"]


def test_corrupt_photos_and_empty_captions_are_left_out_and_told(root, caplog):
    (root / "xtd200" / "swh_Latn.txt").write_text("\n".join([*["9 9 9"] * (len(NAMES) - 1), ""]) + "\n")
    result = measure(root, ["sw"])
    assert result.results[0].images == 11
    assert "xtd200-test in sw: left out 1 empty captions of 12" in caplog.messages


def test_a_run_is_measured_as_eval_measures_it(tmp_path):
    folder = tmp_path / "run"
    runs.train_into(folder, tiny.resolved(), resume=False, overwrite=False)
    quarters = {"name": "folder", "root": str(tiny.data())}
    with pytest.raises(UserError, match="cannot tell its languages: the suite must name them"):
        evaluate_suite(folder, _suite(quarters), ["en"], allow_absent=False)
    found = evaluate_suite(folder, _suite({**quarters, "languages": ["en"]}), [], allow_absent=False)
    [alone] = evaluate(folder, langs=[], split="test", overrides={})
    assert found.results == (alone.without_ranks(),)
    assert found.model == str(folder)


def _suite(*benchmarks) -> suite.Suite:
    return suite.Suite(name="ours", benchmarks=benchmarks)


SUITES = shipped.shipped_names("suites")


def test_the_shipped_suites_are_found():
    assert {"translated-flickr", "translated-coco", "crossmodal-3600", "karpathy"} <= set(SUITES)


@pytest.mark.parametrize("name", SUITES)
def test_a_shipped_suite_says_what_it_is_and_its_options_are_those_of_its_sources(name):
    asked = suite.load(name)
    assert asked.description.endswith(".")
    for one in asked.benchmarks:
        assert "root" in one.spec.options
        one.spec.configure()
        assert hasattr(plugins.load_plugin("sources", one.spec.name), "INFO")
        assert set(one.languages) <= set(languages.language_codes())


def test_a_suite_of_ones_own_is_read_and_a_wrong_one_refused(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[[benchmarks]]\nname = "xtd"\nroot = "x"\nlanguages = ["en"]\n')
    [one] = suite.load(str(path)).benchmarks
    assert (one.spec, one.languages) == (SourceSpec(name="xtd", options={"root": "x"}), ("en",))
    path.write_text('benchmark = "xtd"\n')
    with pytest.raises(UserError, match=r"mine\.toml is not a suite: benchmarks: Field required"):
        suite.load(str(path))
    path.write_text("benchmarks = []\n")
    with pytest.raises(UserError, match=r"mine\.toml is not a suite: .*it names no \[\[benchmarks\]\]"):
        suite.load(str(path))
    path.write_text('[[benchmarks]]\nname = "xtd"\nroot = "x"\nlanguages = "en"\n')
    with pytest.raises(UserError, match=r"not a suite: benchmarks\.0\.languages: Input should be a valid tuple$"):
        suite.load(str(path))
    with pytest.raises(UserError, match='unknown suite "translated-flicker": did you mean "translated-flickr"'):
        suite.load("translated-flicker")


# The suites whose files are not at hand, on small ones of the published form


def colour(number: int) -> str:
    return f"{20 * number} {250 - 20 * number} {(number * 90) % 256}"


def photo(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tiny.Image.new("RGB", (16, 16), tuple(map(int, colour(number).split()))).save(path, quality=100)


def test_crossmodal_3600_is_measured_in_all_its_languages(tmp_path):
    rows = []
    for number in range(6):
        photo(tmp_path / "photos" / f"{number:016x}.jpg", number)
        said = {"caption": [colour(number)] * 2, "caption/tokenized": [[colour(number)]] * 2}
        codes = [{"qu": "quz"}.get(code, code) for code in plugins.load_plugin("sources", "xm3600").languages(None)]
        rows.append(json.dumps({"image/key": f"{number:016x}", "image/locale": "sw"} | dict.fromkeys(codes, said)))
    (tmp_path / "xm3600").mkdir()
    (tmp_path / "xm3600" / "captions.jsonl").write_text("\n".join(rows))
    asked = suite.load("crossmodal-3600").within(tmp_path, tmp_path / "photos", allow_missing=False)
    result = suite.run(Colours(), suite.find(asked, suite.ALL))
    assert len(result.results) == 36
    assert {(one.gallery, one.images, one.captions) for one in result.results} == {("xm3600-all-test", 6, 12)}
    assert {"qu", "mi", "sw"} <= {one.lang for one in result.results}
    everything, scarce = result.averages
    assert (len(everything.languages), everything.scores[6].value) == (36, 1)
    assert {"qu", "mi", "sw", "te"} & set(scarce.languages)
    assert len(scarce.languages) < 36
    first = suite.load("crossmodal-3600-first").within(tmp_path, tmp_path / "photos", allow_missing=False)
    [one] = suite.run(Colours(), suite.find(first, ["sw"])).results
    assert (one.gallery, one.images, one.captions) == ("xm3600-first-test", 6, 6)


def test_karpathys_split_is_measured_whole_and_in_folds(tmp_path, monkeypatch):
    monkeypatch.setattr(plugins.load_plugin("sources", "coco-karpathy"), "_FOLD", 2)
    for folder, file, name in (
        ("coco-karpathy", "dataset_coco.json", "COCO_val2014_{:012d}.jpg"),
        ("flickr30k", "dataset_flickr30k.json", "1{:07d}.jpg"),
    ):
        images = []
        for number in range(10):
            # Photos 0 and 9 look alike: whole, they hurt each other; they are in two folds.
            photo(tmp_path / "photos" / name.format(number), number % 9)
            sentences = [{"raw": colour(number % 9)}] * 5
            images.append({"filename": name.format(number), "filepath": "", "split": "test", "sentences": sentences})
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text(json.dumps({"images": images}))
    asked = suite.load("karpathy").within(tmp_path, tmp_path / "photos", allow_missing=False)
    result = suite.run(Colours(), suite.find(asked, ["en"]))
    flickr, whole, folds = result.results
    assert [one.gallery for one in result.results] == [
        "flickr30k-test",
        "coco-karpathy-test-5k",
        "coco-karpathy-test-1k",
    ]
    assert whole.text_to_image.recall[1].value == flickr.text_to_image.recall[1].value == 0.8
    assert folds.text_to_image.recall[1].value == folds.image_to_text.recall[1].value == 1
    assert folds.fold_sizes() == (2,) * 5
    shown = StringIO()
    Console(width=140, file=shown).print(suite.render(result))
    row = next(line for line in shown.getvalue().splitlines() if "en coco-karpathy-test-1k" in line)
    assert row.split()[2:5] == ["human", "5×2", "50"]
