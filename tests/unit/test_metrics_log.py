"""The metrics of a run in training: lines in its folder, and the same in a tracker."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path
from unittest.mock import MagicMock

import accelerate
import pytest

from polyalign.evaluation import ranking
from polyalign.evaluation.results import Run
from polyalign.experiments import run_folders as runs
from polyalign.training import loop as loop_module
from polyalign.training import metrics_log, train
from polyalign.training.metrics_log import METRICS
from polyalign.utils.errors import UserError
from tests import forked, tiny

SETTINGS = {"optim": {"epochs": 6, "batch_size": 32}, "train": {"evals": 4, "patience": 9}}
STEPS = 6 * 4


def train_into(folder: Path, *, resume=False, overwrite=False, track=None, **sections) -> Run:
    found = runs.train_into(
        folder, tiny.resolved(**{**SETTINGS, **sections}), resume=resume, overwrite=overwrite, track=track
    )
    assert found is not None
    return found


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]


def timeless(found: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("metrics") / "run"
    train_into(folder)
    return folder


def test_every_dev_evaluation_is_a_line_with_all_that_the_result_says_of_it(finished):
    run, found = Run.load_json(finished / train.RESULT), lines(finished)
    assert len(run.dev_evaluations) == 4
    assert [line["step"] for line in found] == [one.step for one in run.dev_evaluations]
    for line, one in zip(found, run.dev_evaluations, strict=True):
        assert line["dev_mean_recall"] == one.dev_mean_recall
        assert line["loss"] == pytest.approx(one.loss)
        six = [line[f"dev_{name}"] for name in ranking.COLUMNS[:-1]]
        assert sum(six) / 6 == pytest.approx(line["dev_mean_recall"])
    last = found[-1]
    assert (last["epoch"], last["pairs_seen"]) == (run.epochs, run.pairs_seen)
    assert 0 < last["lr"] < max(line["lr"] for line in found)
    assert "lr_lowest" not in last


def test_losses_between_dev_evaluations_are_lines_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(loop_module, "_LOSSES_READ_EVERY", 5)
    run = train_into(tmp_path / "run", train={"evals": 2, "patience": 9}, optim={**SETTINGS["optim"], "text_lr": 1e-4})
    found = lines(tmp_path / "run")
    assert [line["step"] for line in found] == [5, 10, 12, 17, 22, 24]
    assert ["dev_mean_recall" in line for line in found] == [False, False, True] * 2
    weighted = sum(line["loss"] * steps for line, steps in zip(found[:3], (5, 5, 2), strict=True)) / 12
    assert weighted == pytest.approx(run.dev_evaluations[0].loss), "each loss counts once"
    assert all(0 < line.get("lr_lowest", line["lr"]) <= line["lr"] for line in found)


@pytest.mark.parametrize("stop", [("SIGKILL", 8), ("SIGINT", 8), ("SIGKILL", 15)])
def test_a_stopped_run_leaves_whole_lines_and_goes_on_without_repeating_one(stop, finished, tmp_path):
    folder, said = tmp_path / "run", tmp_path / "said.txt"
    recipe = tiny.write(tmp_path / "tiny.toml", **SETTINGS)
    process = forked.start("train", "--lang", "en", "--recipe", recipe, "--out", folder, said=said, stop=stop)
    process.join(600)
    assert process.exitcode == (130 if stop[0] == "SIGINT" else -signal.SIGKILL), said.read_text()
    before = lines(folder)
    assert [line["step"] for line in before] == {8: [6] + [8] * (stop[0] == "SIGINT"), 15: [6, 12]}[stop[1]]
    with (folder / METRICS).open("a", encoding="utf-8") as file:  # as if it had died while it wrote
        file.write('{"step": 13, "loss": 1.0}\n{"step": 14, "lo')
    train_into(folder, resume=True)
    again = timeless(lines(folder))
    assert max(Counter(line["step"] for line in again).values()) == 1
    due = [line for line in again if "dev_mean_recall" in line]
    wanted = timeless(lines(finished))
    if stop[0] == "SIGKILL":
        assert due == wanted
    else:
        assert [line["dev_mean_recall"] for line in due] == [line["dev_mean_recall"] for line in wanted]


@pytest.mark.parametrize("text", ["\0\0\0", "[1]\n", '{"step": "x"}\n', "[" * 100_000, '{"step": 1e999}\n', "\xff"])
def test_lines_that_were_not_written_by_a_run_are_left_out(text, tmp_path):
    path = tmp_path / METRICS
    path.write_bytes(b'{"step": 2, "loss": 1}\n' + text.encode("latin-1"))
    assert metrics_log._lines_until(5, path) == '{"step": 2, "loss": 1}\n'


def test_a_new_run_starts_the_file_anew_and_overwriting_deletes_it(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    train_into(folder, overwrite=True)
    assert timeless(lines(folder)) == timeless(lines(finished))
    (folder / METRICS).write_text("mine\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl is not as a run left it"):
        train_into(folder, overwrite=True)


def test_a_link_in_the_place_of_the_file_is_replaced_not_followed(tmp_path):
    outside = tmp_path / "precious.txt"
    outside.write_text('{"step": 1}\n')
    (tmp_path / METRICS).symlink_to(outside)
    metrics_log.MetricsLog(tmp_path / METRICS, tiny.resolved(), accelerate.Accelerator(), 5).write(6, {"loss": 0.5})
    assert outside.read_text() == '{"step": 1}\n'
    assert [line["step"] for line in lines(tmp_path)] == [1, 6]


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    log = metrics_log.MetricsLog(tmp_path / METRICS, tiny.resolved(), accelerate.Accelerator(), None)
    (tmp_path / METRICS).unlink()
    (tmp_path / METRICS).symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl: No space left on device; make room"):
        log.write(1, {"loss": 0.5})


# Trackers


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TensorBoard and its protobuf
def test_tensorboard_gets_the_same_and_the_weights_do_not_change(finished, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    train_into(folder, track="tensorboard")
    assert tiny.same(tiny.weights(folder), tiny.weights(finished))
    assert timeless(lines(folder)) == timeless(lines(finished))
    events = EventAccumulator(str(folder / metrics_log.TRACKING / "polyalign"))
    events.Reload()
    for name in ("loss", "lr", "dev_mean_recall", "dev_text_to_image_r1"):
        sent = {one.step: one.value for one in events.Scalars(name)}
        assert sent == pytest.approx({line["step"]: line[name] for line in lines(folder)})
    os.utime(folder / METRICS)
    train_into(folder, overwrite=True)
    assert (folder / metrics_log.TRACKING).is_dir(), "what a tracker wrote is kept"


def test_a_tracker_that_is_not_installed_is_said_before_anything_is_loaded(tmp_path, run, monkeypatch):
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [])
    recipe = tiny.write(tmp_path / "tiny.toml")
    code, _, said = run("train", "--lang", "en", "--recipe", recipe, "--out", tmp_path / "run", "--track", "wandb")
    assert (code, said.splitlines()[-1]) == (
        2,
        "error: --track wandb needs a library that is not installed: pip install wandb",
    )
    assert not (tmp_path / "run" / METRICS).exists()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_trackers_that_are_not_installed_here_are_called_with_what_they_take(name, tmp_path, monkeypatch):
    library = MagicMock()
    library.utils.validation.MAX_PARAM_VAL_LENGTH = library.utils.validation.MAX_PARAMS_TAGS_PER_BATCH = 100
    monkeypatch.setitem(sys.modules, name, library)
    accelerator = accelerate.Accelerator()
    accelerator.log_with = [accelerate.utils.LoggerType(name)]
    log = metrics_log.MetricsLog(tmp_path / "my-run" / METRICS, tiny.resolved(), accelerator, None)
    log.write(3, {"loss": 0.5})
    metrics_log.end_training(accelerator)
    begun = library.init if name == "wandb" else library.start_run
    assert "my-run" in begun.call_args.kwargs.values()
    sent = library.init.return_value.log if name == "wandb" else library.log_metrics
    sent.assert_called_once_with({"loss": 0.5}, step=3)


class Tracker(accelerate.tracking.GeneralTracker):
    """A tracker that fails at a step."""

    name = "fragile"
    requires_logging_directory = False
    tracker = None

    def __init__(self, fails_at: int) -> None:
        super().__init__()
        self.fails_at, self.got, self.settings = fails_at, [], {}

    def store_init_configuration(self, values):
        sys.stdout.write("hello from a tracker")
        if self.fails_at == 0:
            raise RuntimeError("no account\nuse login")
        self.settings = values

    def log(self, values, step, **_):
        self.got.append((step, values))
        if step >= self.fails_at:
            raise ConnectionError("the server is away")


def test_a_tracker_that_fails_does_not_end_the_run(tmp_path, caplog, capsys):
    accelerator = accelerate.Accelerator()
    tracker = Tracker(fails_at=2)
    accelerator.log_with = [tracker]
    log = metrics_log.MetricsLog(tmp_path / METRICS, tiny.resolved("lilt"), accelerator, None)
    for step in range(1, 5):
        log.write(step, {"loss": 1 / step})
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]
    assert tracker.got == [(1, {"loss": 1.0}), (2, {"loss": 0.5})]
    assert tracker.settings["strategy"] == "lilt"
    assert caplog.messages == ["warning: fragile failed (the server is away); the run goes on without it"]
    assert capsys.readouterr().out == "", "standard output is for results"


def test_a_tracker_that_cannot_start_is_one_line(tmp_path):
    accelerator = accelerate.Accelerator()
    accelerator.log_with = [Tracker(fails_at=0)]
    with pytest.raises(UserError, match=r"^--track .* cannot be started: no account$"):
        metrics_log.MetricsLog(tmp_path / METRICS, tiny.resolved(), accelerator, None)


def test_only_the_main_process_writes(tmp_path, monkeypatch):
    accelerator = accelerate.Accelerator()
    monkeypatch.setattr(type(accelerator), "is_main_process", property(lambda _: False))
    log = metrics_log.MetricsLog(tmp_path / METRICS, tiny.resolved(), accelerator, None)
    log.write(1, {"loss": 1.0})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tracker", ["wandb", "trackio", "mlflow"])
def test_offline_nothing_is_sent_to_a_tracker(tracker, run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, _, err = run("train", "--lang", "sw", "--offline", "--track", tracker)
    assert (code, err.count("\n")) == (2, 1)
    assert f"--track {tracker} may use the network: leave out --offline" in err
    assert not list(tmp_path.iterdir())
