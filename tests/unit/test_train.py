from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tomli_w
import torch

from polyalign.config.schema import Recipe
from polyalign.evaluation import ranking
from polyalign.evaluation.intervals import recall_intervals
from polyalign.evaluation.results import DevEvaluation, Run
from polyalign.experiments import run_folders as runs
from polyalign.models import embed
from polyalign.models.aligner import Aligner
from polyalign.training import inputs, train
from polyalign.training import loop as loop_module
from polyalign.training.loop import Loop
from polyalign.training.loss import info_nce, sigmoid
from polyalign.training.plan import Plan, collapse_alarm
from polyalign.utils import storage
from polyalign.utils.errors import UserError
from polyalign.utils.lock import LOCK_FILES
from polyalign.utils.process import Spent, ctrl_c_held_back
from tests import forked, tiny, two_processes

# Twelve steps of 32 pairs; dev is looked at after steps 4, 8 and 12.
STEPS = 12


def run_in(folder: Path, name: str = "lilt", *, resume: bool = False, **sections) -> Run:
    found = train.train(tiny.resolved(name, **sections), folder, resume=resume)
    assert found is not None
    return found


loop_for = two_processes.loop_of


def measured(run: Run) -> dict[str, object]:
    """What must be the same when a run is repeated, which time and memory need not."""
    facts = run.model_dump(exclude={"seconds", "cpu_seconds", "peak_memory_bytes"})
    facts["dev_evaluations"] = [look.model_dump(exclude={"seconds"}) for look in run.dev_evaluations]
    return facts


@dataclass(frozen=True)
class Done:
    """A run from beginning to end."""

    run: Run
    folder: Path


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Done:
    folder = tmp_path_factory.mktemp("whole")
    return Done(run_in(folder), folder)


@pytest.fixture(scope="module")
def deep(tmp_path_factory) -> Done:
    """A run with a block that drops out while it trains."""
    folder = tmp_path_factory.mktemp("deep")
    return Done(run_in(folder, "lilt-deep"), folder)


# A whole run


def test_the_record_tells_what_was_done(whole):
    run = whole.run
    assert (run.lang, run.strategy, run.towers, run.budget, run.seed) == ("en", "lilt", "both", "all", 0)
    assert (run.pairs, run.images, run.caption_origin) == (128, 64, "unknown")
    assert (run.steps, run.epochs, run.pairs_seen, run.stopped_early) == (STEPS, 3, STEPS * 32, False)
    assert [look.step for look in run.dev_evaluations] == [4, 8, 12]
    assert (run.trainable, run.total) == tiny.aligner("lilt").count()
    assert run.checkpoint_bytes == (whole.folder / "model.safetensors").stat().st_size
    assert run.seconds > 0
    assert 2**20 < run.peak_memory_bytes < 2**40
    assert run.test[0].images == run.untrained.images == 24
    assert Recipe.model_validate(run.recipe) == tiny.resolved("lilt")


def test_it_learns(whole):
    assert whole.run.test[0].mean_recall.value > 1.5 * whole.run.untrained.mean_recall.value
    losses = [look.loss for look in whole.run.dev_evaluations]
    assert losses == sorted(losses, reverse=True)


def test_the_folder_holds_the_result_and_the_checkpoint_and_no_state(whole):
    names = {path.name for path in whole.folder.iterdir()}
    assert names == {
        "model.safetensors",
        "recipe.toml",
        "towers.json",
        "tokenizer",
        "result.json",
        "train_images.safetensors",
        "metrics.jsonl",
    }
    assert Run.load_json(whole.folder / train.RESULT) == whole.run


def test_the_same_seed_repeats_a_run_to_the_bit_and_another_does_not(whole, tmp_path):
    again = run_in(tmp_path / "again")
    assert measured(again) == measured(whole.run)
    assert tiny.same(tiny.weights(tmp_path / "again"), tiny.weights(whole.folder))
    other = run_in(tmp_path / "other", train={"seed": 1})
    assert [look.loss for look in other.dev_evaluations] != [look.loss for look in whole.run.dev_evaluations]
    assert other.untrained.mean_recall != whole.run.untrained.mean_recall


