from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyalign.data.pairs import FileImage, PairTable
from polyalign.evaluation import ranking
from polyalign.evaluation.record import to_json
from polyalign.evaluation.results import Retrieval, Run, Score
from polyalign.evaluation.tasks import retrieval
from polyalign.utils.errors import UserError

INT64 = st.integers(-(2**63) + 1, 2**63 - 1)
TEXT = st.text() | st.lists(st.integers()).map(str)  # also texts that look like a list


def a_gallery(captions: np.ndarray) -> PairTable:
    ids = tuple(f"img{i}" for i in range(len(captions)))
    image_of = np.repeat(np.arange(len(captions)), captions)
    return PairTable(
        name="toy",
        lang="sw",
        origin="human",
        image_ids=ids,
        images=tuple(FileImage(Path(name)) for name in ids),
        captions=tuple(f"neno {c}" for c in range(len(image_of))),
        image_of=image_of,
    )


def embeddings(gallery: PairTable, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((len(gallery.images), 32))
    captions = images[gallery.image_of] + noise * rng.standard_normal((len(gallery), 32))
    images, captions = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, captions))
    return images.astype(np.float32), captions.astype(np.float32)


def a_retrieval(noise: float = 2.0, seed: int = 0, captions: np.ndarray | None = None) -> Retrieval:
    gallery = a_gallery(np.full(40, 3) if captions is None else captions)
    return retrieval.measure(*embeddings(gallery, noise, seed), gallery)


def a_run(**changes: object) -> Run:
    fields: dict[str, object] = {
        "recipe": {"optim": {"lr": 3e-4, "betas": [0.9, 0.98]}, "name": "starter", "none": None},
        "lang": "sw",
        "strategy": "lilt",
        "towers": "both",
        "budget": "10k-pairs",
        "seed": 0,
        "pairs": 10_000,
        "images": 10_000,
        "pairs_seen": 120_000,
        "steps": 940,
        "epochs": 12,
        "stopped_early": True,
        "trainable": 211_204,
        "total": 3_047_681,
        "seconds": 93.4,
        "cpu_seconds": 181.2,
        "peak_memory_bytes": 900_000_000,
        "checkpoint_bytes": 850_000,
        "device": "cpu",
        "threads": 2,
        "caption_origin": "generated",
        "versions": {"torch": "2.14.1"},
        "untrained": a_retrieval(noise=50),
        "test": (a_retrieval(),),
    }
    return Run.model_validate(fields | changes)


def test_a_run_comes_back_from_json_as_it_was(tmp_path: Path) -> None:
    run = a_run()
    path = tmp_path / "deep" / "run.json"
    run.save_json(path)
    assert Run.load_json(path) == run
    assert [p.name for p in path.parent.iterdir()] == ["run.json"]


def test_json_has_a_list_of_numbers_on_one_line(tmp_path: Path) -> None:
    result = a_retrieval()
    result.save_json(tmp_path / "r.json")
    text = (tmp_path / "r.json").read_text()
    assert f'"image_of": {json.dumps(result.image_of)}'.replace("(", "[") in text
    assert len(text.splitlines()) < 100


@pytest.mark.parametrize("text", ["/data/x[1,2]", "[1,\n 2]", "a[ 3 ]b", '"[1,2]"'])
def test_a_list_of_numbers_inside_a_string_is_kept(text: str, tmp_path: Path) -> None:
    run = RUN.model_copy(update={"recipe": {"root": text, text: [1, 2], "deep": [[1, 2], [text]]}})
    run.save_json(tmp_path / "run.json")
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8")) == run.model_dump(mode="json")


def test_files_written_before_are_written_the_same() -> None:
    paths = sorted((Path(__file__).parents[2] / "eval" / "runs").glob("*.json"))[::40]
    assert paths
    for path in paths:
        text = path.read_text(encoding="utf-8")
        assert to_json(json.loads(text)) + "\n" == text


@settings(max_examples=50, deadline=None)
@given(
    value=st.recursive(
        st.none() | st.booleans() | INT64 | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=3),
        max_leaves=12,
    )
)
def test_any_recipe_survives_the_round_trip(value: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    run = RUN.model_copy(update={"recipe": {"name": "starter", "value": value}})
    run.save_json(path)
    assert json.loads(path.read_text(encoding="utf-8")) == run.model_dump(mode="json")
    assert Run.load_json(path) == run


RUN = a_run()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "score.json"
    Score(value=0.5, low=0.4, high=0.6).save_json(path)
    with pytest.raises(ValueError, match="Out of range"):
        Score(value=math.nan, low=0, high=1).save_json(path)
    assert Score.load_json(path).value == 0.5
    assert len(list(tmp_path.iterdir())) == 1


def test_a_missing_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*none.json: No such file"):
        Run.load_json(tmp_path / "none.json")


def test_counts_that_disagree_are_refused() -> None:
    fields = a_retrieval().model_dump()
    for wrong in ({"image_of": [0]}, {"image_of": ()}, {"images": 39}):
        with pytest.raises(ValueError, match=r"differ in number|is not one of the 39 images"):
            Retrieval.model_validate(fields | wrong)


def test_captions_in_order_need_no_list_of_images() -> None:
    result = a_retrieval(captions=np.full(40, 1))
    assert result.image_of == ()
    assert result.captions_per_image().tolist() == [1] * 40
    assert ranking.recalls(result.hits())[0] == pytest.approx(result.text_to_image.recall[1].value)


def test_ranks_can_be_left_out_but_then_not_tested() -> None:
    result = a_retrieval().without_ranks()
    assert Retrieval.model_validate_json(result.model_dump_json()) == result
    assert result.mean_recall == a_retrieval().mean_recall
    assert result.chance()[0] == pytest.approx(1 / 40)
    with pytest.raises(ValueError, match="left out"):
        result.hits()


def test_hits_and_chance_come_from_the_record_alone() -> None:
    result = Retrieval.model_validate_json(a_retrieval().model_dump_json())
    hits = result.hits()
    assert hits.hits.sum(axis=0)[0] / 120 == pytest.approx(result.text_to_image.recall[1].value)
    assert hits.hits.mean(axis=0)[5] == pytest.approx(result.image_to_text.recall[10].value)
    assert result.captions_per_image().tolist() == [3] * 40
    assert result.chance()[0] == pytest.approx(1 / 40)


@pytest.mark.parametrize(
    "place",
    [
        *[("text_to_image", "ranks", number) for number in (0, 7, 119)],
        *[(way, key) for way in ("text_to_image", "image_to_text") for key in ("queries", "mean_rank", "median_rank")],
        *[("image_to_text", "recall", k, key) for k in ("1", "5", "10") for key in ("value",)],
        ("mean_recall", "value"),
    ],
    ids=str,
)
def test_a_number_that_does_not_fit_the_ranks_is_refused(place: tuple[str | int, ...], tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    raw = json.loads(to_json(a_retrieval().model_dump(mode="json")))
    *above, last = place
    table = raw
    for key in above:
        table = table[key]
    table[last] += 1 if isinstance(table[last], int) else -1e-6
    path.write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(UserError, match=r"is not a retrieval result: .*(ranks|mean)"):
        Retrieval.load_json(path)


def test_a_value_outside_of_its_interval_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the value 0\.5 is not in its interval \[0\.6, 0\.7\]"):
        Score(value=0.5, low=0.6, high=0.7)
