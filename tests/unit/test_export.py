from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

import polyalign
from polyalign.evaluation.model import Model
from polyalign.models import checkpoint
from polyalign.models.strategies import lora
from polyalign.serving.export import onnx, open_clip, plain, transformers
from polyalign.serving.export.check import RECORD, Export
from polyalign.serving.export.run import Options, export
from polyalign.utils.errors import UserError
from tests import tiny
from tests.unit.test_merge import MORE, USUAL, trained, vectors

STRATEGIES = (*USUAL, *MORE)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def more(*values: object) -> object:
    return pytest.param(*values, marks=pytest.mark.repeated)


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def pictures():
    return [image.open() for image in tiny.table("test").images]


def check_onnx(folder, wanted) -> None:
    """Compare what ONNX Runtime, the tokenizer of transformers and ``preprocessor_config.json`` give."""
    import onnxruntime
    from transformers import AutoTokenizer

    image, text = (onnxruntime.InferenceSession(folder / "onnx" / f"{kind}_model.onnx") for kind in ("vision", "text"))
    how = json.loads((folder / "preprocessor_config.json").read_text())
    assert (how["size"], how["crop_size"]) == ({"shortest_edge": 32}, {"height": 32, "width": 32})
    pixels = np.stack([np.asarray(one, np.float32).transpose(2, 0, 1) for one in pictures()])
    scaled = (pixels * np.float32(how["rescale_factor"]) - how["image_mean"][0]) / np.float32(how["image_std"][0])
    close(image.run(["image_embeds"], {"pixel_values": scaled})[0], wanted[0])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for captions in (tiny.table("test").captions, tiny.table("test").captions[:1]):
        tokens = tokenizer(list(captions), padding=True, truncation=True, return_tensors="np")
        inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        close(text.run(["text_embeds"], inputs)[0], wanted[1][: len(captions)])


@pytest.mark.slow
def test_onnx_opens_with_the_runtime_alone_and_int8_has_a_recall_of_its_own(run, tmp_path):
    trained(tmp_path / "run", "lilt")
    wanted = vectors(tmp_path / "run")
    code, out, _ = run("export", tmp_path / "run", "--to", "onnx", "--int8", "--out", tmp_path / "out", "--compare", 20)
    assert code == 0
    done = Export.load_json(tmp_path / "out" / RECORD)
    assert (done.images, done.texts, done.strategy) == (20, 40, "lilt")
    assert max(done.image, done.text) < 1e-5
    assert done.recall.keys() == {"fp32", "int8"}
    assert f"mean recall int8: {100 * done.recall['int8']:.1f}" in out
    sizes = [(tmp_path / "out" / "onnx" / f"text_model{ending}.onnx").stat().st_size for ending in ("", "_int8")]
    assert sizes[1] < sizes[0]
    shutil.rmtree(tmp_path / "run")
    shutil.rmtree(tmp_path / "towers")
    check_onnx(tmp_path / "out", wanted)


@pytest.mark.repeated
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_onnx_holds_every_strategy(strategy, tmp_path):
    trained(tmp_path / "run", strategy)
    export(tmp_path / "run", "onnx", tmp_path / "out")
    check_onnx(tmp_path / "out", vectors(tmp_path / "run"))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_graphs_compute_the_vectors_of_every_strategy(strategy, tmp_path):
    aligner, table = tiny.aligner(strategy), tiny.table("test")
    tiny.jitter(aligner)
    model = Model(tiny.encoder(aligner))
    wanted = model.encode_image(table.images), model.encode_text(table.captions)
    for tower in (aligner.vision, aligner.text):
        lora.merge(tower)
    pixels = torch.stack([aligner.vision.transform(image.open()) for image in table.images])
    tokens = aligner.text.collate(aligner.text.tokenize(list(table.captions)))
    with torch.no_grad():
        close(onnx.ImageGraph(aligner)((pixels - aligner.vision.mean) / aligner.vision.std), wanted[0])
        close(onnx.TextGraph(aligner)(tokens.ids, tokens.mask.long()), wanted[1])


