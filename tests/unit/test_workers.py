"""The pool, with a stand-in for polyalign that ends as it is told: a package of that name in the working folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from polyalign.config.schema import Recipe
from polyalign.experiments import workers as pool
from polyalign.experiments.workers import Outcome, Pool
from polyalign.utils.errors import UserError
from tests import tiny

STAND_IN = """
import os, signal, sys, time
from pathlib import Path
from polyalign.utils.parent import end_with_parent
end_with_parent()
words = sys.argv[1:]
with open("starts.txt", "a") as file: file.write(" ".join(words) + "\\n")
begun = sum(line.split()[0] == words[0] for line in Path("starts.txt").read_text().splitlines())
print("threads", os.environ["OMP_NUM_THREADS"], file=sys.stderr, flush=True)
if words[1] == "killed" and begun <= int(words[2]):
    os.kill(os.getpid(), signal.SIGKILL)
if words[1] == "crash":
    print("Traceback of a mistake", file=sys.stderr)
    sys.exit(1)
if words[1] == "bad":
    print("error: lilt needs blocks: use --towers text", file=sys.stderr)
    sys.exit(2)
if words[1] == "sleep":
    Path(words[0]).write_text(str(os.getpid()))
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        Path(words[0] + "-saved").touch()
if words[1] == "stubborn":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Path(words[0]).write_text(str(os.getpid()))
    time.sleep(60)