def test_languages_not_trained_on_are_tested_too(tmp_path):
    run = run_in(tmp_path, "projection", test={"languages": ["de"]})
    assert [result.lang for result in run.test] == ["en", "de"]


def test_bf16_trains_and_stays_near(tmp_path):
    plain, half = (run_in(tmp_path / kind, "projection", train={"precision": kind}) for kind in ("fp32", "bf16"))
    losses = [[look.loss for look in run.dev_evaluations] for run in (plain, half)]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.02)


# Stopped and gone on with


@dataclass(frozen=True)
class Stopped:
    """A command that was stopped: its exit code, what it said, and its folder."""

    code: int
    said: str
    folder: Path


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> dict[str, Stopped]:
    """The same run, stopped in the middle of step 6 by SIGKILL and by Ctrl-C."""
    root = tmp_path_factory.mktemp("stopped")
    recipe = tiny.write(root / "tiny.toml", "lilt-deep")
    started = {}
    for name in ("SIGKILL", "SIGINT"):
        arguments = ("train", "--lang", "en", "--recipe", recipe, "--out", root / name)
        started[name] = forked.start(*arguments, said=root / f"{name}.txt", stop=(name, 6))
    for process in started.values():
        process.join(600)
    return {
        name: Stopped(process.exitcode, (root / f"{name}.txt").read_text(encoding="utf-8"), root / name)
        for name, process in started.items()
    }


@pytest.mark.parametrize(("name", "code", "step"), [("SIGKILL", -signal.SIGKILL, 4), ("SIGINT", 130, 6)])
def test_a_stopped_run_goes_on_to_the_same_result_to_the_bit(name, code, step, stopped, deep, tmp_path, caplog):
    run = stopped[name]
    assert run.code == code, run.said
    assert {path.name for path in run.folder.iterdir()} - {*LOCK_FILES} == {train.STATE, train.METRICS, runs.MANIFEST}
    folder = shutil.copytree(run.folder, tmp_path / "run")
    found = runs.train_into(folder, tiny.resolved("lilt-deep"), resume=True, overwrite=False)
    assert f"continuing after step {step} of {STEPS}" in caplog.messages
    assert measured(found) == measured(deep.run)
    assert tiny.same(tiny.weights(folder), tiny.weights(deep.folder))
    assert not (folder / train.STATE).exists()


def test_a_run_with_rates_of_its_own_goes_on_to_the_same_result_to_the_bit(tmp_path, monkeypatch):
    optim = {"vision_lr": 1e-2, "projection_lr": 1e-3, "text_weight_decay": 0.5, "layer_decay": 0.5}
    whole = loop_for(tiny.resolved("layernorm", optim=optim))
    assert len(whole.optimiser.param_groups) > 4
    whole.run(tmp_path / "whole", resume=False)
    cut = loop_for(tiny.resolved("layernorm", optim=optim))
    monkeypatch.setattr(cut, "_agree", lambda step, spent, *, stop: (spent, stop or step == 6))
    with pytest.raises(KeyboardInterrupt):
        cut.run(tmp_path / "cut", resume=False)
    resumed = loop_for(tiny.resolved("layernorm", optim=optim))
    assert resumed.run(tmp_path / "cut", resume=True).step == STEPS
    assert tiny.same(whole.aligner.trainable(), resumed.aligner.trainable())


def test_ctrl_c_says_how_to_go_on_in_one_line_and_shows_no_traceback(stopped):
    run = stopped["SIGINT"]
    assert "Traceback" not in run.said
    assert run.said.splitlines()[-1] == (
        f"interrupted; continue with the same command and --resume (the state is in {run.folder})"
    )


def test_a_second_ctrl_c_does_not_wait():
    def press_twice():
        with ctrl_c_held_back() as pressed:
            signal.raise_signal(signal.SIGINT)
            assert pressed
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        press_twice()
    assert signal.getsignal(signal.SIGINT) is before


