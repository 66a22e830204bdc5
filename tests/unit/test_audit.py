from __future__ import annotations

from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from rich.console import Console

from polyalign.config import language as languages
from polyalign.data import audit as data_audit
from polyalign.data.audit import AuditReport
from polyalign.data.pairs import FileImage, PairTable
from polyalign.utils.errors import UserError

EN = languages.load_language("en")


def table(name: str, captions: list[tuple[str, str]], lang: str = "en") -> PairTable:
    ids = tuple(dict.fromkeys(image_id for image_id, _ in captions))
    return PairTable(
        name=name,
        lang=lang,
        origin="machine" if name == "mt" else "human",
        image_ids=ids,
        images=tuple(FileImage(Path(image_id)) for image_id in ids),
        captions=tuple(caption for _, caption in captions),
        image_of=np.array([ids.index(image_id) for image_id, _ in captions], dtype=np.int64),
    )


HUMAN = table(
    "human",
    [
        ("a", "a brown dog runs over the green grass"),
        ("b", "two children are sitting on a bench"),
        ("b", "a pair of kids rest on a wooden bench"),
        ("c", "a man climbs"),
    ],
)
MACHINE = table(
    "mt",
    [("a", "a brown dog is running over green grass"), ("b", "two kids sit on a wooden bench"), ("x", "nothing alike")],
)


def scores(report: AuditReport) -> dict[str, float | None]:
    return {one.metric: one.score for one in report.scores}


def test_scores_are_sacrebleus_own_with_every_reference_of_the_image():
    report = data_audit.score_captions(MACHINE, HUMAN, EN)
    texts = list(MACHINE.captions[:2])
    streams = [list(HUMAN.captions[:2]), [None, HUMAN.captions[2]]]
    assert scores(report)["chrF++"] == pytest.approx(sacrebleu.corpus_chrf(texts, streams, word_order=2).score)
    assert scores(report)["BLEU"] == pytest.approx(sacrebleu.corpus_bleu(texts, streams).score)
    assert (report.images, report.captions, report.captions_left_out) == (2, 2, 1)
    assert report.references_per_caption == 1.5


def test_what_people_reach_is_one_of_them_against_the_others():
    report = data_audit.score_captions(MACHINE, HUMAN, EN)
    _, first, second, _ = HUMAN.captions
    assert report.scores[0].human == pytest.approx(sacrebleu.corpus_chrf([first], [[second]], word_order=2).score)
    alone = data_audit.score_captions(table("mt", [("a", "a dog")]), HUMAN, EN)
    assert alone.scores[0].human is None


def test_a_human_scored_against_himself_is_perfect_and_against_others_is_not():
    assert scores(data_audit.score_captions(HUMAN, HUMAN, EN))["chrF++"] == pytest.approx(100)
    assert scores(data_audit.score_captions(MACHINE, HUMAN, EN))["chrF++"] < 90


def test_signatures_name_the_metric_its_version_and_the_references():
    by_name = {one.metric: one for one in data_audit.score_captions(MACHINE, HUMAN, EN).scores}
    assert f"version:{sacrebleu.__version__}" in by_name["BLEU"].signature
    assert "tok:13a" in by_name["BLEU"].signature
    assert "nrefs:var" in by_name["BLEU"].signature
    assert "nw:2" in by_name["chrF++"].signature
    assert by_name["chrF++"].plus_minus >= 0


@pytest.mark.parametrize(("script", "tokenizer"), [("Hans", "zh"), ("Jpan", "char"), ("Thai", "char"), ("Latn", "13a")])
def test_a_script_without_spaces_is_parted_by_characters(script, tokenizer):
    texts = table("mt", [("a", "一个女人在公园里散步")]), table("human", [("a", "一个女人在公园里走")])
    report = data_audit.score_captions(*texts, EN.model_copy(update={"script": script}))
    bleu = next(one for one in report.scores if one.metric == "BLEU")
    assert f"tok:{tokenizer}" in bleu.signature
    assert (bleu.score > 10) == (tokenizer != "13a")


def test_one_photo_under_two_names_is_one_image():
    report = data_audit.score_captions(
        table("mt", [("1007129816.jpg", "a man")]), table("human", [("1007129816_e794419615.jpg", "a man")]), EN
    )
    assert report.images == 1


@pytest.mark.parametrize("offline", ["0", "1"])
def test_spbleu_without_its_model_says_why_and_leaves_the_others(monkeypatch, tmp_path, offline):
    from sacrebleu.tokenizers import tokenizer_spm

    def no_network(*_):
        raise OSError("no route to host")

    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(data_audit, "_FLORES_MODEL", tmp_path / "model")
    monkeypatch.setattr(tokenizer_spm, "SACREBLEU_DIR", str(tmp_path))
    monkeypatch.setattr(tokenizer_spm, "download_file", no_network)
    report = data_audit.score_captions(MACHINE, HUMAN, EN)
    assert scores(report)["spBLEU"] is None
    assert scores(report)["BLEU"] > 0
    reason = report.scores[2].missing_because
    assert str(tmp_path / "model") in reason
    assert ("offline" if offline == "1" else "no route to host") in reason
    assert "not scored" in shown(report)


def test_nothing_in_common_is_refused():
    with pytest.raises(UserError, match="mt is in en and human in de"):
        data_audit.score_captions(MACHINE, table("human", [("a", "x")], lang="de"), EN)
    with pytest.raises(UserError, match=r"share no images .*first ids: a and z"):
        data_audit.score_captions(MACHINE, table("human", [("z", "x")]), EN)


def shown(report: AuditReport) -> str:
    out = StringIO()
    Console(file=out, width=140).print(data_audit.render(report))
    return out.getvalue()


def test_the_table_says_what_was_scored_against_what():
    text = shown(data_audit.score_captions(MACHINE, HUMAN, EN))
    assert (
        "mt (machine) against human (human), en: 2 captions of 2 images, 1.5 references each; captions left out" in text
    )
    assert "±" in text


def test_the_report_goes_through_json():
    report = data_audit.score_captions(MACHINE, HUMAN, EN)
    assert AuditReport.model_validate_json(report.model_dump_json()) == report
