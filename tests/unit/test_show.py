"""The page of a run: what it says, what it shows, and that nothing in it runs or loads."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from polyalign.data import leakage
from polyalign.data.pairs import FileImage, PairTable
from polyalign.evaluation import html
from polyalign.evaluation.model import MemoryImage
from polyalign.evaluation.results import Change, Retention, Run
from polyalign.experiments.run_folders import train_into
from polyalign.serving import show, show_photos
from polyalign.training import train
from polyalign.utils.errors import UserError
from tests import tiny
from tests.pages import Page, checked
from tests.unit.test_hostile_results import HOSTILE, VALUES, changed, paths
from tests.unit.test_results import a_retrieval

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A finished run whose data and towers lie beside it."""
    root = tmp_path_factory.mktemp("show")
    shutil.copytree(tiny.data(), root / "data")
    shutil.copytree(tiny.text(), root / "text")
    recipe = tiny.resolved(
        source={"root": str(root / "data")}, text={"model": str(root / "text")}, test={"knowledge": True}
    )
    train_into(root / "run", recipe, resume=False, overwrite=False)
    return root


@pytest.fixture(scope="module")
def made(trained) -> Page:
    return checked(show.page(trained / "run"))


@pytest.fixture
def moved(trained, tmp_path) -> Path:
    """The same run in another place, with data and towers of its own, which a test may change."""
    root = shutil.copytree(trained, tmp_path / "there")
    recipe = root / "run" / "recipe.toml"
    recipe.write_text(recipe.read_text(encoding="utf-8").replace(str(trained), str(root)), encoding="utf-8")
    return root


def edited(root: Path, **fields: Any) -> Path:
    run = Run.load_json(root / "run" / train.RESULT).model_copy(update=fields)
    run.save_json(root / "run" / train.RESULT)
    return root / "run"


def section(page: Page, title: str) -> str:
    """Return the HTML from a heading to the next one."""
    return next(part for part in page.html.split("<h2>") if part.startswith(title) or f": {title}" in part[:60])


def test_it_says_what_was_trained_and_how_well_it_does(made, trained):
    run = Run.load_json(trained / "run" / train.RESULT)
    assert f"trained on {run.pairs} captions of {run.images} photos, and tested on 24 others" in made.text
    scores = section(made, "how well photos")
    for score in run.test[0].scores:
        value, low, high = (f"{100 * one:.1f}" for one in (score.value, score.low, score.high))
        assert f'{value} <span class="range">[{low}, {high}]</span>' in scores
    chance = f"{100 * run.test[0].chance().mean():.1f}"
    assert scores.index("mean recall") < scores.index(f"<td>{chance}</td></tr>", scores.index("mean recall"))
    assert all(word in made.text for word in ("projection, towers: both", "Chance", "interval", "tiny, 0"))
    assert str(trained) not in made.html, "places on the disk are nobody else's business"


def test_the_same_run_gives_the_same_page(made, trained):
    assert show.page(trained / "run") == made.html


def test_each_search_frames_the_one_right_photo_at_the_place_that_the_result_has(made, trained):
    run = Run.load_json(trained / "run" / train.RESULT)
    samples = section(made, "what a search finds").split('<div class="query">')[1:]
    even = np.unique(np.linspace(0, 47, 6).round().astype(int))
    assert len(samples) == len(even)
    for number, one in zip(even, samples, strict=True):
        rank = run.test[0].text_to_image.ranks[number]
        assert one.count('<li class="right">') == 1
        assert one.count("<li") == 5 + (rank > 5)
        assert f"\n{rank}, the right photo" in one
        assert tiny.table("test").captions[number] in one
    pictures = [base64.b64decode(source.partition(",")[2]) for source in made.all("src")]
    assert all(max(Image.open(io.BytesIO(one)).size) <= 176 for one in pictures)


def test_the_curve_has_a_point_for_each_dev_evaluation_and_a_larger_one_for_the_best(made, trained):
    run = Run.load_json(trained / "run" / train.RESULT)
    points = [attrs for tag, attrs in made.tags if tag == "circle"]
    recalls = [one.dev_mean_recall for one in run.dev_evaluations]
    heights = [-float(one["cy"]) for one in points]
    assert np.argsort(heights, kind="stable").tolist() == np.argsort(recalls, kind="stable").tolist()
    assert [one["r"] for one in points].index("6") == recalls.index(max(recalls))