def test_an_unfinished_run_is_neither_gone_on_with_nor_thrown_away_unasked(stopped, tmp_path):
    folder = shutil.copytree(stopped["SIGKILL"].folder, tmp_path / "run")
    state = (folder / train.STATE).read_bytes()
    with pytest.raises(
        UserError, match="holds an unfinished run: continue it with --resume, or start over with --overwrite"
    ):
        runs.train_into(folder, tiny.resolved("lilt-deep"), resume=False, overwrite=False)
    assert (folder / train.STATE).read_bytes() == state


@pytest.mark.parametrize(
    "sections", [{"optim": {"lr": 1e-3}}, {"train": {"seed": 5}}, {"strategy": {"layers": "last:2"}}]
)
def test_going_on_with_other_settings_is_an_error(sections, stopped, tmp_path):
    folder = shutil.copytree(stopped["SIGKILL"].folder, tmp_path / "run")
    with pytest.raises(UserError, match="belongs to a run with other settings: use the same settings"):
        run_in(folder, "lilt-deep", resume=True, **sections)


def test_a_corrupt_state_is_an_error_of_one_line(stopped, tmp_path):
    folder = shutil.copytree(stopped["SIGKILL"].folder, tmp_path / "run")
    (folder / train.STATE).write_bytes((folder / train.STATE).read_bytes()[:1000])
    with pytest.raises(UserError, match=r"cannot read .*state\.safetensors") as caught:
        run_in(folder, "lilt-deep", resume=True)
    assert "\n" not in str(caught.value)


def test_a_state_holds_what_is_needed_and_no_pickle(stopped):
    tensors, metadata = storage.load_tensors(stopped["SIGKILL"].folder / train.STATE)
    kinds = {name.split("/")[0] for name in tensors}
    assert kinds == {"model", "best", "optimiser"}
    assert json.loads(metadata["position"])["step"] == 4


@pytest.mark.parametrize("name", ["full", "lilt-deep", "lilt"])
def test_every_step_is_taken_in_training_mode_and_every_look_in_the_other(name, tmp_path, monkeypatch):
    loop = loop_for(tiny.resolved(name))
    expected = [module for module in loop.aligner.train().modules() if module.training]
    loop.aligner.eval()
    modes = []

    def noted(what, whole):
        def call(*given, **options):
            modes.append((what, [module for module in loop.aligner.modules() if module.training]))
            return whole(*given, **options)

        return call

    monkeypatch.setattr(loop, "backward", noted("step", loop.backward))
    monkeypatch.setattr(loop.aligner.text_projection, "forward", noted("text", loop.aligner.text_projection.forward))
    loop.run(tmp_path / "state", resume=False)
    assert bool(expected)
    assert [mode for what, mode in modes if what == "step"] == [expected] * STEPS
    assert [mode for what, mode in modes if what == "text"].count([]) == 3


# Stopping early, and going wrong


def test_it_stops_when_dev_has_not_gained_for_so_many_looks(tmp_path):
    still = {"optim": {"lr": 1e-12, "epochs": 50}, "train": {"evals": 100, "patience": 3}}
    run = run_in(tmp_path, "projection", **still)
    assert run.stopped_early
    assert [look.step for look in run.dev_evaluations] == [2, 4, 6, 8]
    assert run.steps == 8


def test_what_is_kept_is_the_best_look_not_the_last(tmp_path, monkeypatch):
    recalls = iter([0.1, 0.4, 0.3, 0.4])
    states = []
    whole = train.checkpoint.trained_state

    def noted(aligner):
        states.append({name: tensor.clone() for name, tensor in whole(aligner).items()})
        return whole(aligner)

    loop = loop_for(tiny.resolved("projection", train={"evals": 4, "patience": 2}))
    monkeypatch.setattr(loop, "_dev_recalls", lambda: (np.full(7, next(recalls)), 1.0))
    monkeypatch.setattr(train.checkpoint, "trained_state", noted)
    state = loop.run(tmp_path / "state", resume=False)
    assert state.best_dev_evaluation == 1
    assert state.finished  # the fourth look equals the best and is no gain
    assert any(tiny.same(state.best, earlier) for earlier in states)
    assert not tiny.same(state.best, whole(loop.aligner))


