"""Nothing of a stranger's is run: pickles under every name that a library reads, and code beside weights and data."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import tomli_w

from polyalign.config.run_files import WEIGHTS
from polyalign.config.schema import merge
from tests import tiny
from tests.fuzz.harness import Outcome, Sandbox, sandbox
from tests.fuzz.test_checkpoints import sign

RAN = "someone-was-here"
PICKLE = f"cbuiltins\nopen\n(S'{RAN}'\nS'w'\ntR.".encode()
CODE = f"open({RAN!r}, 'w').close()\n"
# Names under which libraries look for pickled weights.
PICKLED = ("pytorch_model.bin", "open_clip_pytorch_model.bin", "model.pth", "training_args.bin", "optimizer.pt")


class ReadsPickleError(BaseException):
    """Not an ``Exception``, so that nothing handles it."""


def test_the_pickle_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle  # noqa: TID251

    monkeypatch.chdir(tmp_path)
    pickle.loads(PICKLE).close()  # noqa: S301
    assert (tmp_path / RAN).exists()


def run(box: Sandbox, *arguments: str) -> Outcome:
    """Run a command in which ``torch.load``, which reads pickles, is not even tried."""
    with mock.patch("torch.load", side_effect=ReadsPickleError):
        outcome = box.run(*arguments, may_write=("out",))
    assert not (box.work / RAN).exists(), outcome
    return outcome


def change(box: Sandbox, **sections: Any) -> None:
    """Change the recipe of the run, as a stranger may."""
    path = box.work / "run" / "recipe.toml"
    path.write_text(tomli_w.dumps(merge(tomllib.loads(path.read_text(encoding="utf-8")), sections)), encoding="utf-8")


def pickled(folder: Path, config: dict[str, Any] | None, name: str = "config.json") -> Path:
    """Make a folder of pickled weights with a configuration that a library accepts, and code that it may refer to."""
    folder.mkdir()
    for weights in PICKLED:
        (folder / weights).write_bytes(PICKLE)
    for module in ("modeling.py", "configuration.py", f"{folder.name}.py", "conftest.py", "setup.py"):
        (folder / module).write_text(CODE, encoding="utf-8")
    if config is not None:
        (folder / name).write_text(json.dumps(config), encoding="utf-8")
    return folder


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_pickle_in_place_of_any_file_of_a_run(world: Path) -> None:
    names = files(world / "run")
    assert len(names) >= 6
    for name in names:
        with sandbox(world) as box:
            (box.work / "run" / name).write_bytes(PICKLE)
            run(box, "eval", "run")
            if name != WEIGHTS:
                sign(box.work / "run")
                run(box, "eval", "run")
            run(box, "train", "--lang", "en", "--out", "run", "--resume")


def test_a_pickle_in_place_of_any_file_of_the_cache(world: Path) -> None:
    with sandbox(world) as box:
        run(box, "eval", "run")
        names = files(box.cache)
        assert names
        for name in names:
            (box.cache / name).write_bytes(PICKLE)
        run(box, "eval", "run")
        run(box, "cache", "list")


AUTO = {"AutoConfig": "configuration.Config", "AutoModel": "modeling.Model", "AutoModelForMaskedLM": "modeling.Model"}
BERT = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 40}
CLIP = {
    "model_type": "clip",
    "text_config": {"model_type": "clip_text_model"},
    "vision_config": {"model_type": "clip_vision_model"},
}
OPEN_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 100, "width": 32, "heads": 2, "layers": 1},
}
TIMM = {"architecture": "test_vit", "num_classes": 0, "pretrained_cfg": {"input_size": [3, 160, 160]}}
EXTERNAL = ("--lang", "en", "--data", "photos")


def text_tower(box: Sandbox, config: dict[str, Any], **more: Any) -> tuple[str, ...]:
    folder = pickled(box.work / "tower", {**config, **more})
    for path in tiny.text().glob("tokenizer*"):
        (folder / path.name).write_bytes(path.read_bytes())
    change(box, text={"model": "./tower"})
    return "repeat", "run/recipe.toml", "--out", "out"


def vision(box: Sandbox, **settings: Any) -> tuple[str, ...]:
    change(box, vision=settings)
    return "repeat", "run/recipe.toml", "--out", "out"


def of_weights(box: Sandbox, name: str) -> tuple[str, ...]:
    (box.work / name).write_bytes(PICKLE)
    return vision(box, model="test_vit", weights=name)


def of_timm(box: Sandbox, key: str, value: Any) -> tuple[str, ...]:
    (box.work / "weights.bin").write_bytes(PICKLE)
    # Of a name for which timm has weights to download; that of the run stays where the argument itself reads a file.
    return vision(box, args={key: value}, **({} if key == "checkpoint_path" else {"model": "test_vit.r160_in1k"}))


def of_tower_toml(box: Sandbox) -> tuple[str, ...]:
    folder = pickled(box.work / "tower", None)
    facts = tomllib.loads((tiny.vision() / "tower.toml").read_text(encoding="utf-8"))
    facts["args"]["checkpoint_path"] = "tower/pytorch_model.bin"
    (folder / "tower.toml").write_text(tomli_w.dumps(facts), encoding="utf-8")
    (folder / "model.safetensors").write_bytes((tiny.vision() / "model.safetensors").read_bytes())
    return vision(box, model="./tower")


def of_folder(box: Sandbox, config: dict[str, Any], name: str, *command: str) -> tuple[str, ...]:
    pickled(box.work / "tower", config, name)
    return command


STRANGERS: dict[str, Callable[[Sandbox], tuple[str, ...]]] = {
    "text tower of pickles": lambda box: text_tower(box, BERT),
    "text tower with code": lambda box: text_tower(box, {"model_type": "own"}, auto_map=AUTO),
    "known text tower with code": lambda box: text_tower(box, BERT, auto_map=AUTO),
    "attention from the hub": lambda box: text_tower(box, BERT, attn_implementation="someone/kernel"),
    "pretrain on pickles": lambda box: (
        *text_tower(box, BERT)[:0],
        "pretrain",
        "--text-tower=tower",
        "--texts=texts.txt",
        "--out=out",
    ),
    "vision weights": lambda box: of_weights(box, "weights.bin"),
    "vision weights named safe": lambda box: of_weights(box, "weights.safetensors"),
    "vision folder of timm": lambda box: (pickled(box.work / "tower", TIMM), vision(box, model="./tower"))[1],
    "timm name of a folder": lambda box: (pickled(box.work / "tower", TIMM), vision(box, model="local-dir:tower"))[1],
    "timm argument checkpoint_path": lambda box: of_timm(box, "checkpoint_path", "weights.bin"),
    "timm argument overlay": lambda box: of_timm(box, "pretrained_cfg_overlay", {"file": "weights.bin"}),
    "timm argument url": lambda box: of_timm(box, "pretrained_cfg_overlay", {"url": "http://127.0.0.1:9/weights.bin"}),
    "timm argument in tower.toml": of_tower_toml,
    "open_clip": lambda box: of_folder(
        box,
        {"model_cfg": OPEN_CLIP, "preprocess_cfg": {}},
        "open_clip_config.json",
        "eval",
        "open_clip:tower",
        *EXTERNAL,
    ),
    "clip": lambda box: of_folder(box, CLIP, "config.json", "eval", "hf:tower", *EXTERNAL),
    "clip with code": lambda box: of_folder(
        box, {**CLIP, "auto_map": AUTO}, "config.json", "eval", "hf:tower", *EXTERNAL
    ),
    "mclip": lambda box: of_folder(
        box, {"modelBase": "tower", **BERT}, "config.json", "eval", "mclip:tower+ViT-B-32/openai", *EXTERNAL
    ),
    "hub dataset with a script": lambda box: of_folder(
        box, {}, "dataset_info.json", "data", "check", "--lang=en", "--data=hub", "--set=source.dataset=tower"
    ),
    "zeroshot dataset with a script": lambda box: of_folder(
        box, {}, "dataset_info.json", "zeroshot", "run", "tower", "--lang=en"
    ),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_what_comes_with_code_is_refused(world: Path, name: str) -> None:
    with sandbox(world) as box:
        outcome = run(box, *STRANGERS[name](box))
        assert outcome.code == 2, outcome


@pytest.mark.parametrize("kind", ["strategies", "sources", "tasks"])
def test_code_of_the_working_folder_is_run_only_when_it_is_named(world: Path, kind: str) -> None:
    with sandbox(world) as box:
        (box.work / kind).mkdir()
        (box.work / kind / "own.py").write_text(CODE, encoding="utf-8")
        for command in (
            ("eval", "run"),
            ("data", "check", "--lang", "en"),
            ("search", "run", "red", "--images", "photos"),
        ):
            assert run(box, *command).code == 0
        section = {"strategies": "strategy.name", "sources": "source.name"}.get(kind)
        named = ("train", "--lang=en", "--set", f"{section}=own") if section else ("eval", "run", "--task", "own")
        outcome = box.run(*named, may_write=(RAN, "runs"))
        assert (box.work / RAN).exists(), outcome
        assert "running code from the working folder" in outcome.err