"""


@dataclass(frozen=True, eq=False)
class Job:
    name: str
    how: str = "well"
    times: int = 0

    @property
    def recipe(self) -> Recipe:
        return tiny.resolved()

    @property
    def folder(self) -> Path:
        return Path.cwd() / "work" / self.name

    @property
    def command(self) -> tuple[str, ...]:
        return (self.name, self.how, str(self.times))


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    (tmp_path / "polyalign").mkdir()
    package = str(Path(pool.__file__).parents[1])
    (tmp_path / "polyalign" / "__init__.py").write_text(f"__path__.append({package!r})")
    (tmp_path / "polyalign" / "__main__.py").write_text(STAND_IN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*jobs: Job, workers: int = 1, already: int = 0):
    done: list[str] = []

    def tell(job: Job) -> str:
        done.append(job.name)
        return f"{job.name} is done"

    failed = Pool(workers, "local").run(jobs, "runs", already=already, done=tell)
    return done, {job.name: outcome for job, outcome in failed.items()}


def starts(here: Path) -> list[str]:
    return [line.split()[0] for line in (here / "starts.txt").read_text().splitlines()]


def test_every_job_runs_once_in_the_users_folder_with_its_recipe_beside_it(here):
    jobs = [Job("a"), Job("b"), Job("c")]
    done, failed = run(*jobs, workers=2)
    assert (sorted(done), failed) == (["a", "b", "c"], {})
    assert sorted(starts(here)) == ["a", "b", "c"]
    for job in jobs:
        assert (job.folder / pool.RECIPE).read_text() == tiny.resolved().to_toml()
        assert pool.restarts(job.folder) == 0


def test_threads_are_shared_among_workers(here, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS")
    run(Job("a"), workers=3)
    assert "threads 2" in (here / "work" / "a" / pool.LOG).read_text()


def test_a_number_of_threads_that_the_user_sets_is_kept(here, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    run(Job("a"), workers=1)
    assert "threads 3" in (here / "work" / "a" / pool.LOG).read_text()


def test_a_killed_process_is_begun_again_and_counted(here):
    done, failed = run(Job("a", "killed", 1), Job("b", "killed", 2))
    assert (sorted(done), failed) == (["a", "b"], {})
    assert starts(here) == ["a", "a", "b", "b", "b"]
    assert [pool.restarts(here / "work" / name) for name in "ab"] == [1, 2]


def test_one_that_is_killed_each_time_is_given_up_and_the_others_go_on(here, caplog):
    done, failed = run(Job("a", "killed", 9), Job("b"))
    assert done == ["b"]
    assert failed["a"].problem.startswith("its process was killed by SIGKILL: threads ")
    assert starts(here) == ["a"] * 3 + ["b"]
    assert caplog.messages[0].endswith(f"(log: {here / 'work' / 'a' / pool.LOG})")
    assert caplog.messages[1:] == ["b is done"]


def test_a_crash_is_told_with_its_last_line(here):
    _, failed = run(Job("a", "crash"))
    assert failed["a"] == Outcome("its process ended with code 1: Traceback of a mistake")
    assert starts(here) == ["a"] * 3


def test_bad_input_is_not_tried_again(here):
    done, failed = run(Job("a", "bad"), Job("b"))
    assert done == ["b"]
    assert failed["a"] == Outcome("lilt needs blocks: use --towers text", bad_input=True)
    assert starts(here) == ["a", "b"]
    assert pool.restarts(here / "work" / "a") == 0


def test_progress_counts_what_was_done_before(here, news):
    run(Job("a"), Job("b", "bad"), already=3)
    assert news == [("runs", 3, 5), ("runs", 4, 5, "a"), ("runs", 5, 5, "b")]


def test_nothing_to_do_starts_nothing(here):
    assert run(already=2) == ([], {})
    assert not (here / "starts.txt").exists()


def pressed(here: Path, *jobs: str, workers: int, group: bool, number: int = signal.SIGINT) -> tuple[str, float]:
    """Run jobs from a process apart, interrupt it when the first is at work, and give what it said and how long."""
    script = f"""
        import sys
        from pathlib import Path
        from types import SimpleNamespace
        from polyalign.experiments import workers as pool
        pool.parent.GRACE_SECONDS = 1

        def job(name, how):
            recipe = SimpleNamespace(to_toml=str)
            return SimpleNamespace(recipe=recipe, folder=Path.cwd() / "work" / name, command=(name, how, "0"))

        workshop = pool.Pool({workers}, "local")
        try:
            jobs = [job(name, how) for name, how in {[tuple(job.split()) for job in jobs]!r}]
            workshop.run(tuple(jobs), "runs", already=0, done=str)
        except KeyboardInterrupt:
            print("interrupted")
    """
    repo = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", textwrap.dedent(script)], cwd=here, stdout=subprocess.PIPE, text=True,
        start_new_session=True, env={**os.environ, "PYTHONPATH": repo},
    )  # fmt: skip
    first = here / jobs[0].split()[0]
    limit = time.monotonic() + 120
    while not (first.exists() and first.read_text()):
        assert process.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.05)
    began = time.monotonic()
    (os.killpg if group else os.kill)(process.pid, number)
    said = process.communicate(timeout=60)[0]
    return said, time.monotonic() - began


@pytest.mark.parametrize("how", ["sleep", "stubborn"])
def test_the_processes_of_a_pool_that_is_killed_end_and_no_restart_is_counted(how, here):
    quickly = "import polyalign.utils.parent as p\np.GRACE_SECONDS = 1\nend_with_parent()\n"
    (here / "polyalign" / "__main__.py").write_text(STAND_IN.replace("end_with_parent()\n", quickly))
    pressed(here, f"a {how}", workers=1, group=False, number=signal.SIGKILL)
    pid = int((here / "a").read_text())
    limit = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < limit
        time.sleep(0.05)
    assert (here / "a-saved").exists() == (how == "sleep")
    assert pool.restarts(here / "work" / "a") == 0


def test_a_job_that_the_same_pool_starts_again_counts_as_a_restart(here):
    job = Job("a")
    for number, owner in enumerate(("one", "one", "two", "")):
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / pool.RESTARTS).write_text("3 one")
        pool.run_job(job.command, "", job.folder, {"OMP_NUM_THREADS": "1"}, here, None, owner)
        assert pool.restarts(job.folder) == (4 if number < 2 else 3)


def test_a_number_of_restarts_that_is_none_is_a_user_error(tmp_path):
    (tmp_path / pool.RESTARTS).write_text("many")
    with pytest.raises(UserError, match="is not a number of restarts: delete it"):
        pool.restarts(tmp_path)


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_lets_the_running_save_and_begins_no_more(here):
    said, seconds = pressed(here, "a sleep", "b well", workers=1, group=True)
    assert said == "interrupted\n"
    assert seconds < 30
    assert starts(here) == ["a"]
    assert (here / "a-saved").exists()
    assert pool.restarts(here / "work" / "a") == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_pool_alone_ends_its_processes_too(number, here):
    said, seconds = pressed(here, "a stubborn", workers=1, group=False, number=number)
    assert said == "interrupted\n"
    assert seconds < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int((here / "a").read_text()), 0)


def test_told_to_stop_a_job_is_not_begun_again(here):
    stop = threading.Event()
    stop.set()
    job = Job("a", "killed", 9)
    outcome = pool.run_job(job.command, "", job.folder, {"OMP_NUM_THREADS": "1"}, here, stop)
    assert outcome == Outcome("interrupted")
    assert starts(here) == ["a"]


def test_ray_that_is_not_installed_is_a_clear_error(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r'pip install "polyalign\[ray\]"'):
        Pool(1, "ray").run([Job("a")], "runs", already=0, done=tiny.quiet)


def test_a_job_that_another_comparison_runs_is_awaited(here, caplog):
    job, ended = Job("one"), threading.Event()
    job.folder.mkdir(parents=True)
    lock = FileLock(job.folder / pool.RUNNING)
    with lock:
        other = threading.Thread(target=lambda: (Pool(1, "local").run([job], "runs", already=0, done=str), ended.set()))
        other.start()
        while not caplog.messages:
            time.sleep(0.02)
        assert caplog.messages == ["one: another comparison runs it; waiting"]
        assert not ended.is_set()
        assert {path.name for path in job.folder.iterdir()} == {pool.RUNNING, pool.RECIPE}
    other.join(60)
    assert ended.is_set()
    assert Path("starts.txt").read_text().splitlines() == ["one well 0"]


def test_waiting_for_another_comparison_ends_when_stopped(tmp_path):
    stop = threading.Event()
    with FileLock(tmp_path / pool.RUNNING):
        threading.Timer(0.1, stop.set).start()
        assert pool.run_job((), "", tmp_path, {}, tmp_path, stop) == Outcome("interrupted")