@pytest.mark.parametrize("name", ["projection", "full"])
def test_a_loss_that_is_no_number_is_an_error_that_names_the_learning_rate(name, tmp_path):
    with pytest.raises(
        UserError, match=r"the loss is (nan|inf) at step \d+: lower the learning rate \(--set optim.lr="
    ):
        run_in(tmp_path, name, optim={"lr": 1e3, "weight_decay": 1e3, "warmup_steps": 0})


@pytest.fixture
def flawed(monkeypatch):
    """Let a tower of every aligner give what is not finite for some of the real data, and nothing else."""

    def flaw(method: str) -> None:
        whole = getattr(Aligner, method)

        def encode(aligner, x, start=0):
            made = whole(aligner, x, start)
            return torch.where(torch.arange(len(made))[:, None] == 7, torch.nan, made)

        monkeypatch.setattr(Aligner, method, encode)

    return flaw


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("encode_image", "the vision tower gives values that are not finite for some images, even before training"),
        ("encode_text", "the text tower gives values that are not finite for some captions, even before training"),
    ],
)
def test_a_tower_that_gives_nan_is_not_a_learning_rate_that_is_too_high(method, said, flawed, tmp_path):
    loop = loop_for(tiny.resolved("lilt"))
    flawed(method)
    with pytest.raises(UserError, match=f"the loss is nan at step 1: {said}") as caught:
        loop.run(tmp_path / "state", resume=False)
    assert "learning rate" not in str(caught.value)
    with pytest.raises(UserError, match=f"the embeddings of the dev split are not finite: {said}"):
        loop._dev_recalls()


def test_cached_features_that_are_damaged_are_said_to_be(tmp_path):
    loop = loop_for(tiny.resolved("projection"))
    values = np.array(loop.features.images.values)
    values[5] = np.inf
    loop.features = replace(loop.features, images=replace(loop.features.images, values=values))
    with pytest.raises(UserError, match=r"the loss is nan at step \d: the cached features are not finite: delete them"):
        loop.run(tmp_path / "state", resume=False)


def test_weights_that_training_made_infinite_are_said_to_be_due_to_the_learning_rate_on_dev_too():
    loop = loop_for(tiny.resolved("projection"))
    with torch.no_grad():
        loop.aligner.text_projection.weight.fill_(torch.inf)
    with pytest.raises(UserError, match="the embeddings of the dev split are not finite: lower the learning rate"):
        loop._dev_recalls()


def look(step: int, recall: float) -> DevEvaluation:
    return DevEvaluation(step=step, seconds=1, loss=1, dev_mean_recall=recall)


@pytest.mark.parametrize(
    ("recalls", "images", "alarm"),
    [
        # Chance among 100 images is (0.01 + 0.05 + 0.10) / 3 = 5.3 %.
        ([0.05, 0.05], 100, None),  # too early to tell
        ([0.05, 0.05, 0.06], 100, "dev recall 6.0 % is at chance after step 3"),
        ([0.05, 0.05, 0.07], 100, None),
        ([0.05, 0.30, 0.14], 100, "dev recall fell from 30.0 to 14.0 % by step 3"),
        ([0.05, 0.30, 0.16], 100, None),
        ([0.05, 0.30, 0.01], 100, "is at chance"),
        ([0.40, 0.10], 100, "fell from 40.0 to 10.0 %"),
        ([0.05, 0.06, 0.05], 30, "is at chance"),
        # Among 8 images chance is (0.125 + 0.625 + 1) / 3 = 58 %, and the interval of any recall is wide.
        ([0.60, 0.70, 0.73], 8, None),
        ([0.60, 0.58, 0.50], 8, None),
        ([0.60, 0.90, 0.40], 8, "fell from 90.0 to 40.0 %"),
    ],
)
def test_the_collapse_alarm(recalls, images, alarm):
    chance = float(ranking.chance(np.ones(images, np.int64)).mean())
    hit = (np.arange(images)[:, None] < recalls[-1] * images) * np.ones(6)
    high = recall_intervals([hit], np.ones((images, 6))).high[-1]
    said = collapse_alarm([look(step, recall) for step, recall in enumerate(recalls, 1)], chance, high)
    assert (said is None) == (alarm is None)
    if alarm:
        assert alarm in said
        assert "lower the learning rate (--set optim.lr=...)" in said