@pytest.mark.parametrize(
    ("strategy", "text", "spec"),
    [
        ("lit", "xlmr", {"pooling": "cls"}),
        more("projection", "bert", {"pooling": "last", "prompt": "a "}),
        more("projection", "distilbert", {"pooling": "max"}),
        more("projection", "bert", {"pooling": "pooler"}),
    ],
)
@pytest.mark.parametrize("target", [more("onnx"), "sentence-transformers", "open-clip", "transformers"])
def test_every_pooling_is_the_same_or_refused(target, strategy, text, spec, tmp_path):
    trained(tmp_path / "run", strategy, towers={"text": tiny.text(text)}, text=spec, optim={"loss": "sigmoid"})
    aligner, _ = checkpoint.load(tmp_path / "run")
    if target == "open-clip" and open_clip.problem(aligner) is not None:
        with pytest.raises(UserError, match="use --to onnx"):
            export(tmp_path / "run", target, tmp_path / "out")
        return
    done = export(tmp_path / "run", target, tmp_path / "out")
    assert max(done.image, done.text) < 1e-5
    assert done.bias == pytest.approx(float(aligner.logit_bias.detach()))


def test_sentence_transformers_opens_it(tmp_path):
    trained(tmp_path / "run", "lora")
    wanted = vectors(tmp_path / "run")
    export(tmp_path / "run", "sentence-transformers", tmp_path / "out")
    shutil.rmtree(tmp_path / "towers")
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str((tmp_path / "out").rename(tmp_path / "moved")), device="cpu")
    close(model.encode(list(tiny.table("test").captions), show_progress_bar=False), wanted[1])
    close(model.encode(pictures(), show_progress_bar=False), wanted[0])
    assert [type(part).__name__ for part in model] == ["Router", "Normalize"]


@pytest.mark.parametrize("pooling", ["mean", more("cls")])
def test_open_clip_opens_it(pooling, tmp_path):
    aligner = trained(tmp_path / "run", "lora", text={"pooling": pooling})
    assert aligner.text_projection.bias.abs().max() > 0.01
    wanted = vectors(tmp_path / "run")
    export(tmp_path / "run", "open-clip", tmp_path / "out")
    shutil.rmtree(tmp_path / "towers")
    import open_clip as library

    model, _, transform = library.create_model_and_transforms(f"local-dir:{tmp_path / 'out'}")
    model.eval()
    tokenizer = library.get_tokenizer(f"local-dir:{tmp_path / 'out'}")
    with torch.no_grad():
        close(model.encode_text(tokenizer(list(tiny.table("test").captions)), normalize=True), wanted[1])
        close(model.encode_image(torch.stack([transform(one) for one in pictures()]), normalize=True), wanted[0])
    assert model.logit_scale.exp().item() == pytest.approx(aligner.scale.item())


def test_open_clip_names_the_repository_that_it_will_be_in(run, tmp_path):
    trained(tmp_path / "run", "projection")
    assert run("export", tmp_path / "run", "--to", "open-clip", "--repo", "ana/qu", "--out", tmp_path / "out")[0] == 0
    config = json.loads((tmp_path / "out" / open_clip.CONFIG).read_text())["model_cfg"]
    assert config["vision_cfg"]["timm_model_name"] == "hf-hub:ana/qu"
    assert config["text_cfg"]["hf_model_name"] == config["text_cfg"]["hf_tokenizer_name"] == "ana/qu"
    assert str(tmp_path) not in (tmp_path / "out" / open_clip.CONFIG).read_text()


