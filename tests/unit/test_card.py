from __future__ import annotations

import json
from types import SimpleNamespace

import httpx
import pytest
from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError

from polyalign.evaluation.results import Change, Retention, Run
from polyalign.experiments.run_folders import train_into
from polyalign.serving import card as cards
from polyalign.serving.card import card
from polyalign.utils.errors import UserError
from tests import tiny


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "tiny")


def train(folder):
    """Train for one epoch."""
    recipe = tiny.resolved("lora", optim={"epochs": 1}, data={"budget": "64-pairs"})
    train_into(folder, recipe, resume=False, overwrite=False)
    return folder


def record(folder, changes, run: str = "other"):
    """Copy the result of a run with changes."""
    new = folder.parent / run
    new.mkdir(exist_ok=True)
    (new / "model.safetensors").write_bytes(b"")
    raw = json.loads((folder / "result.json").read_text())
    (new / "result.json").write_text(json.dumps({**raw, **changes}))
    return new


def with_towers(folder, vision: str, text: str, source: str = "starter"):
    recipe = json.loads((folder / "result.json").read_text())["recipe"]
    changed = {"vision": {"model": vision}, "text": {"model": text}, "source": {"name": source}}
    return record(folder, {"recipe": {**recipe, **changed}})


def test_the_card_has_what_the_hub_shows(finished):
    made = card(finished, licence="cc-by-4.0", repo="ana/quarters", base_models=["a/b", "c/d"])
    read = ModelCard(str(made)).data
    assert (read.language, read.license, read.base_model) == (["en"], "cc-by-4.0", ["a/b", "c/d"])
    assert (read.pipeline_tag, read.library_name) == ("zero-shot-image-classification", "polyalign")
    assert {"polyalign", "lora"} <= set(read.tags)
    run = Run.load_json(finished / "result.json")
    scores = {score.metric_name: score for score in read.eval_results}
    assert len(scores) == 7
    mean = scores["mean recall"]
    assert mean.metric_value == pytest.approx(100 * run.test[0].mean_recall.value, abs=0.01)
    assert mean.metric_args["interval_95"][0] <= mean.metric_value <= mean.metric_args["interval_95"][1]
    assert mean.metric_args["chance"] == pytest.approx(100 * run.test[0].chance().mean(), abs=0.01)
    assert mean.dataset_args == {"images": 24, "captions": 48, "caption_origin": "unknown"}


def test_the_text_says_how_well_it_works_and_names_no_folder(finished):
    text = str(card(finished, licence="mit", repo="ana/quarters"))
    assert "| English (en) | 24 |" in text
    assert "| chance |" in text
    assert "was not measured" in text
    assert 'snapshot_download("ana/quarters")' in text
    assert str(tiny.vision().parent) not in text
    assert str(tiny.data()) not in text


def test_what_other_languages_lost_is_in_it(finished):
    kept = Retention(
        sentences={"en-de": Change(before=0.5, after=0.25)}, probe={"objects": Change(before=1, after=0.9)}
    )
    run = record(finished, {"retention": kept.model_dump(mode="json")})
    text = str(card(run, licence="mit"))
    assert "| sentences en-de | 50.0 | 25.0 |" in text
    assert "| objects | 100.0 | 90.0 |" in text


def test_an_unknown_licence_is_asked_for(run, finished):
    code, _, err = run("card", finished)
    assert (code, err.count("\n")) == (2, 1)
    assert "the licence of the vision tower" in err
    assert "--license, such as" in err
    code, out, _ = run("card", finished, "--license", "cc-by-nc-4.0")
    assert code == 0
    assert ModelCard(out).data.license == "cc-by-nc-4.0"


def test_the_strictest_licence_counts_and_a_laxer_one_is_refused(monkeypatch, finished):
    run = with_towers(finished, "vit_small_patch14_dinov2.lvd142m", "someone/encoder")
    monkeypatch.setattr(cards, "_licence_on_hub", lambda name: {"someone/encoder": "cc-by-nc-4.0"}[name])
    made = card(run).data
    assert made.license == "cc-by-nc-4.0"
    assert made.base_model == ["timm/vit_small_patch14_dinov2.lvd142m", "someone/encoder"]
    with pytest.raises(UserError, match=r"mit asks less of users than cc-by-nc-4\.0, the licence of the text"):
        card(run, licence="mit")
    assert card(run, licence="CC-BY-NC-4.0").data.license == "cc-by-nc-4.0"
    for laxer in ("MIT", "Apache-2.0"):
        with pytest.raises(UserError, match="asks less of users than cc-by-nc"):
            card(run, licence=laxer)
    with pytest.raises(UserError, match=r'cannot be compared with cc-by-nc-4\.0.*did you mean "apache-2\.0"'):
        card(run, licence="Apache 2.0")


