"""A grid of tiny towers, once in separate processes as in real use, otherwise in this process."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import polyalign
from polyalign import cli
from polyalign.cli.experiments import compare as compare_command
from polyalign.data.load import load_tables
from polyalign.evaluation.results import DevEvaluation, Run
from polyalign.experiments import compare, report
from polyalign.experiments import micro_batch as fitting
from polyalign.experiments import run_folders as runs
from polyalign.experiments import workers as pool
from polyalign.experiments.compare import Grid, Job
from polyalign.experiments.micro_batch import Fit
from polyalign.experiments.workers import Outcome
from polyalign.training import train
from polyalign.utils import storage
from polyalign.utils.errors import UserError
from polyalign.utils.text import for_markdown
from tests import forked, tiny
from tests.unit.test_results import a_retrieval, a_run


class Here:
    """A pool that runs jobs one after the other in this process, and records them."""

    def __init__(self) -> None:
        self.made: list[Any] = []
        self.tasks: list[str] = []

    def run(self, jobs: Sequence[Any], task: str, *, already: int, done: Callable[[Any], None]) -> dict[Any, Outcome]:
        failed = {}
        self.tasks += [task] if jobs else []
        for job in jobs:
            self.made.append(job)
            try:
                self.make(job)
                done(job)
            except UserError as error:
                failed[job] = Outcome(str(error), bad_input=True)
        return failed

    def make(self, job: Job) -> None:
        runs.train_into(job.folder, job.recipe, resume=True, overwrite=False)


class Told(Here):
    """A fake pool: ``dev`` and ``noise`` give the results by recipe; the runs in ``cannot`` fail."""

    def __init__(
        self, dev: Any = lambda recipe: 0.5, noise: Any = lambda recipe: 2.0, cannot: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.dev, self.noise, self.cannot = dev, noise, cannot

    def make(self, job: Job) -> None:
        name = job.recipe.strategy["name"]
        if name in self.cannot:
            raise UserError(f"{name} cannot")
        look = DevEvaluation(step=1, seconds=1, loss=1, dev_mean_recall=self.dev(job.recipe))
        a_run(
            recipe=job.recipe.model_dump(mode="json", exclude_none=True),
            lang=job.recipe.lang,
            strategy=name,
            towers=job.recipe.strategy["towers"],
            budget=job.recipe.budget,
            seed=job.recipe.train.seed,
            versions={"polyalign": polyalign.__version__},
            test=(a_retrieval(self.noise(job.recipe)),),
            dev_evaluations=(look,),
        ).save_json(job.folder / train.RESULT)


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tiny.write(tmp_path / "tiny.toml")


def grid(recipe: Path | str, *strategies: str, **changes: Any) -> Grid:
    """Compare in English with one seed by default."""
    fields: dict[str, Any] = {
        "recipes": (str(recipe),),
        "langs": ("en",),
        "budgets": (),
        "strategies": strategies or ("projection",),
        "seeds": 1,
        "overrides": {},
        "out": Path("eval"),
        "work": Path("runs/compare"),
    }
    return Grid(**{**fields, **changes})


def compared(wide: Grid, workers: Here | None = None, *, tune: bool = False) -> Here:
    workers = workers or Told()
    compare.run_grid(wide, workers, tune=tune)  # type: ignore[arg-type]
    return workers


def results() -> dict[str, Run]:
    return {path.stem: Run.load_json(path) for path in sorted(Path("eval", report.RUNS).glob("*.json"))}


def page() -> str:
    return Path("eval", "en.md").read_text(encoding="utf-8")


# Once in separate processes, of which one is killed and one cannot be started


@pytest.fixture(scope="module")
def whole(tmp_path_factory, repo) -> Iterator[tuple[int, str]]:
    """Three strategies on a convolutional tower, with one worker killed: exit code and output."""
    folder = tmp_path_factory.mktemp("grid")
    path = tiny.write(folder / "tiny.toml", vision={"model": str(tiny.conv())})
    python = folder / "python"
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *-lit-*-s0-*) if mkdir {folder}/once 2>/dev/null; then shift 2; '
        f'exec {sys.executable} {repo}/tests/stopped.py SIGKILL 6 "$@"; fi;; esac\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    arguments = ["compare", "--recipe", str(path), "--lang", "en", "--strategies", "projection,lit,lilt"]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as said:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["polyalign", *arguments, "--workers", "2"])
        patch.setattr(sys, "executable", str(python))
        patch.setenv("PYTHONPATH", str(repo))
        patch.setattr(signal, "signal", lambda *_: None)
        with pytest.raises(SystemExit) as caught:
            cli.main()
        yield caught.value.code, said.getvalue()


@pytest.mark.slow
def test_one_strategy_that_cannot_be_made_leaves_the_others(whole):
    code, said = whole
    assert code == 2
    last = said.splitlines()[-1]
    assert last.startswith("error: the tables are written, but 1 run failed: tiny-quarters-en-lilt-all-s0: ")
    assert "use --towers text" in last
    assert "Traceback" not in said
    assert set(results()) == {f"tiny-quarters-en-{name}-all-s0" for name in ("projection", "lit")}
    assert "| **lit**" in page() or "| **projection**" in page()
    assert "- Failed: lilt: " in page()
    assert "(seed 0)." in page()


@pytest.mark.slow
def test_a_killed_worker_goes_on_from_its_state_and_the_table_says_so(whole):
    assert {name: run.retries for name, run in results().items() if run.retries} == {"tiny-quarters-en-lit-all-s0": 1}
    assert "- Restarts after a worker died: lit, text tower 1." in page()
    (folder,) = Path("runs/compare").glob("tiny-quarters-en-lit-all-s0-*")
    assert "continuing after step 4 of 12" in (folder / pool.LOG).read_text()


@pytest.mark.slow
def test_progress_shows_runs_done_and_time_left(whole):
    lines = [line for line in whole[1].splitlines() if line.startswith("runs: ")]
    assert lines[0] == "runs: 0 of 3"
    assert lines[-1].startswith("runs: 3 of 3 tiny-quarters-en-")
    assert all(re.search(r", about \d+:\d\d:\d\d left tiny-quarters-en-", line) for line in lines[1:-1])


@pytest.mark.slow
def test_what_was_made_by_processes_is_not_made_again(whole):
    path = next(Path().glob("*.toml")).resolve()
    assert compared(grid(path, "projection", "lit")).made == []


@pytest.mark.slow
def test_ctrl_c_then_the_same_command_goes_on(tmp_path, monkeypatch, repo, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(repo))
    path = tiny.write(tmp_path / "tiny.toml", optim={"epochs": 60}, train={"evals": 60, "patience": 1000})
    command = ("compare", "--recipe", path, "--lang", "en", "--strategies", "lilt", "--set", "test.knowledge=false")
    process = forked.start(*command, said=tmp_path / "said.txt")
    limit = time.monotonic() + 300
    while not list(Path("runs/compare").glob(f"*/{train.STATE}")):
        assert process.is_alive()
        assert time.monotonic() < limit
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    process.join(120)
    said = Path("said.txt").read_text(encoding="utf-8")
    assert process.exitcode == 130
    assert said.splitlines()[-1] == "interrupted; continue with the same command"
    assert "Traceback" not in said
    assert not Path("eval").exists()
    (folder,) = Path("runs/compare").iterdir()
    assert (
        f"interrupted; continue with the same command and --resume (the state is in {folder.resolve()})"
        in (folder / pool.LOG).read_text()
    )
    monkeypatch.setattr(runs, "train_into", lambda *a, train=runs.train_into, **k: train(*a, **k))
    compared(grid(path, "lilt", overrides={"test": {"knowledge": False}}), Here())
    assert any(line.startswith("continuing after step ") for line in caplog.messages)
    (run,) = results().values()
    assert (run.steps, run.retries) == (240, 0)


# Runs that are trained, and trained again


def names(workers: Here) -> list[str]:
    return [job.result.stem for job in workers.made]


def test_the_first_seed_of_all_comes_before_the_second_of_any(recipe):
    workers = compared(grid(recipe, "projection", "bitfit", seeds=2))
    strategies = ("projection", "bitfit")
    assert names(workers) == [f"tiny-quarters-en-{name}-all-s{seed}" for seed in (0, 1) for name in strategies]


def test_what_is_done_is_skipped_and_made_again_when_the_recipe_or_the_version_changes(recipe, monkeypatch):
    assert len(compared(grid(recipe, "projection", "bitfit")).made) == 2
    assert compared(grid(recipe, "projection", "bitfit")).made == []
    assert names(compared(grid(recipe, "projection", "lora"))) == ["tiny-quarters-en-lora-all-s0"]
    shorter = grid(recipe, "projection", "bitfit", overrides={"optim": {"epochs": 2}})
    assert len(compared(shorter).made) == 2
    epochs = {run.recipe["optim"]["epochs"] for run in results().values() if run.strategy == "bitfit"}
    assert epochs == {2, 3}, "the results of other settings are not overwritten"
    monkeypatch.setattr(polyalign, "__version__", "9.9.9")
    assert len(compared(shorter).made) == 2
    found = {run.recipe["optim"]["epochs"]: run.versions["polyalign"] for run in results().values()}
    assert found[2] == "9.9.9"


def test_a_result_from_before_an_option_was_added_is_still_of_the_same_recipe(recipe):
    compared(grid(recipe))
    (path,) = Path("eval/runs").iterdir()
    run = Run.load_json(path)
    older = {key: value for key, value in run.recipe.items() if key != "cache"}
    run.model_copy(update={"recipe": older}).save_json(path)
    assert compared(grid(recipe)).made == []
    run.model_copy(update={"recipe": {**older, "cache": {"max_gib": 1.5}}}).save_json(path)
    assert compared(grid(recipe)).tasks == []  # its folder still has the right result
    assert results()[path.stem].recipe["cache"]["max_gib"] != 1.5


def test_results_that_are_gone_are_collected_again_without_training(recipe):
    compared(grid(recipe))
    (path,) = Path("eval/runs").iterdir()
    before = path.read_bytes()
    path.unlink()
    assert compared(grid(recipe)).made == []
    assert path.read_bytes() == before


def test_where_nothing_can_be_made_there_are_no_tables(recipe):
    with pytest.raises(UserError, match="all 2 runs failed: lilt cannot"):
        compared(grid(recipe, "lilt", seeds=2), Told(cannot=["lilt"]))
    assert not Path("eval/README.md").exists()


def test_a_reason_is_forgotten_when_the_run_is_made_after_all(recipe):
    with pytest.raises(UserError, match=r"1 run failed: tiny-quarters-en-lilt-all-s0: lilt cannot$"):
        compared(grid(recipe, "projection", "lilt"), Told(cannot=["lilt"]))
    assert "- Failed: lilt: lilt cannot (seed 0)." in page()
    report.write(Path("eval"))
    assert "- Failed: lilt: lilt cannot (seed 0)." in page()
    compared(grid(recipe, "projection", "lilt"))
    assert "Failed" not in page()


# The runs of a grid


def test_pairs_are_the_same_for_every_strategy_and_seed_and_nested_over_budgets(recipe):
    wide = grid(recipe, "projection", "lilt", "full", budgets=("20-pairs", "60-pairs"))
    drawn: dict[str | None, set[tuple[tuple[str, str], ...]]] = {}
    for cell in wide.cells():
        for seed in (0, 1):
            table = load_tables(wide.job(cell, seed).recipe).train
            images = [table.image_ids[image] for image in table.image_of]
            drawn.setdefault(cell.budget, set()).add(tuple(zip(images, table.captions, strict=True)))
    assert [len(found) for found in drawn.values()] == [1, 1]
    small, large = (set(drawn[budget].pop()) for budget in ("20-pairs", "60-pairs"))
    assert (len(small), len(large)) == (20, 60)
    assert small < large


def test_without_names_the_recipes_languages_and_the_strategies_that_answer_are_taken():
    wide = grid("starter", langs=(), strategies=())
    assert {cell.lang for cell in wide.cells()} == {"sw"}
    assert tuple(cell.strategy for cell in wide.cells()) == compare.STRATEGIES
    recipe = wide.job(wide.cells()[0], seed=0).recipe
    assert recipe.data.budget == "10k-pairs"
    assert recipe.test.knowledge
    assert set(recipe.test.languages) >= {"en", "de"}


def test_the_help_names_the_strategies_compared_by_default():
    help_text = " ".join(
        str(getattr(one, "help", ""))
        for one in get_type_hints(compare_command, include_extras=True)["strategies"].__metadata__
    )
    assert f"Default: {', '.join(compare.STRATEGIES)}." in help_text


def only(wide: Grid) -> Job:
    (cell,) = wide.cells()
    return wide.job(cell, seed=0)


def test_the_language_trained_on_is_none_that_it_carries_over_to():
    languages = only(grid("starter", langs=("de",))).recipe.test.languages
    assert "en" in languages
    assert "de" not in languages


def test_other_data_is_asked_for_no_language_it_may_not_speak_and_has_results_of_its_own():
    own = only(grid("starter"))
    other = only(grid("starter", overrides={"source": {"name": "folder", "root": str(tiny.data())}}))
    assert own.result.stem == "starter-en-projection-10k-pairs-s0"
    assert re.fullmatch("starter-quarters-en-projection-10k-pairs-s0-[0-9a-f]{6}", other.result.stem)
    assert other.recipe.test.languages == ()
    assert other.recipe.test.knowledge


def test_two_data_folders_of_one_name_have_results_of_their_own(tmp_path):
    folders = [tmp_path / one / "photos" for one in ("mine", "yours")]
    for folder in folders:
        folder.mkdir(parents=True)
    jobs = [only(grid("starter", overrides={"source": {"name": "folder", "root": str(one)}})) for one in folders]
    assert len({job.result for job in jobs}) == 2


def test_results_of_other_settings_are_kept_beside_each_other(recipe):
    compared(grid(recipe))
    for lr in (0.25, 0.5):
        compared(grid(recipe, overrides={"optim": {"lr": lr}}))
    assert len(results()) == 3
    assert {run.recipe["optim"]["lr"] for run in results().values()} >= {0.25, 0.5}
    assert "projection (optim.lr=0.25)" in page()


def test_what_the_user_sets_wins():
    wide = grid("starter", overrides={"test": {"languages": ["am"], "knowledge": False}})
    found = only(wide).recipe.test
    assert (found.languages, found.knowledge) == (("am",), False)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"strategies": ("projection", "lillt")}, 'unknown strategy "lillt": did you mean "lilt"?'),
        ({"langs": ("en", "swx")}, 'unknown language "swx": did you mean "sw"?'),
        ({"budgets": ("20-pairs", "1k-pears")}, '"1k-pears" is not a budget'),
        ({"budgets": ("20-pairs+60-pairs",)}, "two budgets of the same kind"),
        ({"overrides": {"optim": {"lrr": 1}}}, 'did you mean "lr"'),
        ({"recipes": ("starter", "strater")}, 'unknown recipe "strater": did you mean "starter"?'),
        ({"recipes": ("starter", "other/starter.toml")}, 'two recipes are called "starter"'),
    ],
)
def test_a_wrong_name_is_told_before_anything_is_trained(changes, said, recipe):
    workers = Told()
    with pytest.raises(UserError) as caught:
        compared(grid(recipe, **changes), workers)
    assert said in str(caught.value)
    assert workers.made == []


# Tuning


RATES = (0.00033, 0.00058, 0.001, 0.0017, 0.003, 0.0052, 0.009, 0.016, 0.027)
LONG: dict[str, Any] = {"optim": {"epochs": 9}, "train": {"evals": 9}}


def trials(workers: Here) -> list[Job]:
    return [job for job in workers.made if "tuning" in job.result.parts]


def test_rates_are_halved_on_dev_and_never_on_test(recipe):
    def dev(found):  # a short training prefers high rates, a longer one lower rates
        return found.optim.lr if found.optim.epochs == 1 else 0.5 - found.optim.lr

    workers = Told(dev, noise=lambda found: 0.003 / found.optim.lr)
    compared(grid(recipe, seeds=2, overrides=LONG), workers, tune=True)
    assert workers.tasks == ["tuning on dev, rung 1 of 2", "tuning on dev, rung 2 of 2", "runs"]
    tried = [(job.recipe.optim.epochs, job.recipe.optim.lr) for job in trials(workers)]
    assert tried == [(1, rate) for rate in RATES] + [(3, rate) for rate in (0.009, 0.016, 0.027)]
    found = results()
    assert [name[-9:-7] for name in found] == ["s0", "s1"]
    assert len({name[-6:] for name in found}) == 1, "seeds have one digest"
    for run in found.values():
        assert run.recipe["optim"]["lr"] == 0.009
        assert run.recipe["optim"]["epochs"] == 9
        assert run.tuned["optim.lr"] == RATES
        assert run.tuned["part"] == (0.111, 0.333)
        by_rung = [[rate] for rate in RATES[:6]] + [[rate, 0.5 - rate] for rate in RATES[6:]]
        assert [list(map(float, recalls)) for recalls in run.tuned["dev_mean_recall"]] == by_rung
    line = next(line for line in page().splitlines() if line.startswith("- Tuned on dev"))
    assert line == (
        f"- Tuned on dev, projection: `optim.lr` from {', '.join(map(str, RATES))}; chosen: 0.009. Successive halving: "
        "9 for 11.1 % of the training (dev mean recall 0.0 to 2.7), 3 for 33.3 % of the training (dev mean recall 47.3 "
        "to 49.1); the pairs of 2.0 trainings in all."
    )


def test_where_both_towers_train_each_has_a_rate(recipe):
    workers = Told(lambda found: (found.optim.text_lr or found.optim.lr) - (found.optim.vision_lr or found.optim.lr))
    compared(grid(recipe, "full", overrides=LONG), workers, tune=True)
    (run,) = results().values()
    assert {key: value for key, value in run.recipe["optim"].items() if key.endswith("lr")} == {
        "lr": 0.003, "vision_lr": 0.001, "text_lr": 0.009
    }  # fmt: skip
    rates = (0.001, 0.003, 0.009)
    pairs = list(zip(run.tuned["optim.vision_lr"], run.tuned["optim.text_lr"], strict=True))
    assert pairs == list(itertools.product(rates, rates))
    assert "full: `optim.text_lr` from 0.001, 0.003, 0.009; chosen: 0.009. `optim.vision_lr` from" in page()


def test_every_strategy_is_tuned_with_as_many_candidates_and_pairs(recipe):
    names = ("projection", "lit", "lilt", "full")
    made = trials(compared(grid(recipe, *names, overrides=LONG), tune=True))
    assert {job.recipe.train.seed for job in made} == {0}
    lengths: dict[str, list[tuple[int, ...]]] = {name: [] for name in names}
    for job in made:
        optim, train = job.recipe.optim, job.recipe.train
        assert train.patience == train.evals, "no candidate is stopped early"
        lengths[job.recipe.strategy["name"]].append((optim.epochs, optim.min_steps, optim.batch_size))
    assert lengths == dict.fromkeys(names, [(1, 0, 32)] * 9 + [(3, 0, 32)] * 3)


def test_interrupted_tuning_continues_where_it_stopped(recipe):
    class Interrupted(Told):
        def make(self, job: Job) -> None:
            if len(self.made) > 11:
                raise KeyboardInterrupt
            super().make(job)

    wide = grid(recipe, overrides=LONG)
    first = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        compared(wide, first, tune=True)
    done = [job.folder for job in first.made[:-1]]
    left = [job.folder for job in compared(wide, tune=True).made]
    assert (len(done), len(left)) == (11, 2)
    assert not {*done} & {*left}
    assert compared(wide, tune=True).made == []


def test_failed_candidates_are_recorded_and_not_chosen(recipe):
    class Diverging(Told):
        def make(self, job: Job) -> None:
            if job.recipe.optim.lr > 0.005:
                raise UserError("the loss is nan")
            super().make(job)

    compared(grid(recipe, overrides=LONG), Diverging(lambda found: found.optim.lr), tune=True)
    (run,) = results().values()
    assert run.recipe["optim"]["lr"] == 0.003
    assert run.tuned["dev_mean_recall"][5:] == ([None],) * 4
    assert "(dev mean recall 0.0 to 0.3, 4 failed)" in page()
    with pytest.raises(UserError, match="all 1 runs failed: lit cannot"):
        compared(grid(recipe, "lit", overrides=LONG), Told(cannot=["lit"]), tune=True)


def test_a_strategy_that_the_towers_do_not_support_is_left_out_without_tuning(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    path = tiny.write(tmp_path / "tiny.toml", vision={"model": str(tiny.conv())})
    with pytest.raises(UserError, match="1 run failed: tiny-quarters-en-lilt-deep"):
        compared(grid(path, "projection", "lilt-deep"), Told(cannot=["lilt-deep"]), tune=True)
    assert any("lilt-deep-all-s0 is not tuned: " in line for line in caplog.messages)


def test_tuned_runs_are_not_tuned_again_and_are_told_to_be_tuned_where_the_preset_won(recipe):
    compared(grid(recipe))
    assert "Nothing was tuned" in page()
    compared(grid(recipe), tune=True)  # of equal rates, the preset is chosen
    assert "chosen: 0.003." in page()
    assert list(results()) == ["tiny-quarters-en-projection-all-s0"]
    assert compared(grid(recipe), tune=True).made == []
    compared(grid(recipe))
    assert "chosen: 0.003." in page()


# Time and memory


def test_recipes_compete_where_time_is_what_all_are_given(recipe):
    other = tiny.write(recipe.parent / "wider.toml", projection={"dim": 24})
    wide = grid(recipe, "projection", "lilt", recipes=(str(recipe), str(other)), budgets=("20min", "20-pairs"))
    compared(wide, Told(noise=lambda found: 1.0 if found.name == "wider" else 3.0))
    assert {run.budget for run in results().values()} == {"20min", "20-pairs"}
    found = {(comparison.budget, comparison.recipes): comparison for comparison in report.load(Path("eval"))}
    assert set(found) == {("20min", ("tiny", "wider")), ("20-pairs", ("tiny",)), ("20-pairs", ("wider",))}
    names = {method.name for method in found["20min", ("tiny", "wider")].methods}
    assert names == {f"{name}, recipe {one}" for name in ("projection", "lilt") for one in ("tiny", "wider")}
    assert found["20min", ("tiny", "wider")].methods[0].name.endswith("recipe wider")
    assert "the same time or memory, recipes tiny, wider" in page()
    assert not [path for path in Path("eval/figures").iterdir() if "compute-pairs" in path.name]
    assert f"Towers: {for_markdown(f'{tiny.vision()} and {tiny.text()}')}." in page()


class Measured(Told):
    """Simulates memory per pair of a micro-batch, on top of that of the libraries."""

    def __init__(self, each: dict[str, int], base: int = 100, **more: Any) -> None:
        super().__init__(**more)
        self.each, self.base = each, base

    def make(self, job: Any) -> None:
        if not isinstance(job, fitting.Probe):
            super().make(job)
            return
        name = job.recipe.strategy["name"]
        if name in self.cannot:
            raise UserError(f"{name} cannot")
        held = self.base + self.each[name] * job.recipe.optim.micro_batch
        storage.write_text(Path(job.command[-1]), json.dumps({"bytes": held}))


def test_memory_is_kept_to_by_the_largest_power_of_two_and_the_batch_stays(recipe, caplog):
    workers = Measured({"projection": 10, "lilt": 50, "full": 1000})
    compared(grid(recipe, "projection", "lilt", "full", budgets=("1KiB",)), workers)
    found = {run.strategy: run.recipe for run in results().values()}
    assert {name: one["optim"]["micro_batch"] for name, one in found.items()} == {"projection": 32, "lilt": 16}
    assert {one["optim"]["batch_size"] for one in found.values()} == {32}
    assert {one["train"]["max_memory_bytes"] for one in found.values()} == {1024}
    why = "needs 1.1 KiB at a micro-batch of 1, more than the 1.0 KiB allowed"
    assert caplog.messages == [f"skipped: tiny-quarters-en-full-1KiB-s0 {why}"]
    assert f"- Failed: full, recipe tiny: {why} (seed 0)." in page()
    assert "Micro-batch: lilt 16; projection 32; the loss is that of the whole batch." in page()


def test_memory_is_measured_once_for_all_budgets_and_seeds(recipe):
    sizes = ("1KiB", "2KiB", "500KiB")
    workers = compared(grid(recipe, "lilt", budgets=sizes, seeds=2), Measured({"lilt": 50}))
    measured = [job.recipe.optim.micro_batch for job in workers.made if isinstance(job, fitting.Probe)]
    assert len(measured) == len(set(measured))
    again = compared(grid(recipe, "lilt", budgets=("800KiB",)), Measured({"lilt": 50}))
    assert [type(job) for job in again.made] == [Job]


def test_memory_that_nothing_keeps_to_is_an_error(recipe):
    with pytest.raises(UserError, match="none of the 2 settings fits the memory budget: increase it"):
        compared(grid(recipe, "lilt", "full", budgets=("1KiB",)), Measured({"lilt": 5000, "full": 5000}))


def test_bad_input_is_told_as_such_under_a_budget_of_memory_too(recipe):
    workers = Measured({"projection": 10}, cannot=["lilt"])
    with pytest.raises(UserError, match=r"1 run failed: tiny-quarters-en-lilt-1KiB-s0: lilt cannot$"):
        compared(grid(recipe, "projection", "lilt", budgets=("1KiB",)), workers)
    assert [type(job).__name__ for job in workers.made] == ["Probe", "Probe", "Job", "Job"]


@pytest.mark.parametrize("batch", [2, 3, 32, 100, 256])
@pytest.mark.parametrize("allowed", [0, 1, 2, 3, 31, 32, 33, 99, 100, 255, 256, 10_000])
def test_the_search_finds_what_trying_all_would(batch, allowed, tmp_path):
    recipe = tiny.resolved(optim={"batch_size": batch}, train={"max_memory_bytes": allowed + 1})
    search, tried = Fit(recipe), []
    while (probe := search.probe(tmp_path)) is not None:
        tried.append(probe.recipe.optim.micro_batch)
        search.learn(tried[-1] + 1, None)
    all_sizes = sorted({2**power for power in range(9) if 2**power < batch} | {batch})
    assert search.micro_batch == max([size for size in all_sizes if size <= allowed], default=None)
    assert tried[0] == batch
    assert len(tried) <= 5


def test_a_size_that_cannot_be_measured_is_taken_for_too_large(tmp_path):
    search = Fit(tiny.resolved(train={"max_memory_bytes": 100}))
    while (probe := search.probe(tmp_path)) is not None:
        killed = probe.recipe.optim.micro_batch > 4
        search.learn(None if killed else 50, Outcome("its process was killed by SIGKILL: ...") if killed else None)
    assert search.micro_batch == 4


@pytest.mark.slow
def test_measured_memory_is_what_training_holds_and_less_in_smaller_parts(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYALIGN_CACHE", str(tmp_path / "cache"))
    model = {"model": str(tiny.vision(embed_dim=128, num_heads=4))}

    def polyalign_(command: str, micro_batch: int, *options: str) -> str:
        optim = {"batch_size": 128, "micro_batch": micro_batch}
        found = tiny.resolved("full", vision=model, optim=optim, train={"max_memory_bytes": 2**40})
        path = tmp_path / f"{micro_batch}.toml"
        path.write_text(found.to_toml(), encoding="utf-8")
        arguments = [sys.executable, "-m", "polyalign", command, str(path), *options, "--json"]
        return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout

    whole, parts = (json.loads(polyalign_("memory", micro))["bytes"] for micro in (128, 4))
    assert parts < whole
    trained = Run.model_validate_json(polyalign_("repeat", 128, "--out", str(tmp_path / "run")))
    assert trained.peak_memory_bytes == pytest.approx(whole, rel=0.05)


@pytest.mark.parametrize(
    ("overrides", "option"),
    [
        ({"train": {"seed": 3}}, "--seeds"),
        ({"data": {"budget": "20-pairs"}}, "--budget"),
        ({"strategy": {"name": "lit"}}, "--strategies"),
        ({"lang": "sw"}, "--lang"),
    ],
)
def test_a_setting_that_the_grid_makes_is_refused_and_its_option_named(recipe, overrides, option):
    workers = Told()
    with pytest.raises(UserError, match=f"^a comparison sets .* itself: use {option} instead of --set "):
        compared(grid(recipe, overrides=overrides), workers)
    assert workers.made == []
