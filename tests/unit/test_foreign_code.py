"""A model or checkpoint from somebody else runs no code, asks nothing, and reads nothing outside of its folder."""

from __future__ import annotations

import ast
import inspect
import json
import shutil
import socket
from pathlib import Path

import pytest
import timm
import torch
from timm.models import build_model_with_cfg

from polyalign.config.tower import TextSpec, VisionSpec
from polyalign.models.towers import vision_loading
from polyalign.models.towers.text_loading import build_text
from polyalign.models.towers.vision_loading import build_vision
from polyalign.utils.errors import UserError
from tests import tiny
from tests.unit.test_feature_cache import timm_folder

EVIL = "import pathlib\npathlib.Path(r'{marker}').touch()\nclass Evil: pass\n"


@pytest.fixture(autouse=True)
def guarded(tmp_path_factory, monkeypatch):
    """Fail at every question and every connection; give the file that foreign code would create."""

    def fail(*_args, **_how):
        raise AssertionError("asked or connected")

    monkeypatch.setattr("builtins.input", fail)
    monkeypatch.setattr(socket.socket, "connect", fail)
    marker = tmp_path_factory.mktemp("marker") / "run"
    yield marker
    assert not marker.exists()


def refused(build, spec) -> str:
    with pytest.raises(UserError) as caught:
        build(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(path: Path, **changes: object) -> None:
    facts = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**facts, **changes}), encoding="utf-8")


@pytest.fixture
def text(tmp_path, guarded) -> Path:
    """A text tower with a file of code beside it."""
    folder = shutil.copytree(tiny.text("xlmr"), tmp_path / "text")
    (folder / "evil.py").write_text(EVIL.format(marker=guarded), encoding="utf-8")
    return folder


MAPS = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForTextEncoding"), "evil.Evil")


# Code


def calls(tree: ast.AST, names: set[str]) -> list[ast.Call]:
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call for call in found if isinstance(call.func, ast.Attribute) and call.func.attr in names]


def test_every_call_of_transformers_refuses_foreign_code_and_pickles(repo):
    seen = 0
    for path in (repo / "polyalign").rglob("*.py"):
        for call in calls(ast.parse(path.read_text(encoding="utf-8")), {"from_pretrained", "from_config"}):
            given = {word.arg: ast.unparse(word.value) for word in call.keywords}
            assert given.get("trust_remote_code") == "False", f"{path}:{call.lineno}"
            loads = "Model" in ast.unparse(call.func) or "auto_class" in ast.unparse(call.func)
            if loads and call.func.attr == "from_pretrained":
                assert given.get("use_safetensors") == "True" or None in given, f"{path}:{call.lineno}"
            seen += 1
    assert seen > 8


def test_a_model_of_a_type_of_its_own_is_refused(text):
    edit(text / "config.json", model_type="evil", auto_map=MAPS)
    assert "needs code of its own (which is never run" in refused(build_text, TextSpec(model=str(text)))


def test_code_beside_a_model_of_a_known_type_is_not_run(text):
    edit(text / "config.json", auto_map=MAPS)
    edit(text / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})
    build_text(TextSpec(model=str(text)))


def test_a_tokenizer_of_a_class_of_its_own_runs_no_code(text):
    for path in [*text.glob("tokenizer*"), *text.glob("special*")]:
        path.unlink()
    named = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (text / "tokenizer_config.json").write_text(json.dumps(named), encoding="utf-8")
    edit(text / "config.json", tokenizer_class="Evil")
    assert "tokenizer" in refused(build_text, TextSpec(model=str(text)))
    assert "tokenizer" in refused(lambda spec: build_text(spec, tokenizer=text), TextSpec(model=str(tiny.text("xlmr"))))


@pytest.mark.parametrize("kind", ["evil.Transformer", "evil.Evil", "transformers_modules.evil.Evil", "Evil"])
def test_a_sentence_transformers_module_of_its_own_is_refused(kind, text):
    listed = [{"type": kind, "path": ""}]
    for modules in (listed, [{"type": "sentence_transformers.models.Transformer", "path": ""}, *listed]):
        (text / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
        assert f"module {kind} is code of the model" in refused(build_text, TextSpec(model=str(text)))


# Pickles and files of others


def test_a_text_folder_with_a_pickle_alone_is_refused_with_the_command_that_converts_it(text):
    weights = text / "model.safetensors"
    weights.rename(text / "pytorch_model.bin")
    said = refused(build_text, TextSpec(model=str(text)))
    assert "only safetensors files are read" in said
    assert "python -c" in said


def test_the_command_that_converts_a_pickle_does(tmp_path, monkeypatch):
    said = vision_loading.to_safetensors("pytorch_model.bin")
    code = said.partition('"')[2].rpartition('"')[0]
    base = torch.arange(6.0).view(2, 3)
    torch.save({"turned": base.T, "shared": base}, tmp_path / "pytorch_model.bin")  # noqa: TID251
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "command", "exec"), {})
    assert vision_loading.load_file("model.safetensors")["turned"].tolist() == base.T.tolist()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("adapter_config.json", {"base_model_name_or_path": "other/model"}, "is an adapter of another model"),
        ("model.safetensors.index.json", {"weight_map": {"a": "../other.safetensors"}}, "names ../other.safetensors"),
        ("model.safetensors.index.json", {"weight_map": {"a": "pytorch_model.bin"}}, "names pytorch_model.bin"),
        ("model.safetensors.index.json", {"weight_map": {"a": []}}, r"names [] as its weights"),
        (
            "modules.json",
            [{"type": "sentence_transformers.models.Transformer", "path": "../x"}],
            "outside of the model",
        ),
        (
            "modules.json",
            [{"type": "sentence_transformers.models.Transformer", "path": "/etc"}],
            "outside of the model",
        ),
    ],
)
def test_a_text_folder_that_names_other_files_is_refused(name, content, said, text):
    (text / name).write_text(json.dumps(content), encoding="utf-8")
    assert said in refused(build_text, TextSpec(model=str(text)))