def test_captions_by_length_add_up(made):
    rows = re.findall(r"<tr><td>([\d to]+)</td><td>(\d+)</td><td>([\d.]+)</td>", section(made, "short and long"))
    assert [row[0] for row in rows] == ["4", "12"]
    assert [row[1] for row in rows] == ["24", "24"]


def test_tokens_and_what_the_towers_lost_are_there(made):
    assert "<td>English</td><td>1.00</td>" in section(made, "Tokens a word").replace("\n", "")
    assert "Not measured in this run" in section(made, "What other languages lost")


def test_retention_and_transfer_are_shown(moved):
    kept = Retention(sentences={"en-sw": Change(before=0.8, after=0.6)}, probe={"knn": Change(before=0.5, after=0.75)})
    run = Run.load_json(moved / "run" / train.RESULT)
    other = a_retrieval(3.0).model_copy(update={"lang": "yo"})
    page = checked(show.page(edited(moved, retention=kept, test=(*run.test, other))))
    lost = re.sub("<[^>]*>", " ", section(page, "What other languages lost"))
    assert "translations found, English and Swahili 80.0 60.0 -20.0" in " ".join(lost.split())
    assert "objects recognised in images, knn 50.0 75.0 +25.0" in " ".join(lost.split())
    assert f"Yoruba {100 * other.mean_recall.value:.1f}" in " ".join(lost.split())


def test_a_run_in_two_languages_shows_both_and_one_without_pairs_says_so(moved, tmp_path):
    source = {"name": "folder", "root": str(tiny.bilingual())}
    recipe = tiny.resolved("projection", source=source, data={"also_langs": ["de"]})
    train_into(tmp_path / "run", recipe, resume=False, overwrite=False)
    page = checked(show.page(tmp_path / "run"))
    assert "Finding photos in English and German" in page.text
    for title in ("how well photos", "what a search finds", "the worst failures", "short and long"):
        assert page.text.count(f"English: {title}") == page.text.count(f"German: {title}") == 1
    assert {"en", "de"} <= set(page.all("lang"))
    page = checked(show.page(edited(moved, pairs=0, images=0, parallel_rows=70)))
    assert "trained on sentences and their translations, without photos, and tested on 24 photos" in page.text


# What is not there


@pytest.mark.parametrize(
    ("gone", "missing", "there"),
    [
        ("data", {"what a search finds", "short and long", "Tokens a word"}, {"Learning curve"}),
        ("text", {"what a search finds"}, {"short and long", "Tokens a word", "Learning curve"}),
        ("run/tokenizer", {"what a search finds", "Tokens a word"}, {"short and long", "Learning curve"}),
    ],
)
def test_what_is_not_there_is_said_and_the_rest_is_shown(gone, missing, there, moved, caplog):
    shutil.rmtree(moved / gone)
    page = checked(show.page(moved / "run"))
    headings = " ".join(re.findall("<h2>(.*?)</h2>", page.html))
    assert not [one for one in missing if one in headings]
    assert not [one for one in there if one not in headings]
    assert page.text.count("Not shown:") == 1
    assert any("the page does not show" in message for message in caplog.messages)
    assert str(moved) not in page.html
    assert not page.all("src")


def test_a_run_that_was_not_evaluated_while_it_trained_has_no_curve(moved):
    page = checked(show.page(edited(moved, dev_evaluations=())))
    assert "was not evaluated on dev" in page.text
    assert "<svg" not in page.html


def test_changed_test_data_is_said(moved):
    sheet = moved / "data" / "captions.csv"
    sheet.write_text(sheet.read_text(encoding="utf-8").replace("red", "blue"), encoding="utf-8")
    page = checked(show.page(moved / "run"))
    assert "the test data is not what it was when the run was tested" in page.text
    assert "short and long" not in page.text, "the ranks are those of other captions"


def test_a_folder_without_a_run_is_one_line(tmp_path):
    with pytest.raises(UserError, match="holds no finished checkpoint"):
        show.page(tmp_path)


def test_few_photos_and_chance_are_warned_of(moved):
    page = checked(show.page(moved / "run"))
    assert "Few test images (24): mean recall is only known to be in [" in page.text
    run = Run.load_json(moved / "run" / train.RESULT)
    page = checked(show.page(edited(moved, test=(run.untrained,))))
    assert "Not better than chance, as far as 24 test images can tell" in page.text


# Hostile