@pytest.mark.parametrize("strategy", ["lilt", more("lilt-deep"), more("mlp"), more("lora")])
def test_transformers_opens_it(strategy, tmp_path):
    trained(tmp_path / "run", strategy)
    wanted = vectors(tmp_path / "run")
    export(tmp_path / "run", "transformers", tmp_path / "out")
    shutil.rmtree(tmp_path / "towers")
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(tmp_path / "out", trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    tokens = tokenizer(list(tiny.table("test").captions), padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        out = model(tokens["input_ids"], tokens["attention_mask"], model.preprocess(pictures()))
    close(out["text_embeds"], wanted[1])
    close(out["image_embeds"], wanted[0])
    similarity = wanted[0] @ wanted[1].T
    np.testing.assert_allclose(out["logits_per_image"] / model.logit_scale.exp().item(), similarity, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("target", "strategy", "sections", "why"),
    [
        ("sentence-transformers", "lilt", {}, "training inserted modules.* use --to onnx or transformers"),
        ("open-clip", "mlp", {}, "training inserted modules.* use --to onnx or transformers"),
        ("transformers", "side", {}, "training inserted vision_projection; use --to onnx"),
        ("open-clip", "lit", {"text": {"prompt": "a "}}, "no prompt.* onnx or sentence-transformers or transformers"),
        ("open-clip", "lit", {"text": {"pooling": "max"}}, "no text.pooling = max"),
        ("open-clip", "lit", {"projection": {"dim": 40}}, "last norm cannot take it"),
        ("open-clip", "lit", {"vision": {"crop_pct": 0.9}}, "crops no edges off"),
        ("transformers", "lit", {"vision": {"pooling": "mean"}}, "vision.pooling = mean .* use --to onnx$"),
    ],
)
def test_what_a_target_cannot_hold_is_refused_with_those_that_can(target, strategy, sections, why, tmp_path):
    trained(tmp_path / "run", strategy, **sections)
    with pytest.raises(UserError, match=why):
        export(tmp_path / "run", target, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tower_without_a_mask_is_refused(tmp_path):
    aligner = tiny.aligner()
    aligner.text.tokenizer.model_input_names = ["input_ids"]
    assert "without a mask" in plain.problem(aligner)


def test_a_tower_that_lowers_the_case_is_refused_where_it_cannot_be_stated():
    aligner = tiny.aligner()
    aligner.text.lower_case = True
    assert "lowers the case" in transformers.problem(aligner)


def test_sentences_that_open_clip_rewrites_are_refused(tmp_path):
    trained(tmp_path / "run", "projection")
    encoder = next(iter(_reloaded(tmp_path).values()))
    with pytest.raises(UserError, match="open_clip replaces characters of sentences such as"):
        encoder.encode_text(["puka’yoq"])


def _reloaded(tmp_path):
    export(tmp_path / "run", "open-clip", tmp_path / "out")
    return open_clip.reload(tmp_path / "out")


def test_an_export_that_differs_is_not_kept(monkeypatch, tmp_path):
    trained(tmp_path / "run", "projection")
    monkeypatch.setattr(open_clip, "_before", lambda projection: torch.zeros(projection.in_features))
    with pytest.raises(UserError, match=r"the open-clip export differs from the run by .* it is not written"):
        export(tmp_path / "run", "open-clip", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "towers"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "onxx"], 'unknown target "onxx": did you mean "onnx"'),
        (["--to", "transformers", "--int8"], "--int8 is not for --to transformers"),
        (["--to", "onnx", "--repo", "a/b"], "--repo is not for --to onnx"),
        (["--to", "onnx", "--data", "nowhere"], "neither a folder nor a source"),
    ],
)
def test_wrong_options_are_one_line(options, message, run, tmp_path):
    trained(tmp_path / "run", "projection")
    code, _, err = run("export", tmp_path / "run", "--out", tmp_path / "out", *options)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err


def test_a_missing_library_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(onnx.LIBRARIES, "onnxruntime", "no_such_library")
    with pytest.raises(UserError, match=r"needs onnxruntime: pip install 'polyalign\[export\]'"):
        export(tmp_path / "run", "onnx", tmp_path / "out", Options())


@pytest.mark.parametrize("kind", [RuntimeError, OSError])
def test_a_failure_of_the_library_is_one_line(kind, monkeypatch, tmp_path):
    trained(tmp_path / "run", "projection")

    def fail(*_: object) -> None:
        raise kind("unsupported\noperator")

    monkeypatch.setattr(onnx, "_write_graph", fail)
    with pytest.raises(UserError, match=f"exported to onnx: {kind.__name__}: unsupported; choose another --to"):
        export(tmp_path / "run", "onnx", tmp_path / "out")
    assert polyalign.load(tmp_path / "run").encode_text(["red"]).shape == (1, 16)


def test_a_vector_that_is_not_a_number_is_a_difference(monkeypatch, tmp_path):
    trained(tmp_path / "run", "projection")
    monkeypatch.setattr(open_clip, "_before", lambda projection: torch.full((projection.in_features,), float("nan")))
    with pytest.raises(UserError, match="nan for text"):
        export(tmp_path / "run", "open-clip", tmp_path / "out")
