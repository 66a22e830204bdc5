from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console, RenderableType

from polyalign.evaluation import tables
from polyalign.evaluation.results import Change, Retention, Retrieval, Score, TextByRetrieval, ZeroShot
from polyalign.evaluation.tasks import retention, retrieval, text_by_retrieval, zeroshot
from tests.unit.test_results import a_retrieval, a_run


def show(renderable: RenderableType, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), record=True, force_terminal=False)
    console.print(renderable)
    return console.export_text()


def test_percent_shows_the_interval() -> None:
    assert tables.percent(Score(value=0.3119, low=0.284, high=0.34)) == "31.2 [28.4, 34.0]"
    assert tables.percent(1.0) == "100.0"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (59.6, "1 min 00 s"), (725, "12 min 05 s"), (12_000, "3 h 20 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert tables.duration(seconds) == text


def test_share_has_count_and_percent() -> None:
    assert tables.share(211_204, 3_047_681) == "211,204 (6.93 %)"


def wide(result: Retrieval) -> Retrieval:
    """The widest numbers there are."""
    full = Score(value=1, low=1, high=1)
    recall = dict.fromkeys((1, 5, 10), full)
    return result.model_copy(
        update={
            "text_to_image": result.text_to_image.model_copy(update={"recall": recall, "median_rank": 999.5}),
            "image_to_text": result.image_to_text.model_copy(update={"recall": recall}),
            "mean_recall": full,
        }
    )


def test_retrieval_table_fits_and_says_all() -> None:
    text = show(tables.retrieval_table(wide(a_retrieval()), a_retrieval(noise=50)))
    assert text.count("100.0 [100.0, 100.0]") == 7
    assert "…" not in text
    for word in ("chance", "untrained", "trained", "text to image", "image to text", "mean recall"):
        assert word in text
    flat = " ".join(text.split())
    assert "40 images, 120 captions, 3 an image; ties rank ahead (0 tied queries)" in flat


def test_retrieval_table_shows_chance_of_this_gallery() -> None:
    text = show(tables.retrieval_table(a_retrieval()))
    row = next(line for line in text.splitlines() if "chance" in line)
    assert row.split()[1:] == ["2.5", "12.5", "25.0"]
    assert "untrained" not in text


def test_overview_of_languages_fits() -> None:
    text = show(retrieval.render([wide(a_retrieval())] * 3))
    assert "…" not in text
    assert text.count("100.0 ±0.0") == 21


@pytest.mark.parametrize("width", [50, 80, 92, 100, 104, 120])
def test_no_table_cuts_a_number_or_a_language(width: int) -> None:
    results = [wide(a_retrieval()).model_copy(update={"lang": lang}) for lang in ("qu", "gn", "zh-Hant")]
    one = show(tables.retrieval_table(results[0], a_retrieval(noise=50)), width)
    overview = show(retrieval.render(results), width)
    for text in (one, overview):
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= width
    assert one.count("100.0 [100.0, 100.0]") == 7
    assert overview.count("100.0 ±0.0") == 21
    assert all(lang in overview for lang in ("qu", "gn", "zh-Hant"))


def test_run_facts() -> None:
    text = show(tables.run_facts(a_run()))
    assert "211,204 (6.93 %) of 3,047,681 parameters" in text
    assert "stopped early" in " ".join(text.split())


def test_captions_of_different_number_are_a_range() -> None:
    result = a_retrieval(captions=np.array([1, 3, 2]))
    assert "1 to 3 an image" in tables.gallery_line(result)


def test_zeroshot_shows_chance_and_prompts() -> None:
    score = Score(value=1, low=1, high=1)
    scores = {"top1": score, "top5": score, "mean_per_class": score}
    result = ZeroShot(
        dataset="pets",
        lang="sw",
        templates=("picha ya {}.", *"abcd"),
        named_by="pets.tsv",
        classes=40,
        images=50_000,
        ties=0,
        **scores,
    )
    text = show(zeroshot.render([result]))
    assert "…" not in text
    assert "2.5" in text
    assert "picha ya {}. | a | b | ... (5); names: pets.tsv" in text


def test_text_by_retrieval_stands_between_its_baselines() -> None:
    numbers = {"random": 20.0, "chrf": 31.25, "own": 50.0}
    result = TextByRetrieval(gallery="toy", lang="sw", images=2, captions=10, signature="chrF2", **numbers)
    assert show(text_by_retrieval.render([result])).split().index("31.2")


def test_knowledge_shows_its_one_number() -> None:
    result = Retention(
        sentences={"en-sw": Change(before=0.8, after=0.4)},
        perplexity={"sw": Change(before=5, after=7.25)},
        cka={"text": (1.0, 0.9, 0.8, 0.7)},
        moved={"text": 0.25},
    )
    text = show(retention.render([result]))
    for piece in ("Retention: 50.0 percent", "80.0", "40.0", "7.2", "1.00  0.90  0.80  0.70", "0.250"):
        assert piece in text


def test_markdown() -> None:
    assert tables.markdown(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |\n"