def test_any_value_in_any_place_of_the_result_gives_a_page_or_one_line(moved, monkeypatch):
    monkeypatch.setattr(show, "_find", lambda folder, by_lang: show._Found())
    run = Run.load_json(moved / "run" / train.RESULT)
    kept = Retention(sentences={"en-sw": Change(before=0.8, after=0.6)})
    other = a_retrieval(3.0).model_copy(update={"lang": "yo"})
    raw = json.loads(run.model_copy(update={"retention": kept, "test": (*run.test, other)}).model_dump_json())
    path, made = moved / "run" / train.RESULT, 0
    for number, at in enumerate(paths(raw)):
        for new in VALUES[number % 11 :: 11]:
            path.write_text(json.dumps(changed(raw, at, new)))
            text, told = "", "result.json"
            try:
                text = show.page(moved / "run")
            except UserError as error:
                told = str(error)
            assert "\n" not in told, (at, new)
            assert "result.json" in told, (at, new)
            if text:
                made += 1
                checked(text)
    assert made > 100


def test_hostile_captions_and_file_names_are_shown_as_they_are(tmp_path, monkeypatch):
    hostile = '<script>alert(1)</script> "><img src=x onerror=y> {{ 7 * 7 }} \u202e \x1b[31m قطة &amp;'
    folder = tmp_path / "<b>data"
    shutil.copytree(tiny.data(), folder)
    with (folder / "captions.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    name = "<img src=x onerror=alert(1)>.png"
    plain = next(row["image"] for row in rows if row["split"] == "test")
    (folder / "images" / plain).rename(folder / "images" / name)
    for row in rows:
        row["caption"] += f" {hostile}" if row["split"] == "test" else ""
        row["image"] = name if row["image"] == plain else row["image"]
    with (folder / "captions.csv").open("w", encoding="utf-8", newline="") as file:
        sheet = csv.DictWriter(file, rows[0])
        sheet.writeheader()
        sheet.writerows(rows)
    train_into(tmp_path / "run", tiny.resolved(source={"root": str(folder)}), resume=False, overwrite=False)
    page = checked(show.page(tmp_path / "run"))
    assert "<script>alert(1)</script>" in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert HOSTILE not in page.text
    assert all(attrs["dir"] == "auto" for _, attrs in page.tags if attrs.get("class") in ("caption", "caption-of"))


# Which misses are errors


def a_gallery(folder: Path, seed: int = 0) -> PairTable:
    """Five photos: the second is a copy of the first, re-encoded; the third has the caption of the fourth."""
    rng = np.random.default_rng(seed)
    photos = [Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((96, 96)) for _ in range(4)]
    for number, photo in enumerate([photos[0], photos[0], *photos[1:]]):
        photo.save(folder / f"{number}.jpg", quality=90 - 15 * number)
    return PairTable(
        name="five",
        lang="en",
        origin="human",
        image_ids=tuple("abcde"),
        images=tuple(FileImage(folder / f"{number}.jpg") for number in range(5)),
        captions=("a cat", "one cat", "A  dog", "a dog", "a tree"),
        image_of=np.arange(5),
    )


def test_copies_look_the_same_and_other_photos_do_not(tmp_path):
    gallery = a_gallery(tmp_path)
    assert leakage.near_duplicates(gallery.images).tolist() == [0, 0, 2, 3, 4]
    twice = (*gallery.images, gallery.images[4], MemoryImage(Image.new("RGB", (8, 8))))
    assert leakage.near_duplicates(twice).tolist() == [0, 0, 2, 3, 4, 4, 6]
    assert leakage.near_duplicates(()).tolist() == []


def test_a_copy_or_the_same_caption_above_is_no_error_and_another_photo_is(tmp_path):
    gallery = a_gallery(tmp_path)
    images = np.eye(5, 8, dtype=np.float32)
    captions = np.array(
        [[0.6, 0.8, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0.6, 0.8, 0], [0, 0, 0, 1, 0], [0.8, 0, 0, 0, 0.6]], np.float32
    )
    captions = np.pad(captions, ((0, 0), (0, 3)))
    found = show_photos.examples(gallery, images, captions, [2, 1, 2, 1, 2])
    assert [one.caption for one in found.failures] == ["a tree"]
    assert [(one.caption, one.note) for one in found.lookalikes] == [
        ("a cat", "What came first looks the same."),
        ("A  dog", "What came first has the very same caption."),
    ]
    assert (found.missed, found.excused) == (3, 2)
    shown = found.failures[0].photos
    assert [(one.label, one.is_right, one.caption) for one in shown] == [
        ("1", False, "a cat"),
        ("2, the right photo", True, None),
    ]


def test_one_test_photo_is_enough(tmp_path):
    one = a_gallery(tmp_path).take_pairs([0])
    found = show_photos.examples(one, np.ones((1, 1), np.float32), np.ones((1, 1), np.float32), [1])
    assert [photo.is_right for query in found.samples for photo in query.photos] == [True]
    assert (found.failures, found.lookalikes, found.missed) == ((), (), 0)


def test_of_equal_scores_the_right_photo_comes_last(tmp_path):
    gallery = a_gallery(tmp_path)
    finder = show_photos.Finder(gallery, np.ones((5, 1), np.float32), np.ones((5, 1), np.float32))
    assert finder.ranked(1).tolist() == [0, 2, 3, 4, 1]


def test_folds_are_searched_on_their_own(tmp_path):
    gallery = a_gallery(tmp_path)
    folds = PairTable(**{**vars(gallery), "fold_of": np.array([0, 0, 1, 1, 1])})
    finder = show_photos.Finder(folds, np.ones((5, 1), np.float32), np.ones((5, 1), np.float32))
    assert finder.ranked(1).tolist() == [0, 1]


def test_a_page_stays_small_with_many_photos_that_do_not_compress():
    rng = np.random.default_rng(0)
    count = 2000
    noise = [MemoryImage(Image.fromarray(rng.integers(0, 256, (300, 300, 3), dtype=np.uint8))) for _ in range(40)]
    gallery = PairTable(
        name="large",
        lang="en",
        origin="human",
        image_ids=tuple(map(str, range(count))),
        images=tuple(noise[i % 40] for i in range(count)),
        captions=tuple(f"caption {i % 1000}" for i in range(count)),
        image_of=np.arange(count),
    )
    vectors = [rng.normal(size=(count, 8)).astype(np.float32) for _ in range(2)]
    found = show_photos.examples(gallery, *vectors, ranks=rng.integers(1, count, count).tolist())
    queries = (*found.samples, *found.failures, *found.lookalikes)
    size = sum(len(photo.uri) for query in queries for photo in query.photos)
    assert 4 * size < 4_500_000, "of four languages"


# The command


def test_the_command_writes_the_page_and_keeps_files_of_others(moved, run, monkeypatch, tmp_path):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("show", moved / "run", "--open")
    assert (code, out) == (0, "run.html\n")
    assert opened == [(tmp_path / "run.html").as_uri()]
    checked((tmp_path / "run.html").read_text(encoding="utf-8"))
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    code, _, said = run("show", moved / "run", "--out", "mine.html")
    assert (code, said) == (2, "error: mine.html was not written by polyalign: move it away, or choose another name\n")
    assert run("show", tmp_path / "nothing", "--out", "x.html")[0] == 2


def test_a_page_is_replaced_by_a_page_only(tmp_path):
    html.save(tmp_path / "a.html", html.render("report.html", title="A", body="b"))
    html.save(tmp_path / "a.html", html.render("report.html", title="B", body="b"))
    for other in (tmp_path, tmp_path / "link"):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(tmp_path / "nowhere")
        with pytest.raises(UserError, match="was not written by polyalign"):
            html.refuse_foreign(other)


@pytest.mark.skipif(not CHROMIUM.is_file(), reason="no Chromium")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_phone_shows_it_without_scrolling_sideways(made, tmp_path):
    """In a browser: the page fits 360 px, the right photos have their frame, and nothing violates the policy."""
    api = pytest.importorskip("playwright.sync_api")
    path = tmp_path / "page.html"
    path.write_text(made.html, encoding="utf-8")
    said: list[str] = []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        window = browser.new_page(viewport={"width": 360, "height": 640})
        window.on("console", lambda message: said.append(message.text))
        window.on("request", lambda request: said.append(request.url) if not request.url.startswith("data:") else None)
        window.goto(path.as_uri())
        assert window.evaluate("document.scrollingElement.scrollWidth") <= 360
        broken = "[...document.images].filter(one => !one.complete || !one.naturalWidth).length"
        assert window.evaluate(broken) == 0
        outline = "getComputedStyle(document.querySelector('.right img')).outlineWidth"
        assert window.evaluate(outline) == "4px"
        browser.close()
    assert said == [path.as_uri()]