def test_terms_that_nothing_is_known_against_may_be_given(finished):
    other = card(finished, licence="our-own-terms").data
    assert (other.license, other.license_name) == ("other", "our-own-terms")


def test_the_licence_of_a_local_tower_is_in_its_readme(finished, tmp_path):
    (tmp_path / "tower").mkdir()
    (tmp_path / "tower" / "README.md").write_text("---\nlicense: gpl-3.0\n---\n# Tower\n")
    assert card(with_towers(finished, "starter", str(tmp_path / "tower"))).data.license == "gpl-3.0"
    (tmp_path / "tower" / "README.md").write_text("# Tower\n")
    with pytest.raises(UserError, match="the licence of the text tower from a local folder is not known"):
        card(with_towers(finished, "starter", str(tmp_path / "tower")))


def test_the_terms_of_a_published_dataset_are_shown(finished):
    with pytest.raises(UserError, match=r"the data \(xtd: .*non-commercial research"):
        card(with_towers(finished, "starter", "starter", "xtd"))


def test_a_language_of_another_folder_and_hostile_names_do_no_harm(finished):
    run = record(finished, {"device": "cpu | <script>\n# Title"})
    text = str(card(run, licence="mit", repo="ana/<b>"))
    assert "<script>" not in text
    assert "\n# Title" not in text


def test_a_folder_without_a_result_is_refused(run, finished, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    code, _, err = run("card", tmp_path)
    assert (code, "has no result.json" in err) == (2, True)
    code, _, err = run("card", finished.parent)
    assert (code, "no finished checkpoint" in err) == (2, True)


def test_it_can_be_written_to_a_file(run, finished, tmp_path):
    assert run("card", finished, "--license", "mit", "--out", tmp_path / "README.md")[0] == 0
    assert ModelCard.load(tmp_path / "README.md").data.license == "mit"


def test_only_a_card_is_replaced(run, finished, tmp_path):
    words = ("card", finished, "--license", "mit", "--out", tmp_path / "README.md")
    assert [run(*words)[0] for _ in range(2)] == [0, 0]
    (tmp_path / "README.md").write_text("# My project\n", encoding="utf-8")
    code, _, err = run(*words)
    assert (code, "was not written by polyalign" in err) == (2, True)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "# My project\n"


@pytest.mark.parametrize("error", [httpx.ProxyError("403 Forbidden"), HFValidationError("no name")])
def test_a_hub_that_cannot_be_asked_knows_no_licence(error, monkeypatch, finished):
    def model_info(name: str) -> None:
        raise error

    monkeypatch.setattr(cards, "model_info", model_info)
    monkeypatch.setattr(cards, "check_hub", lambda: None)
    monkeypatch.setattr(cards.hub, "HF_HUB_OFFLINE", False)
    with pytest.raises(UserError, match="the licence of the text tower `a/encoder` is not known"):
        card(with_towers(finished, "starter", "a/encoder"))
    with pytest.raises(UserError, match="the text tower from a local folder is not known"):
        card(with_towers(finished, "starter", "a/b/encoder"))


def test_licences_are_read_from_the_hub(monkeypatch, finished):
    asked = []

    def model_info(name: str) -> SimpleNamespace:
        asked.append(name)
        if name == "someone/gone":
            raise OSError("no such model")
        return SimpleNamespace(card_data={"license": "cc-by-sa-4.0"} if name == "someone/encoder" else None)

    monkeypatch.setattr(cards, "model_info", model_info)
    monkeypatch.setattr(cards, "check_hub", lambda: None)
    monkeypatch.setattr(cards.hub, "HF_HUB_OFFLINE", False)
    made = card(with_towers(finished, "hf-hub:someone/encoder", "someone/encoder")).data
    assert (made.license, made.base_model) == ("cc-by-sa-4.0", ["someone/encoder"] * 2)
    for name in ("someone/gone", "someone/silent"):
        with pytest.raises(UserError, match=f"the licence of the text tower `{name}` is not known"):
            card(with_towers(finished, "starter", name))
    monkeypatch.setattr(cards.hub, "HF_HUB_OFFLINE", True)
    asked.clear()
    with pytest.raises(UserError, match="`someone/encoder` is not known"):
        card(with_towers(finished, "starter", "someone/encoder"))
    assert not asked


def test_an_unknown_timm_model_has_no_licence(finished):
    with pytest.raises(UserError, match="the licence of the vision tower `vit_of_mine` is not known"):
        card(with_towers(finished, "vit_of_mine", "starter"))
