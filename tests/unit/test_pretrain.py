from __future__ import annotations

import errno
import json
import math
import os
import re
import runpy
import shutil
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import timm
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForMaskedLM

from polyalign.config import language as langs
from polyalign.config.tower import STARTER, TextSpec
from polyalign.data.starter import make_text_tower, make_vision_tower, world
from polyalign.models.towers.text_loading import build_text
from polyalign.training import pretrain
from polyalign.training.pretrain import Config, Pretrained, pretrain_text
from polyalign.utils.errors import UserError
from polyalign.utils.lock import LOCK_FILES, locked
from polyalign.utils.progress import shown_by
from tests import forked, tiny

STEPS = 30  # ten epochs of three


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with its masked-language-model head and dropout."""
    out = tmp_path_factory.mktemp("encoder")
    tokenizer = AutoTokenizer.from_pretrained(tiny.text())
    tokenizer.save_pretrained(out)
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=48, **tiny.SIZES)).save_pretrained(
        out
    )
    return out


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("text") / "mine.txt"
    lines = ["a {} and a {} , below a {}".format(*rng.permutation(list(tiny.COLORS))) for _ in range(70)]
    path.write_text("\n\n".join([*lines, lines[0]]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def config(encoder: Path, text: Path) -> Config:
    return Config(
        model=str(encoder), texts=(text,), epochs=10, batch_size=16, lr=5e-3, mask_probability=0.3, dev_share=0.1
    )


@pytest.fixture(scope="module")
def done(config: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Pretrained]:
    out = tmp_path_factory.mktemp("done") / "tower"
    return out, pretrain_text(config, out)


def stopping(step: int) -> object:
    def progress(task: str, finished: int, total: int, note: str = "") -> None:
        if task.startswith("masked") and finished == step:
            raise KeyboardInterrupt

    return progress


def interrupted(config: Config, out: Path, step: int) -> Config:
    changed = config.model_copy(update={"save_minutes": 0})
    with pytest.raises(KeyboardInterrupt), shown_by(stopping(step)):
        pretrain_text(changed, out)
    return changed


def test_training_lowers_the_loss_on_held_out_sentences(done: tuple[Path, Pretrained]) -> None:
    _, record = done
    before, after = record.loss
    assert after < 0.8 * before
    assert record.perplexity == pytest.approx((math.exp(before), math.exp(after)))
    assert sum(record.sentences) <= 70
    assert record.sentences[1] == round(0.1 * sum(record.sentences))


def test_the_folder_is_a_tower_and_a_language_model(done: tuple[Path, Pretrained], encoder: Path) -> None:
    out, record = done
    assert {path.name for path in out.iterdir()} - {*LOCK_FILES} == {
        "README.md", "config.json", "model.safetensors", "pretrained.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert (out / "model.safetensors").stat().st_mode & 0o777 == 0o644
    tower = build_text(TextSpec(model=str(out), max_tokens=32))
    assert tower.fingerprint != build_text(TextSpec(model=str(encoder), max_tokens=32)).fingerprint
    assert AutoTokenizer.from_pretrained(out).tokenize("a red") == ["a", "red"]
    _, info = AutoModelForMaskedLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f"| masked-LM loss | {record.loss[0]:.3f} | {record.loss[1]:.3f} |" in card
    assert "from mine.txt" in card
    assert Pretrained.model_validate_json((out / pretrain.RECORD).read_text()) == record


@pytest.mark.parametrize("step", [1, 17])
def test_an_interrupted_and_resumed_run_ends_in_the_weights_of_an_uninterrupted_one(
    done: tuple[Path, Pretrained], config: Config, tmp_path: Path, step: int
) -> None:
    out = tmp_path / "cut"
    changed = interrupted(config, out, step)
    with pytest.raises(UserError, match="holds an interrupted run: continue it with --resume"):
        pretrain_text(changed, out)
    with pytest.raises(UserError, match=r"other settings \(lr was 0.005, is 0.1\)"):
        pretrain_text(changed.model_copy(update={"lr": 0.1}), out, resume=True)
    torch.manual_seed(99)
    assert pretrain_text(changed, out, resume=True) == done[1]
    assert tiny.same(load_file(out / "model.safetensors"), load_file(done[0] / "model.safetensors"))
    assert (out / "README.md").read_text() == (done[0] / "README.md").read_text()


@pytest.mark.parametrize("model", ["encoder", "starter"])
def test_low_rank_updates_train_resume_and_are_merged(encoder: Path, text: Path, tmp_path: Path, model: str) -> None:
    model = str(encoder) if model == "encoder" else "starter"
    config = Config(model=model, texts=(text,), max_steps=20, lr=0.01, batch_size=16, lora_rank=4, save_minutes=0)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    record = pretrain_text(config, whole)
    assert record.loss[1] < record.loss[0]
    assert pretrain_text(interrupted(config, cut, 7), cut, resume=True) == record
    after = load_file(whole / "model.safetensors")
    assert tiny.same(load_file(cut / "model.safetensors"), after)
    source = STARTER / "text" if model == "starter" else Path(model)
    before = load_file(source / "model.safetensors")
    assert not any("lora" in name for name in after)
    inside = {name for name in after if name.startswith(("bert.", "roberta."))}
    changed = {name for name in inside if not torch.equal(after[name].float(), before[name].float())}
    assert changed
    assert all(".layer." in name and after[name].ndim == 2 for name in changed), "only linear maps change"
    for name in changed:  # by an update of rank four
        assert torch.linalg.matrix_rank(after[name].float() - before[name].float(), rtol=1e-3) <= 4


def test_text_in_another_script_is_warned_of_and_the_card_names_the_language(
    config: Config, tmp_path: Path, caplog: Any
) -> None:
    pretrain_text(config.model_copy(update={"lang": "am", "max_steps": 1}), tmp_path)
    assert re.search(r"of \d+ sentences are not in the script of Amharic \(Ethi\)", caplog.text)
    assert "\nlanguage: am\n" in (tmp_path / "README.md").read_text(encoding="utf-8")
    with pytest.raises(UserError, match="xx"):
        pretrain_text(config.model_copy(update={"lang": "xx"}), tmp_path / "unknown")


def test_a_checkpoint_that_is_not_whole_is_passed_over(config: Config, tmp_path: Path) -> None:
    changed = interrupted(config, tmp_path / "cut", 6)
    half = tmp_path / "cut" / "checkpoints" / "checkpoint-6"
    half.mkdir()
    (half / "optimizer.pt").write_bytes(b"cut off")
    assert pretrain_text(changed, tmp_path / "cut", resume=True).steps == STEPS


def test_a_checkpoint_cannot_run_code(config: Config, tmp_path: Path) -> None:
    changed = interrupted(config, tmp_path / "cut", 3)
    state = tmp_path / "cut" / "checkpoints" / "checkpoint-2" / "optimizer.pt"
    state.write_bytes(
        b"cbuiltins\nexec\n(S'import pathlib; pathlib.Path(\"" + bytes(tmp_path) + b"/ran\").touch()'\ntR."
    )
    with pytest.raises(Exception, match=r"(?i)weights.?only"):
        pretrain_text(changed, tmp_path / "cut", resume=True)
    assert not (tmp_path / "ran").exists()


def test_a_finished_run_is_kept(done: tuple[Path, Pretrained], config: Config) -> None:
    out, record = done
    written = (out / "model.safetensors").stat().st_mtime_ns
    assert pretrain_text(config, out, resume=True) == record
    assert (out / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(UserError, match="already exists: use another --out"):
        pretrain_text(config, out)
    with pytest.raises(UserError, match="other settings"):
        pretrain_text(config.model_copy(update={"seed": 1}), out, resume=True)


def test_the_same_sentences_are_masked_alike_and_at_least_one_token_is_masked(encoder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    masking = pretrain.Masking(tokenizer, 0.3, 8, seed=0)
    sentences = ["a red and a blue , below a green", "white then black"]
    one, two = masking(list(sentences)), masking(list(sentences))
    assert all(torch.equal(one[key], two[key]) for key in ("input_ids", "attention_mask", "labels"))
    assert one["input_ids"].shape == (2, 8)
    chosen = one["labels"] != -100
    assert 0 < chosen.sum() < 10
    assert not set(one["labels"][chosen].tolist()) & set(tokenizer.all_special_ids)
    rare = pretrain.Masking(tokenizer, 1e-9, 8, seed=0)(["white then black"])
    assert rare["labels"].tolist() == [[-100, tokenizer.convert_tokens_to_ids("white"), -100, -100, -100]]
    assert rare["input_ids"][0, 1] == tokenizer.mask_token_id


def test_a_tower_without_a_head_gets_a_new_one_only_if_asked(config: Config, tmp_path: Path) -> None:
    bare = config.model_copy(update={"model": str(tiny.text()), "max_steps": 2})
    with pytest.raises(UserError, match=r"no masked-language-model head .* add --set new_head=true"):
        pretrain_text(bare, tmp_path / "out")
    assert not {path.name for path in (tmp_path / "out").glob("*")} - {*LOCK_FILES}
    allowed = bare.model_copy(update={"new_head": True})
    first, second = (pretrain_text(allowed, tmp_path / name) for name in ("a", "b"))
    assert first == second
    assert first.steps == 2


def test_the_starter_tower_and_any_family_can_be_trained(text: Path, tmp_path: Path) -> None:
    for name, model in {
        "starter": "starter",
        "xlmr": str(tiny.text("xlmr")),
        "db": str(tiny.text("distilbert")),
    }.items():
        settings = Config(model=model, texts=(text,), max_steps=1, new_head=True, max_tokens=500)
        assert pretrain_text(settings, tmp_path / name).steps == 1
        assert build_text(TextSpec(model=str(tmp_path / name))).width


def test_bad_input_is_named(config: Config, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    latin, empty, taken = tmp_path / "latin.txt", tmp_path / "empty.txt", tmp_path / "taken"
    latin.write_bytes("gr\xfcn\n".encode("latin-1"))
    empty.write_text("\n \n")
    taken.mkdir()
    (taken / "mine").touch()
    torn = tmp_path / "torn"
    torn.mkdir()
    for file in Path(config.model).iterdir():
        (torn / file.name).write_bytes(file.read_bytes()[: 200 if file.suffix == ".safetensors" else None])
    with pytest.raises(UserError, match=r"cannot read the corpus .*latin"):
        pretrain_text(config.model_copy(update={"texts": (latin,)}), out)
    with pytest.raises(UserError, match=r"too little text in .*empty.txt"):
        pretrain_text(config.model_copy(update={"texts": (empty,)}), out)
    with pytest.raises(UserError, match="taken already exists"):
        pretrain_text(config, taken)
    with pytest.raises(UserError, match=r"latin\.txt"):
        pretrain_text(config, latin)
    with pytest.raises(UserError, match="cannot load the text tower not/there"):
        pretrain_text(config.model_copy(update={"model": "not/there"}), out)
    with pytest.raises(UserError, match=r"cannot load .*torn as a masked language model: "):
        pretrain_text(config.model_copy(update={"model": str(torn)}), out)
    with pytest.raises(UserError, match=r"the loss is (nan|inf) by step 10: lower the learning rate"):
        pretrain_text(config.model_copy(update={"lr": 1e30}), out)
    with pytest.raises(ValidationError, match="texts"):
        Config(model="x", texts=())


def test_a_corpus_that_is_no_text_is_refused_in_one_line(config: Config, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "null").write_bytes(b"a\0b\nc\n")
    (tmp_path / "one").write_text("a single sentence\n")
    said = {
        "pipe": "it is not a file",
        "folder": "it is not a file",
        "null": "null characters",
        "one": "too little text",
    }
    for name, problem in {**said, "gone": "No such file", "x" * 300: "File name too long"}.items():
        with pytest.raises(UserError, match=problem) as caught:
            pretrain_text(config.model_copy(update={"texts": (tmp_path / name,)}), tmp_path / "out")
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)


def test_a_folder_in_use_and_a_link_in_place_of_the_checkpoints_are_refused(config: Config, tmp_path: Path) -> None:
    with locked(tmp_path / "out"), pytest.raises(UserError, match="out is in use by process"):
        pretrain_text(config, tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "settings.json").touch()
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "checkpoints").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match="checkpoints is a symbolic link"):
        pretrain_text(config, tmp_path / "out", resume=True)
    assert (tmp_path / "mine" / "settings.json").exists()


def test_only_what_was_written_is_deleted_at_the_end(config: Config, tmp_path: Path, caplog: Any) -> None:
    changed = interrupted(config.model_copy(update={"max_steps": 4}), tmp_path / "out", 2)
    work, mine = tmp_path / "out" / "checkpoints", tmp_path / "mine"
    mine.mkdir()
    (mine / "photo").touch()
    (work / "notes").touch()
    (work / "checkpoint-0").symlink_to(mine)
    assert pretrain_text(changed, tmp_path / "out", resume=True).steps == 4
    assert {path.name for path in work.iterdir()} == {"notes", "checkpoint-0"}
    assert (mine / "photo").exists()
    assert f"{work} holds files that are not of this run: they are kept" in caplog.messages


FULL = (
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EACCES, "Permission denied"),
    SafetensorError("I/O error: No space left on device (os error 28)"),
    RuntimeError("PytorchStreamWriter failed writing file"),
)


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
def test_a_full_disk_is_one_line(error: Exception, config: Config, tmp_path: Path, monkeypatch: Any) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(BertForMaskedLM, "save_pretrained", full)
    with pytest.raises(UserError, match=r"^cannot write .*out: .*; make room or choose another folder"):
        pretrain_text(config.model_copy(update={"max_steps": 1}), tmp_path / "out")


def test_a_run_killed_at_random_moments_ends_in_the_weights_of_an_uninterrupted_one(
    done: tuple[Path, Pretrained], config: Config, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    changed = config.model_copy(update={"save_minutes": 0})
    given = changed.model_dump(mode="json", include={"epochs", "batch_size", "lr", "mask_probability", "dev_share"})
    words = ["pretrain", "--text-tower", config.model, "--texts", config.texts[0], "--out", out, "--resume"]
    words += [word for key, value in {**given, "save_minutes": 0}.items() for word in ("--set", f"{key}={value}")]
    rng = np.random.default_rng(0)
    for number in range(3):
        process = forked.start(*words, said=tmp_path / f"{number}.txt")
        while process.is_alive() and not (out / "checkpoints" / "settings.json").exists():
            time.sleep(0.05)
        process.join(rng.uniform(0, 3))
        process.kill()
        process.join()
    assert pretrain_text(changed, out, resume=True) == done[1]
    assert tiny.same(load_file(out / "model.safetensors"), load_file(done[0] / "model.safetensors"))


def test_an_encoder_that_lacks_weights_or_a_mask_token_is_refused(
    config: Config, encoder: Path, tmp_path: Path
) -> None:
    for name in ("lacking", "maskless"):
        (tmp_path / name).mkdir()
        for file in encoder.iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    facts = json.loads((encoder / "config.json").read_text())
    (tmp_path / "lacking" / "config.json").write_text(json.dumps({**facts, "num_hidden_layers": 4}))
    tokens = json.loads((encoder / "tokenizer_config.json").read_text())
    (tmp_path / "maskless" / "tokenizer_config.json").write_text(json.dumps({**tokens, "mask_token": None}))
    with pytest.raises(UserError, match=r"of the encoder's weights, for example bert.encoder.layer.3"):
        pretrain_text(config.model_copy(update={"model": str(tmp_path / "lacking")}), tmp_path / "out")
    with pytest.raises(UserError, match="has no mask token"):
        pretrain_text(config.model_copy(update={"model": str(tmp_path / "maskless")}), tmp_path / "out")


def test_the_command_reports_and_says_how_to_continue(
    run: object, config: Config, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("pretrain", "--text-tower", config.model, "--texts", text, "--out", tmp_path / "o", "--set", "max_steps=2")
    with monkeypatch.context() as patch:
        patch.setattr(pretrain.Reporter, "on_step_end", stopping_callback)
        code, out, err = run(*words)
    assert (code, out) == (130, "")
    assert err.endswith("\ninterrupted; continue with the same command and --resume\n")
    code, out, _ = run(*words, "--resume", "--offline")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["sentences", "dev", "perplexity", "use"]
    assert f"--set text.model={tmp_path / 'o'}" in out


def stopping_callback(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


# The scripts of the starter towers, and what they made.

VISION = make_vision_tower.Settings(
    object_pictures=24, object_steps=2, scene_pictures=24, scene_steps=2, test_pictures=10, batch_size=8
)
SPM_FILE = "sentencepiece.bpe.model"  # only the shipped tower has one
TEXT = make_text_tower.Settings(
    scenes=120, test_scenes=10, vocab_size=420, width=16, layers=1, mlm_steps=3, ranking_steps=3, batch_size=8
)


def test_the_vision_script_makes_a_tower_like_the_one_that_ships(tmp_path: Path) -> None:
    make_vision_tower.make(tmp_path / "out", VISION)
    shipped = {path.name for path in (STARTER / "vision").iterdir()}
    assert {path.name for path in (tmp_path / "out").iterdir()} == shipped
    facts = tomllib.loads((tmp_path / "out" / "tower.toml").read_text())
    assert facts == tomllib.loads((STARTER / "vision" / "tower.toml").read_text())
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert all(tensor.dtype == torch.float16 for tensor in state.values())
    timm.create_model(facts["model"], num_classes=0, **facts["args"]).load_state_dict(state)
    assert "| kind_0 |" in (tmp_path / "out" / "README.md").read_text()


def test_the_text_script_makes_a_tower_like_the_one_that_ships(tmp_path: Path) -> None:
    make_text_tower.make(tmp_path / "out", TEXT)
    shipped = {path.name for path in (STARTER / "text").iterdir()}
    assert {path.name for path in (tmp_path / "out").iterdir()} == shipped - {SPM_FILE}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer("two cats", "paka wawili")["input_ids"]
    assert [i for i in ids if i in tokenizer.all_special_ids] == [0, 2, 2, 2]
    assert tokenizer.decode(ids, skip_special_tokens=True).split() == ["two", "cats", "paka", "wawili"]
    _, info = AutoModelForMaskedLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert build_text(TextSpec(model=str(tmp_path / "out"))).width == 16
    assert "| Swahili |" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("name", ["vision", "text"])
def test_the_scripts_have_a_command_line(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = f"polyalign.data.starter.make_{name}_tower"
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    monkeypatch.delitem(sys.modules, module)
    with pytest.raises(SystemExit):
        runpy.run_module(module, run_name="__main__")
    assert "--out" in capsys.readouterr().out


def test_no_picture_to_learn_from_has_a_held_out_combination() -> None:
    near = make_vision_tower.objects(3000, np.random.default_rng(0))
    far = np.array([labels for _, labels in make_vision_tower.scenes(1500, np.random.default_rng(0))])
    names = list(make_vision_tower.SCENE_LABELS)
    seen = {(kind, color) for _, (kind, color, _) in near}
    for slot in (0, 1):
        seen |= set(map(tuple, far[:, [names.index(f"kind_{slot}"), names.index(f"color_{slot}")]].tolist()))
    shown = {(world.KINDS[kind], world.COLORS[color]) for kind, color in seen}
    assert len(shown) == 24 * 10 - len(world.HELD_OUT)
    assert not shown & world.HELD_OUT


def test_scene_labels_number_the_facts_from_the_left_or_upper_thing() -> None:
    things = (world.Thing("tree", "pink", "large", 3), world.Thing("house", "red", "small", 1))
    below = world.Scene("sand", things, "below", seed=0)
    assert make_vision_tower.scene_labels(below) == [0, 0, 0, 0, 1, 7, 1, 2, 1, 1]
    left = world.Scene("sand", things, "left", seed=0)
    assert make_vision_tower.scene_labels(left) == [1, 7, 1, 2, 0, 0, 0, 0, 0, 1]


@pytest.fixture(scope="module")
def lines() -> list[make_text_tower.Line]:
    return make_text_tower.corpus(200, 1.0, np.random.default_rng(4242))


def test_a_low_resource_language_says_less() -> None:
    some = make_text_tower.corpus(800, 0.25, np.random.default_rng(0))
    assert all("en" in line for line in some)
    assert sum("sw" in line for line in some) == pytest.approx(200, abs=45)


def test_the_shipped_text_tower_finds_translations_and_knows_its_languages(lines: list[make_text_tower.Line]) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(STARTER / "text"), shipped()
    batches = make_text_tower.Batches(tokenizer, make_text_tower.Settings(), ranking=False)
    measured = make_text_tower.measure(make_text_tower.Learner(model, 0.05), batches, lines)
    assert set(measured) == {code for code in langs.language_codes() if langs.load_language(code).starter}
    assert min(min(there, back) for there, back, _ in measured.values()) >= 0.8, measured
    assert max(perplexity for *_, perplexity in measured.values()) < 20, measured


def test_the_shipped_text_tower_loads_whole_and_is_small() -> None:
    _, info = AutoModel.from_pretrained(STARTER / "text", add_pooling_layer=False, output_loading_info=True)
    assert not info["missing_keys"]
    model = shipped()
    assert model.lm_head.decoder.weight is model.roberta.embeddings.word_embeddings.weight
    assert {tensor.dtype for tensor in load_file(STARTER / "text" / "model.safetensors").values()} == {torch.float16}
    assert sum(file.stat().st_size for file in STARTER.rglob("*")) < 5_000_000


def test_the_shipped_tokenizer_splits_as_its_sentencepiece_file_does(lines: list[make_text_tower.Line]) -> None:
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(STARTER / "text" / SPM_FILE))
    tokenizer = AutoTokenizer.from_pretrained(STARTER / "text")
    for sentence in (sentence for line in lines[:50] for sentence in line.values()):
        ids = tokenizer(sentence)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == sentence
        assert ids[1:-1] == [piece + 1 for piece in pieces.encode(sentence)]


def shipped() -> torch.nn.Module:
    return AutoModelForMaskedLM.from_pretrained(STARTER / "text", dtype=torch.float32).eval()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'"x"'])
def test_a_damaged_record_of_a_run_is_one_line(config: Config, tmp_path: Path, content: bytes) -> None:
    for name in ("pretrained.json", "checkpoints/settings.json"):
        out = tmp_path / name.partition(".")[0]
        (out / name).parent.mkdir(parents=True)
        (out / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name} is damaged \(.*\): use another --out"):
            pretrain_text(config, out, resume=True)


def test_a_finished_run_without_its_weights_is_not_taken_for_one(
    done: tuple[Path, Pretrained], config: Config, tmp_path: Path
) -> None:
    out = shutil.copytree(done[0], tmp_path / "out")
    (out / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"record of a finished run but no model\.safetensors: use another --out"):
        pretrain_text(config, out, resume=True)
