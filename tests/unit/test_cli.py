from __future__ import annotations

import json
import re
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from polyalign import cli
from polyalign.config import run_files
from polyalign.config.run_files import WEIGHTS
from polyalign.evaluation.results import Retrieval, Run
from polyalign.experiments import run_folders as runs
from polyalign.models import checkpoint
from polyalign.training import train
from tests import tiny


def commands(group: Any = None, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Find every command, including those in groups."""
    found = []
    for name, command in (group or typer.main.get_command(cli.app)).commands.items():
        if hasattr(command, "commands"):
            found += commands(command, (*path, name))
        else:
            found.append(((*path, name), command))
    return found


COMMANDS = commands()
every_command = pytest.mark.parametrize(("path", "command"), COMMANDS, ids=["-".join(path) for path, _ in COMMANDS])


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("recipe") / "tiny.toml")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    runs.train_into(folder, tiny.resolved(), resume=False, overwrite=False)
    return folder


# Help


def test_the_commands_are_found():
    names = {" ".join(path) for path, _ in COMMANDS}
    assert {"train", "repeat", "eval", "compare", "report", "strategies", "data check", "pretrain"} <= names


@every_command
def test_every_command_has_help_with_an_example(path, command, run):
    code, out, err = run(*path, "--help")
    assert (code, err) == (0, "")
    assert f"Usage: polyalign {' '.join(path)}" in " ".join(out.split())
    assert f"Example: polyalign {' '.join(path)}" in " ".join(out.split())
    assert command.help


@every_command
def test_the_example_of_every_command_is_one_it_takes(path, command, monkeypatch):
    monkeypatch.setattr(run_files, "check_finished", lambda folder: None)  # examples name runs that are not there
    words = shlex.split(command.epilog.removeprefix("Example: "))
    assert tuple(words[1 : 1 + len(path)]) == path
    command.make_context(" ".join(path), words[1 + len(path) :])


@every_command
def test_every_option_says_what_it_is_for(path, command):
    silent = [option.name for option in command.params if not getattr(option, "help", None) and option.name != "help"]
    assert not silent


@pytest.mark.parametrize(
    "words",
    [
        "eval nosuch", "search nosuch dog --images .", "show nosuch", "export nosuch --to onnx --out x",
        "train --lang xx", "train --lang sw --data nosuch", "compare --lang xx", "data check --lang sw --data nosuch",
    ],
)  # fmt: skip
def test_an_error_of_the_command_line_does_not_wait_for_heavy_libraries(words, repo):
    code = "import sys; from polyalign.cli import main\ntry: main()\nexcept SystemExit as end: code = end.code\n"
    code += "print(code, sorted({'torch', 'transformers', 'scipy', 'pandas', 'timm'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code, *words.split()], capture_output=True, text=True, check=False, cwd=repo
    )
    assert done.stdout.strip() == "2 []", done.stderr


def test_help_is_quick_and_imports_nothing_heavy(repo):
    script = (
        "import sys\nfrom polyalign import cli\nsys.argv = ['polyalign', '--help']\n"
        "try:\n    cli.main()\nfinally:\n"
        "    heavy = {'torch', 'transformers', 'timm', 'pandas', 'matplotlib', 'datasets', 'numpy', 'pydantic'}\n"
        "    print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=repo)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.stderr == "[]\n"
        assert "Usage: polyalign" in " ".join(done.stdout.split())
    # CPU time, which does not depend on other load; 0.2 s on an idle laptop.
    assert sorted(spent)[1] < 1.5


def test_offline_is_told_before_the_hub_libraries_are_imported(repo):
    examples = [
        shlex.split(command.epilog.removeprefix("Example: "))[1:] for _, command in COMMANDS if takes_offline(command)
    ]
    # The first polyalign module above the configuration may import the hub libraries: check the environment there.
    script = (
        "import json, os, sys\nfrom polyalign import cli\nfrom polyalign.config import run_files\n"
        "run_files.check_finished = lambda folder: None\n"
        "class Spy:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.startswith('polyalign.') and name.split('.')[1] not in ('config', 'utils'):\n"
        "            sys.exit(f\"{name} {os.environ.get('HF_HUB_OFFLINE')}\")\n"
        "sys.meta_path.insert(0, Spy())\n"
        "for example in json.loads(sys.argv[1]):\n"
        "    os.environ.pop('HF_HUB_OFFLINE', None)\n"
        "    sys.argv = ['polyalign', *example, '--offline']\n"
        "    try:\n        cli.main()\n"
        "    except SystemExit as stop:\n        print(stop.code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(examples)], capture_output=True, text=True, check=True, cwd=repo
    )
    seen = done.stdout.splitlines()
    assert len(seen) == len(examples) >= 6
    assert not [line for line in seen if not re.fullmatch(r"polyalign\.\w+ 1|2", line)]
    assert seen.count("2") <= 3, "examples whose data or index is not there end before"


def takes_offline(command: Any) -> bool:
    return any(option.name == "offline" for option in command.params)


# Valid input


def test_towers_are_recommended_and_those_that_are_not_available_are_named(run, recipe):
    code, out, err = run("data", "check", "--lang", "en", "--recipe", recipe, "--recommend", "--offline", "--json")
    assert code == 0
    found = json.loads(out)
    assert [split["captions"] for split in found["splits"]] == [128, 48, 48]
    assert [tower["recipe"] for tower in found["towers"]] == ["starter"]
    assert "recipe nllb-siglip is left out: cannot load the text tower" in " ".join(err.split())
    code, out, _ = run("data", "check", "--lang", "en", "--recipe", recipe, "--recommend", "--offline")
    assert code == 0
    assert "recommended: --recipe starter" in " ".join(out.split())


def test_training_shows_the_table_what_it_cost_and_what_to_try_next(run, recipe, tmp_path):
    code, out, _ = run("train", "--lang", "en", "--recipe", recipe, "--out", tmp_path / "run")
    assert code == 0
    shown = out.replace("\n", "")
    for words in (
        *("text to image", "image to text", "R@1", "R@5", "R@10", "mean recall", "chance", "untrained"),
        *("1,057 (1.41 %) of 74,817", "peak memory", "24 images", f"checkpoint: {tmp_path / 'run'}"),
    ):
        assert words in shown
    following = [line.strip() for line in out.partition("next:")[2].splitlines() if line.strip()]
    by_path = dict(COMMANDS)
    assert len(following) == 3
    for line in following:
        words = shlex.split(line)
        by_path[(words[1],)].make_context(words[1], words[2:])


def test_training_as_json_is_the_result(run, recipe, tmp_path):
    code, out, _ = run("train", "--lang", "en", "--recipe", recipe, "--out", tmp_path / "run", "--json")
    assert code == 0
    assert Run.model_validate_json(out) == Run.load_json(tmp_path / "run" / train.RESULT)


def test_options_reach_the_recipe(run, recipe, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(runs, "train_into", lambda folder, resolved, **_: asked.append((folder, resolved)))
    options = ["--strategy", "bitfit", "--towers", "text", "--layers", "last:1", "--budget", "50-pairs", "--seed", "3"]
    code, _, err = run(
        "train", "--lang", "de", "--recipe", recipe, *options, "--set", "optim.lr=0.5", "--set", "train.evals=2"
    )
    assert (code, err) == (0, "")
    [(folder, resolved)] = asked
    assert re.fullmatch("runs/tiny-quarters-de-bitfit-text-last1-50-pairs-s3-[0-9a-f]{6}", folder.as_posix())
    assert resolved == tiny.resolved(
        "bitfit", lang="de", strategy={"towers": "text", "layers": "last:1"}, data={"budget": "50-pairs"},
        train={"seed": 3, "evals": 2}, optim={"lr": 0.5},
    )  # fmt: skip


def test_a_run_is_repeated_from_its_recipe_alone(run, trained, tmp_path):
    code, out, _ = run("repeat", trained / checkpoint.RECIPE, "--out", tmp_path / "again", "--json")
    assert code == 0
    assert Run.model_validate_json(out).test == Run.load_json(trained / train.RESULT).test
    assert tiny.same(tiny.weights(tmp_path / "again"), tiny.weights(trained))


def test_evaluating_in_several_languages(run, trained):
    code, out, _ = run("eval", trained, "--lang", "en, de", "--json")
    assert code == 0
    results = [Retrieval.model_validate(result) for result in json.loads(out)]
    assert [result.lang for result in results] == ["en", "de"]
    assert results[0] == Run.load_json(trained / train.RESULT).test[0]
    code, out, _ = run("eval", trained)
    assert code == 0
    assert "en quarters-test" in out


def test_strategies_are_counted(run, recipe):
    code, out, err = run("strategies", "--recipe", recipe)
    assert (code, err) == (0, "")
    assert "lilt-deep" in out
    code, out, _ = run("strategies", "--recipe", recipe, "--json")
    assert {row["strategy"]: row["trainable"] for row in json.loads(out)}["projection"] == 1057


def test_the_cache_is_listed_and_cleared(run, trained, tmp_path, monkeypatch):
    monkeypatch.setenv("POLYALIGN_CACHE", str(tmp_path))
    assert run("eval", trained)[0] == 0
    code, out, _ = run("cache", "list", "--json")
    assert code == 0
    assert [entry["rows"] for entry in json.loads(out)] == [48, 24]
    assert "captions" in run("cache", "list")[1]
    assert run("cache", "clear")[0] == 0
    assert json.loads(run("cache", "list", "--json")[1]) == []


# Invalid input


def wrong(run, *arguments: object) -> str:
    """Run a command that must fail, and return its error message."""
    code, out, err = run(*arguments)
    lines = err.splitlines()
    assert code == 2, err
    assert "Traceback" not in err
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert out == ""
    return lines[-1].removeprefix("error: ")


TRAIN = ("train", "--lang", "en", "--recipe", "{recipe}", "--out", "{tmp}/run")
PRETRAIN = ("pretrain", "--text-tower", "starter", "--texts", "{file}")
BAD = {
    "strategy": ((*TRAIN, "--strategy", "lillt"), 'unknown strategy "lillt": did you mean "lilt"?'),
    "language": (("train", "--lang", "swx", "--strategy", "lilt"), 'unknown language "swx": did you mean "sw"?'),
    "recipe": (("train", "--lang", "sw", "--recipe", "startr"), 'unknown recipe "startr": did you mean "starter"?'),
    "recipe file": (("train", "--lang", "sw", "--recipe", "{tmp}/no.toml"), "cannot read {tmp}/no.toml"),
    "no strategy": (("train", "--lang", "sw", "--recipe", "{bare}"), "names no strategy: choose one with --strategy"),
    "key": ((*TRAIN, "--set", "optim.lrr=1"), 'optim.lrr: Extra inputs are not permitted; did you mean "lr"?'),
    "option of a strategy": ((*TRAIN, "--set", "strategy.rank=1"), "strategy.rank: Extra inputs are not permitted"),
    "value": ((*TRAIN, "--set", "optim.lr=fast"), "optim.lr: Input should be a valid number"),
    "set": ((*TRAIN, "--set", "optim.lr"), "--set takes key=value"),
    "section": ((*TRAIN, "--set", "strategy=lilt"), '"strategy" must be a section'),
    "towers": ((*TRAIN, "--towers", "txt"), "strategy.towers: Input should be"),
    "layers": ((*TRAIN, "--layers", "top:1"), "strategy.layers: String should match"),
    "too many layers": ((*TRAIN, "--strategy", "lilt", "--layers", "last:7"), "has 3 blocks"),
    "lit on both": ((*TRAIN, "--strategy", "lit", "--towers", "both"), "lit locks one tower"),
    "folder": ((*TRAIN, "--data", "{tmp}/nowhere"), "is neither a folder nor a source"),
    "empty folder": ((*TRAIN, "--data", "{empty}"), "has no captions file"),
    "budget": ((*TRAIN, "--budget", "many"), '"many" is not a budget'),
    "budget of none": ((*TRAIN, "--budget", "0-pairs"), "must be larger than 0"),
    "budget of more": ((*TRAIN, "--budget", "1m-pairs"), "has 128 pairs for en, fewer than 1000k-pairs"),
    "tower": ((*TRAIN, "--set", "vision.model=./gone"), "no such folder: ./gone"),
    "text tower": ((*TRAIN, "--set", "text.model=./gone"), "no such folder: ./gone"),
    "tower on the hub": ((*TRAIN, "--set", "text.model=org/gone", "--offline"), "cannot load the text tower org/gone"),
    "adapters in a conv net": ((*TRAIN, "--strategy", "lilt", "--set", "vision.model={conv}"), "use --towers text"),
    "language the source lacks": (("train", "--lang", "ar", "--recipe", "{recipe}", "--data", "starter"), "ar"),
    "option": (("train", "--lnag", "sw"), "No such option: --lnag"),
    "command": (("trian",), "No such command 'trian'"),
    "no language": (("train",), "name the language with --lang"),
    "run to go on from": (("train", "--from", "{tmp}/nowhere"), "holds no finished checkpoint"),
    "strategy beside a run": (("train", "--from", "{trained}", "--strategy", "lit"), "leave out --recipe"),
    "towers beside a run": (("train", "--from", "{trained}", "--set", "projection.dim=8"), "leave out projection"),
    "parallel text": ((*TRAIN, "--parallel", "{tmp}/no.tsv"), "there is no parallel text at {tmp}/no.tsv"),
    "languages of parallel text": ((*TRAIN, "--parallel", "{file}"), "line 1 has no tab"),
    "language twice": (("train", "--lang", "en,en", "--recipe", "{recipe}"), "a language is named twice (en, en)"),
    "budget of a language": ((*TRAIN, "--budget", "en=20min"), "give each language one number of pairs"),
    "budget of another language": ((*TRAIN, "--budget", "sw=5-pairs"), "data.budgets: sw is not trained on"),
    "teacher": (("distill", "--teacher", "{empty}", "--lang", "de", "--parallel", "captions"), "no finished"),
    "nothing to teach with": (("distill", "--teacher", "{trained}", "--lang", "de"), "needs parallel sentences"),
    "teacher and a budget": (("compare", "--teacher", "{trained}", "--lang", "de", "--budget", "1k-pairs"), "no pairs"),
    "number": ((*TRAIN, "--seed", "one"), "Invalid value for '--seed'"),
    "run": (("eval", "{tmp}/nowhere"), "holds no finished checkpoint"),
    "run to repeat": (("repeat", "{tmp}/no.toml", "--out", "{tmp}/run"), "cannot read {tmp}/no.toml"),
    "weights": (("eval", "{corrupt}"), "cannot read {corrupt}/model.safetensors"),
    "language to evaluate": (("eval", "{trained}", "--lang", "en,swx"), 'unknown language "swx"'),
    "split": (("eval", "{trained}", "--split", "tset"), "tset"),
    "data to evaluate": (("eval", "{trained}", "--data", "flickr8"), 'did you mean "flickr8k"?'),
    "recipe to count": (("strategies", "--recipe", "lilt-brt"), 'did you mean "lilt-bert"?'),
    "key to count": (("strategies", "--recipe", "{recipe}", "--set", "txt.model=x"), 'did you mean "text"?'),
    "data to check": (("data", "check", "--lang", "en", "--data", "{empty}"), "has no captions file"),
    "photos": (("search", "{trained}", "red", "--images", "{tmp}/nowhere"), "nowhere"),
    "grid": (("compare", "--lang", "sw", "--strategies", "lillt", "--out", "{tmp}"), 'did you mean "lilt"?'),
    "report": (("report", "--out", "{empty}"), "{empty}"),
    "folder for a run": ((*TRAIN[:-1], "{file}/run"), "cannot write {file}/run"),
    "folder for a comparison": (("compare", "--recipe", "{recipe}", "--lang", "en", "--out", "{file}"), "cannot write"),
    "folder for a tower": ((*PRETRAIN, "--out", "{file}/tower"), "cannot write {file}/tower"),
    "folder to trim into": (
        ("trim", "--lang", "en", "--text-tower", "x", "--corpus", "{recipe}", "--out", "{file}/tower"),
        "cannot write",
    ),
    "tower to pretrain": ((*PRETRAIN, "--out", "{tmp}/o", "--set", "model=./gone"), "no such folder: ./gone"),
    "text to pretrain on": (("pretrain", "--text-tower", "x", "--texts", "{tmp}/no", "--out", "{tmp}/o"), "cannot"),
    "pretraining setting": ((*PRETRAIN, "--out", "{tmp}/o", "--set", "widht=3"), "widht: Extra inputs are not permit"),
}  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory, recipe, trained) -> dict[str, str]:
    """The values of the placeholders in braces."""
    root = tmp_path_factory.mktemp("places")
    (root / "empty").mkdir()
    bare = {key: value for key, value in tiny.settings().items() if key in ("vision", "text", "source")}
    (root / "bare.toml").write_text(tiny.tomli_w.dumps(bare), encoding="utf-8")
    corrupt = shutil.copytree(trained, root / "corrupt")
    (corrupt / WEIGHTS).write_bytes(b"\x00 no weights at all")
    found = {
        "recipe": recipe,
        "trained": trained,
        "empty": root / "empty",
        "corrupt": corrupt,
        "bare": root / "bare.toml",
        "file": root / "bare.toml",
    }
    return {"conv": str(tiny.conv()), **{name: str(path) for name, path in found.items()}}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_code_2(name, run, places, tmp_path):
    arguments, said = BAD[name]
    filled = {**places, "tmp": str(tmp_path)}
    assert said.format(**filled) in wrong(run, *(word.format(**filled) for word in arguments))
    assert not (tmp_path / "run").exists()


def test_a_group_without_a_command_shows_its_help(run):
    for words in ((), ("data",), ("cache",)):
        code, out, err = run(*words)
        assert (code, err) == (2, "")
        assert "Usage: polyalign" in out


def test_the_module_is_the_command(repo):
    done = subprocess.run(
        [sys.executable, "-m", "polyalign", "trian"], capture_output=True, text=True, check=False, cwd=repo
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: No such command 'trian'. Did you mean 'train'")
    assert done.stderr.count("\n") == 1


def test_a_run_in_two_languages_goes_on_and_teaches_another(run, recipe, tmp_path):
    both = tmp_path / "both"
    words = ("train", "--lang", "en,de", "--recipe", recipe, "--data", tiny.bilingual())
    code, out, err = run(*words, "--budget", "en=60-pairs,de=40-pairs", "--out", both)
    assert code == 0, err
    assert out.count("Retrieval, bilingual") == 2
    assert "languages: en, de" in out
    other = ("--lang", "sw", "--data", tiny.data())
    code, out, err = run("train", "--from", both, *other, "--out", tmp_path / "on")
    assert code == 0, err
    assert "before" in out
    text = ("--parallel", "captions", "--set", 'parallel.langs=["en","sw"]')
    place = ("--set", f"source.root={tiny.data()}", "--set", "test.languages=[]")
    code, out, err = run("distill", "--teacher", both, "--lang", "sw", *text, *place, "--out", tmp_path / "t", "--json")
    assert code == 0, err
    assert "translations that the text tower finds before training, from en: sw" in err
    found = json.loads(out)
    assert (found["lang"], found["pairs"], found["budget"]) == ("sw", 0, "0-pairs")
    code, out, err = run("eval", both, "--json")
    assert code == 0, err
    assert [one["lang"] for one in json.loads(out)] == ["en", "de"]