def test_the_alarm_is_said_while_training(tmp_path, caplog):
    recipe = tiny.resolved("projection", optim={"lr": 1e-12})
    train.train(recipe, tmp_path, resume=False)
    assert [line for line in caplog.messages if line.startswith("collapse: dev recall")]


# The plan and the batches


def plan(pairs: int, batch: int, epochs: int, evals: int = 4, **more: int) -> Plan:
    optim = {"batch_size": batch, "epochs": epochs, **more}
    return Plan.of(tiny.resolved(optim=optim, train={"evals": evals}), pairs)


def test_a_plan_by_hand():
    assert plan(128, 32, 3) == Plan(12, 4, frozenset({3, 6, 9, 12}))
    assert plan(127, 32, 1, evals=1) == Plan(3, 3, frozenset({3}))
    assert plan(10, 32, 5, evals=2) == Plan(5, 1, frozenset({2, 5}))
    assert plan(128, 32, 1, min_steps=10, evals=2) == Plan(10, 4, frozenset({5, 10}))
    assert plan(64, 32, 1, evals=20) == Plan(2, 2, frozenset({1, 2}))


def test_an_epoch_sees_every_pair_once_in_another_order_each_time():
    loop = loop_for(tiny.resolved())
    first, second = ([loop.batch(step) for step in range(4 * epoch, 4 * epoch + 4)] for epoch in (0, 1))
    for epoch in (first, second):
        assert sorted(np.concatenate(epoch)) == list(range(128))
    assert not np.array_equal(np.concatenate(first), np.concatenate(second))
    assert np.array_equal(loop.batch(2), first[2])


def test_processes_share_a_batch_between_them(monkeypatch):
    loop = loop_for(tiny.resolved())
    whole = loop.batch(5)

    class Other:
        num_processes = 3
        process_index = 0

    loop.accelerator = Other()
    shares = []
    for Other.process_index in range(3):
        shares.append(loop.batch(5))
    assert [len(share) for share in shares] == [10, 10, 10]
    assert np.array_equal(np.concatenate(shares), whole[:30])


# Gradients


def naive_gradients(recipe: Recipe) -> dict[str, torch.Tensor]:
    """The gradient of the first step's batch and the loss: whole towers, no cache, no parts, no other process."""
    loop = loop_for(recipe)
    aligner, table, pairs = loop.aligner.train(), tiny.table(), loop.batch(0)
    rows = table.image_of[pairs]
    assert len(set(rows)) < len(rows), "two captions of an image are part of the test"
    image = aligner.encode_image(torch.stack([aligner.vision.transform(table.images[row].open()) for row in rows]))
    text = aligner.encode_text(aligner.text.collate(aligner.text.tokenize([table.captions[pair] for pair in pairs])))
    captions = [table.captions[pair] for pair in pairs]
    same = torch.tensor(
        [[rows[i] == rows[j] or captions[i] == captions[j] for j in range(len(pairs))] for i in range(len(pairs))]
    )
    if recipe.optim.loss == "sigmoid":
        loss = sigmoid(image, text, aligner.scale, aligner.logit_bias, same)
    else:
        loss = info_nce(image, text, aligner.scale, same)
    loss.backward()
    return {**{name: p.grad for name, p in aligner.trainable().items()}, "loss": loss.detach()}


def assert_same_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=2e-6, msg=name)


