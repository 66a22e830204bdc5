from __future__ import annotations

import json
from pathlib import Path

import pytest

from polyalign.data.audit import AuditReport
from polyalign.evaluation.results import Retention, TextByRetrieval
from polyalign.experiments import run_folders as runs
from tests import tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    found = tiny.resolved("full", optim={"epochs": 1}, train={"evals": 1}, test={"languages": ["de"]})
    runs.train_into(folder, found, resume=False, overwrite=False)
    return folder


def test_text_by_retrieval_in_several_languages(run, trained):
    code, out, _ = run("eval", trained, "--task", "text-by-retrieval", "--lang", "en,de", "--json")
    assert code == 0
    results = [TextByRetrieval.model_validate(result) for result in json.loads(out)]
    assert [(result.lang, result.images) for result in results] == [("en", 24), ("de", 24)]
    code, out, _ = run("eval", trained, "--task", "text-by-retrieval")
    assert code == 0
    assert "chrF of the retrieved caption" in out


def test_knowledge_in_the_languages_of_the_run_or_others(run, trained):
    code, out, _ = run("retention", trained, "--json")
    assert code == 0
    kept = Retention.model_validate(json.loads(out)[0])
    assert set(kept.sentences) == {"en-de"}
    assert kept.moved["text"] > 0
    code, out, _ = run("retention", trained, "--lang", "de,en", "--json")
    assert set(json.loads(out)[0]["sentences"]) == {"en-de"}
    code, _, err = run("retention", trained, "--lang", "en,hi", "--json")
    assert (code, "has the same captions in en and hi" in err) == (2, True)
    assert "Retention" in run("retention", trained)[1]


def test_captions_are_audited_against_others_of_the_same_images(run, tmp_path):
    code, out, _ = run("data", "audit", tiny.data(), f"{tiny.data()}:test", "--lang", "en", "--json")
    assert code == 0
    report = AuditReport.model_validate_json(out)
    assert report.captions == 48
    assert report.scores[0].score == pytest.approx(100)
    assert "chrF++" in run("data", "audit", tiny.data(), tiny.data(), "--lang", "en")[1]


WRONG = {
    "evaluator": (("eval", "{run}", "--task", "text-by-retreival"), 'did you mean "text-by-retrieval"?'),
    "suite": (
        ("eval", "{run}", "--suite", "translated-flickr", "--task", "text-by-retrieval"),
        "a suite defines its data and measures retrieval",
    ),
    "run": (("retention", "nowhere"), "holds no finished checkpoint"),
    "language": (("retention", "{run}", "--lang", "swx"), 'unknown language "swx": did you mean "sw"?'),
    "source": (("data", "audit", "flickr8", "flickr8k", "--lang", "de"), 'did you mean "flickr8k"?'),
    "images": (("data", "audit", "{data}:dev", "{data}:test", "--lang", "en"), "share no image"),
    "command": (("retenion", "{run}"), "No such command 'retenion'. Did you mean 'retention'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_is_one_line(name, run, trained):
    arguments, said = WRONG[name]
    filled = [argument.format(run=trained, data=tiny.data()) for argument in arguments]
    code, out, err = run(*filled)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: ")
    assert said in err.splitlines()[-1]