@pytest.mark.parametrize(
    "facts",
    [
        {"transformers_weights": "adapter_model.bin"},
        {"transformers_weights": "../x.safetensors"},
        {"model_type": "timm_wrapper", "architecture": "hf-hub:evil/model"},
        {"backbone": "resnet18", "use_pretrained_backbone": True},
        {"vision_config": {"model_type": "timm_wrapper"}},
    ],
)
def test_a_text_configuration_that_names_other_weights_is_refused(facts, text):
    edit(text / "config.json", **facts)
    refused(build_text, TextSpec(model=str(text)))


# timm


def test_what_timm_reads_itself_is_no_argument_of_an_architecture():
    popped = set(ast_keys(build_model_with_cfg))
    named = {*inspect.signature(timm.create_model).parameters, *inspect.signature(build_model_with_cfg).parameters}
    assert named | popped <= vision_loading._CONTROLS | {"kwargs"}


def ast_keys(function) -> list[str]:
    """The keys that a function takes out of its keyword arguments."""
    found = calls(ast.parse(inspect.getsource(function)), {"pop"})
    return [call.args[0].value for call in found if ast.unparse(call.func.value) == "kwargs"]


ARGS = {
    "checkpoint_path": "x.pth",
    "pretrained_cfg_overlay": {"file": "x.pth"},
    "pretrained_cfg": {"url": "http://127.0.0.1/x.pth"},
    "features_only": True,
    "scriptable": True,
    "exportable": True,
    "cache_dir": "x",
    "pretrained": True,
    "pretrained_strict": False,
    "model_name": "resnet18",
    "num_classes": 3,
}


@pytest.mark.parametrize("name", ARGS)
def test_arguments_that_are_not_of_the_architecture_are_refused(name, tmp_path):
    spec = VisionSpec(model=str(tiny.vision()), args={name: ARGS[name]})
    assert f"{name} cannot be set" in refused(build_vision, spec)
    spec = VisionSpec(model=timm_folder(tmp_path / "timm", **{name: ARGS[name]})["model"])
    assert f"{name} cannot be set" in refused(build_vision, spec)


def test_what_a_timm_folder_says_about_its_weights_is_not_followed(tmp_path):
    folder = Path(timm_folder(tmp_path / "timm")["model"])
    right = build_vision(VisionSpec(model=str(folder))).fingerprint
    facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "other.pth").write_bytes(b"not weights")
    for key, value in {
        "url": "http://127.0.0.1/x.pth",
        "file": str(tmp_path / "other.pth"),
        "hf_hub_id": "evil/model",
        "hf_hub_filename": "x.pth",
        "source": "timm",
        "custom_load": "hf",
        "state_dict": {"x": 1},
    }.items():
        changed = {**facts, "pretrained_cfg": {**facts["pretrained_cfg"], key: value}}
        (folder / "config.json").write_text(json.dumps(changed), encoding="utf-8")
        assert build_vision(VisionSpec(model=str(folder))).fingerprint == right


def test_a_timm_folder_with_a_pickle_alone_is_refused(tmp_path):
    folder = Path(timm_folder(tmp_path / "timm")["model"])
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "python -c" in refused(build_vision, VisionSpec(model=str(folder)))


@pytest.mark.parametrize("name", ["hf-hub:evil/model", "local-dir:/tmp/evil"])
def test_a_tower_folder_that_names_another_place_is_refused(name, tmp_path):
    folder = shutil.copytree(tiny.vision(), tmp_path / "vision")
    facts = (folder / "tower.toml").read_text().replace("vit_tiny_patch16_224", name)
    (folder / "tower.toml").write_text(facts)
    assert "must be a plain timm name" in refused(build_vision, VisionSpec(model=str(folder)))


def test_of_weights_on_the_hub_only_a_safetensors_file_is_loaded(monkeypatch):
    asked = []

    def download(*given, **_how):
        asked.append(given)
        raise OSError("offline")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", download)
    refused(build_vision, VisionSpec(model="vit_tiny_patch16_224.augreg_in21k_ft_in1k"))
    refused(build_vision, VisionSpec(model="vit_small_patch16_224.augreg_in21k"))
    assert [given[1] for given in asked] == ["model.safetensors"] * 2
    pickled = "vit_huge_patch16_gap_448.in1k_ijepa"
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_url", lambda *_, **__: pytest.fail("pickle"))
    with torch.device("meta"):
        assert "No pretrained weights exist" in refused(build_vision, VisionSpec(model=pickled))