@pytest.mark.parametrize("loss", ["infonce", "sigmoid"])
@pytest.mark.parametrize("micro", [{}, {"micro_batch": 5}, {"micro_batch": 1}])
def test_gradients_are_those_of_the_whole_towers_on_the_whole_batch(loss, micro):
    recipe = tiny.resolved("lilt", optim={"loss": loss, **micro})
    assert_same_gradients(two_processes.gradients(recipe), naive_gradients(recipe))


@pytest.mark.parametrize("layers", ["all", "last:1"])
def test_gradients_do_not_depend_on_captions_going_through_in_parts_of_like_length(layers, monkeypatch):
    recipe = tiny.resolved("lilt", strategy={"layers": layers}, cache={"dtype": "float32"})
    expected = naive_gradients(recipe)
    monkeypatch.setattr(embed, "_OF_LIKE_LENGTH", 2)
    assert_same_gradients(two_processes.gradients(recipe), expected)


def test_parts_drop_out_the_same_both_times():
    loop = loop_for(tiny.resolved("full", optim={"micro_batch": 8}))
    loop.aligner.train()
    pairs = loop.batch(0)
    value = loop.backward(pairs, seed=3).item()
    cached = {name: p.grad.clone() for name, p in loop.aligner.trainable().items()}
    loop.aligner.zero_grad()
    made = [loop._encode(part, 3 + number, 0) for number, part in enumerate(np.array_split(pairs, 4))]
    loss = loop.loss(*map(torch.cat, zip(*made, strict=True)), pairs)
    loss.backward()
    assert value == pytest.approx(loss.item(), rel=1e-6)
    for name, parameter in loop.aligner.trainable().items():
        torch.testing.assert_close(cached[name], parameter.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_a_gradient_that_is_too_long_is_clipped(tmp_path):
    one_step = {"grad_clip": 1e-3, "batch_size": 128, "epochs": 1}
    loop = loop_for(tiny.resolved("projection", optim=one_step))
    loop.run(tmp_path / "state", resume=False)
    norm = torch.cat([p.grad.flatten() for p in loop.aligner.trainable().values()]).norm().item()
    assert norm == pytest.approx(1e-3, rel=1e-3)


# Two processes

CASES = {
    "lilt": tiny.resolved("lilt"),
    "sigmoid": tiny.resolved("lilt", optim={"loss": "sigmoid"}),
    "micro": tiny.resolved("lilt", optim={"micro_batch": 5}),
    "projection": tiny.resolved("projection"),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory, repo) -> Path:
    """Folder of what two processes made: gradients of single steps, and a whole run."""
    out = tmp_path_factory.mktemp("two")
    for name, resolved in CASES.items():
        raw = {key: value for key, value in tomllib.loads(resolved.to_toml()).items() if key not in ("name", "lang")}
        (out / f"{name}.toml").write_text(tomli_w.dumps(raw), encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    launch += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"]
    command = ["train", "--lang", "en", "--recipe", str(out / "lilt.toml"), "--out", str(out / "run"), "--json"]
    done = subprocess.run(
        [*launch, str(repo / "tests" / "two_processes.py"), str(out), *command],
        capture_output=True, text=True, timeout=600, check=False,
        env={**os.environ, "PYTHONPATH": str(repo), "GLOO_SOCKET_IFNAME": "lo"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[:3000]
    (out / "stdout").write_text(done.stdout, encoding="utf-8")
    (out / "stderr").write_text(done.stderr, encoding="utf-8")
    return out


@pytest.mark.parametrize("case", CASES)
def test_gradients_of_two_processes_are_those_of_one_on_the_same_global_batch(case, pair):
    alone = naive_gradients(CASES[case])
    loop = loop_for(CASES[case])
    first, second = (loop.features.image_of[half] for half in np.split(loop.batch(0), 2))
    assert set(first) & set(second), "an image with one caption in each process is part of the test"
    for process in range(2):
        assert_same_gradients(storage.load_tensors(pair / f"{case}-{process}.safetensors")[0], alone)


def test_two_processes_that_fill_one_store_at_once_both_get_it_whole(pair):
    # Their gradients come from it and are right, see above.
    for case in CASES:
        left = [path.name for path in (pair / f"cache-{case}" / "features").glob("*/*")]
        assert {Path(name).suffix for name in left} == {"", ".rows", ".sqlite"}


def test_of_two_processes_in_a_run_one_fills_the_cache(pair):
    filled = [(pair / f"filled-{process}").read_text(encoding="utf-8").split() for process in range(2)]
    kept = [path.name for path in (pair / "cache-run" / "features").glob("vision-*")]
    assert len(kept) == 1  # of captions nothing is frozen below what trains
    assert filled[0] == 3 * kept  # the images of each split
    assert filled[1] == []


def test_a_run_of_two_processes_measures_what_one_does(pair, whole):
    found = Run.load_json(pair / "run" / train.RESULT)
    for look, alone in zip(found.dev_evaluations, whole.run.dev_evaluations, strict=True):
        assert look.loss == pytest.approx(alone.loss, rel=1e-4)
        assert look.dev_mean_recall == pytest.approx(alone.dev_mean_recall)
    assert (found.pairs_seen, found.steps) == (whole.run.pairs_seen, whole.run.steps)
    assert found.untrained == whole.run.untrained
    assert found.test == whole.run.test


def test_two_processes_print_one_result_and_say_everything_once(pair):
    assert Run.model_validate_json((pair / "stdout").read_text()) == Run.load_json(pair / "run" / train.RESULT)
    told = [line for line in (pair / "stderr").read_text().splitlines() if line.startswith("training: 12 of 12")]
    assert len(told) == 1


# What a loop decides


def test_an_epoch_is_permuted_once_and_every_step_gets_its_place(monkeypatch):
    loop = loop_for(tiny.resolved())
    drawn, whole = [], np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: drawn.append(seed) or whole(seed))
    steps = [loop.batch(step) for step in (*range(STEPS), 1, 0)]
    assert drawn == [(0, 0), (0, 1), (0, 2), (0, 0)]
    expected = whole((0, 0)).permutation(len(loop.features.captions))[32:64]
    np.testing.assert_array_equal(steps[1], expected)
    np.testing.assert_array_equal(steps[-2], expected)


def test_a_batch_that_processes_cannot_share_evenly_is_refused(monkeypatch):
    whole = loop_for(tiny.resolved())
    several = SimpleNamespace(num_processes=3, process_index=0, device=torch.device("cpu"))
    with pytest.raises(UserError, match="a batch of 32 pairs cannot be divided among 3 processes"):
        Loop(whole.recipe, whole.aligner, whole.features, whole.dev, several)


def test_a_batch_that_cannot_be_divided_is_refused_before_features_are_computed(monkeypatch):
    monkeypatch.setattr(inputs, "prepare", lambda *_: pytest.fail("features were computed"))
    several = SimpleNamespace(num_processes=2, device=torch.device("cpu"))
    monkeypatch.setattr(train, "tracking_accelerator", lambda *_: several)
    with pytest.raises(UserError, match=r"5 pairs cannot be divided among 2 processes: .*optim\.batch_size=4"):
        train.set_up(tiny.resolved(data={"budget": "5-pairs"}))


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"strategy": {"layers": "last:9"}}, "has 3 blocks"),
        ({"test": {"languages": ["xx"]}}, 'unknown language "xx"'),
        ({"data": {"budget": "20min"}}, "pass 20min as --budget"),
        ({"vision": {"model": str(tiny.conv())}, "train": {"recompute": True}}, r"train\.recompute needs transformer"),
        ({"vision": {"std": [0.0, 0.5, 0.5]}}, "std must be above zero"),
    ],
)
def test_bad_settings_are_refused_before_data_is_read(sections, said, monkeypatch):
    monkeypatch.setattr(inputs, "load_tables", lambda *_: pytest.fail("data was read"))
    name = "full" if "train" in sections else "lilt"
    with pytest.raises(UserError, match=said):
        train.set_up(tiny.resolved(name, **sections))


def test_one_pair_is_refused_before_features_are_computed(monkeypatch):
    monkeypatch.setattr(inputs, "prepare", lambda *_: pytest.fail("features were computed"))
    with pytest.raises(UserError, match="needs two pairs or more"):
        train.set_up(tiny.resolved(data={"budget": "1-pair"}))


def test_processes_stop_together_and_their_processor_time_is_added():
    others = torch.tensor([[9.0, 1.0, 0.0], [3.0, 2.0, 1.0]], dtype=torch.float64)
    loop = loop_for(tiny.resolved())
    loop.accelerator = SimpleNamespace(
        num_processes=3, device=torch.device("cpu"), gather=lambda own: torch.cat([own, others])
    )
    due = min(loop.plan.dev_evaluations)
    assert loop._agree(due, Spent(5.0, 4.0), stop=False) == (Spent(9.0, 7.0), True)
    # In between no process waits for the others, and none stops alone.
    assert loop._agree(due - 1, Spent(5.0, 4.0), stop=True) == (Spent(5.0, 4.0), False)
    loop.seconds = 100.0
    assert loop._agree(due - 1, Spent(5.0, 4.0), stop=False) == (Spent(9.0, 7.0), True)


def test_two_processes_interrupted_one_after_the_other_stop_at_one_step_and_resume_together(pair):
    found = [json.loads((pair / f"resumed-{process}.json").read_text()) for process in range(2)]
    assert found[0] == found[1]
    assert found[0]["before"] == list(range(4))
    assert found[0]["after"] == list(range(4, 12))
    assert found[0]["evaluated"] == [4, 8, 12]


def test_a_shortened_warm_up_is_reported_once(caplog):
    loop_module._say_once.cache_clear()
    for _ in range(2):
        loop_for(tiny.resolved(optim={"warmup_steps": 50}))
    assert caplog.messages.count("warm-up shortened from 50 to 1 steps, a tenth of the run") == 1
    caplog.clear()
    loop_for(tiny.resolved(optim={"warmup_steps": 1}))
    assert not caplog.messages


def test_a_loss_that_is_not_finite_is_found_with_its_step_before_anything_is_saved(monkeypatch, tmp_path):
    loop = loop_for(tiny.resolved(train={"evals": 1}))
    whole = loop.backward
    losses = iter([1.0, 2.0, float("nan")])
    monkeypatch.setattr(loop, "backward", lambda *given: whole(*given) * 0 + next(losses, 1.0))
    with pytest.raises(UserError, match="the loss is nan at step 3: lower the learning rate"):
        loop.run(tmp_path / "state", resume=False)
    assert not (tmp_path / "state").exists()


def test_only_patience_stops_a_run_early(tmp_path):
    assert not run_in(tmp_path / "whole").stopped_early
    stuck = run_in(tmp_path / "stuck", optim={"lr": 1e-12, "epochs": 9}, train={"evals": 9, "patience": 1})
    assert stuck.stopped_early
    timed = run_in(tmp_path / "timed", train={"max_seconds": 3.0, "evals": 2, "patience": 9}, optim={"epochs": 4000})
    assert timed.steps < 4000
    assert not timed.stopped_early


def test_one_process_measures_dev_and_all_decide_alike(monkeypatch, tmp_path):
    """A process that is not the main one takes the main one's result, and never measures."""
    loop = loop_for(tiny.resolved(train={"evals": 2, "patience": 1}))
    monkeypatch.setattr(type(loop.accelerator), "is_main_process", property(lambda _: False))
    monkeypatch.setattr(loop, "_dev_recalls", lambda: pytest.fail("measured by itself"))
    results = iter([0.5, 0.25])
    monkeypatch.setattr(loop_module, "from_main_process", lambda value: next(results))
    state = loop.run(tmp_path / "state", resume=False)
    assert [one.dev_mean_recall for one in state.dev_evaluations] == [0.5, 0.25]
    assert state.finished
