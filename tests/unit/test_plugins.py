from __future__ import annotations

import os
from importlib.metadata import EntryPoint

import pytest

from polyalign.config import plugins, source_spec
from polyalign.config.resolve import usual_strategies
from polyalign.utils.errors import UserError
from tests import tiny

HOME = {"strategies": "models.strategies", "sources": "data.sources", "tasks": "evaluation.tasks"}
KINDS = ("strategies", "sources", "tasks")


STRATEGY = """
from pydantic import BaseModel

class Config(BaseModel):
    pass

def apply(aligner, config):
    return "applied"
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A working folder with strategies of the user's own."""
    folder = tmp_path / "strategies"
    folder.mkdir()
    (folder / "bomb.py").write_text("raise RuntimeError('a listing imported this')\n")
    (folder / "my_way.py").write_text(STRATEGY)
    (folder / "_shared.py").touch()
    (folder / "no strategy.py").touch()
    (folder / "empty.py").touch()
    (folder / "notes.txt").touch()
    (folder / "lilt.py").write_text("raise RuntimeError('a shipped name was taken from the working folder')\n")
    monkeypatch.chdir(tmp_path)
    return folder


def test_own_plugins_are_listed_without_being_imported(own):
    assert {"bomb", "my-way", "lilt-deep"} <= set(plugins.plugin_names("strategies"))
    assert not {"-shared", "shared", "no strategy", "notes"} & set(plugins.plugin_names("strategies"))


def test_an_own_plugin_is_loaded_and_the_terminal_says_so(own, caplog):
    assert plugins.load_plugin("strategies", "my-way").apply(None, None) == "applied"
    assert caplog.messages == [f"running code from the working folder: {own / 'my_way.py'}"]


def test_a_shipped_plugin_wins_over_an_own_file(own, caplog):
    assert plugins.load_plugin("strategies", "lilt").__name__ == "polyalign.models.strategies.lilt"
    assert caplog.messages == [f"{own / 'lilt.py'} is ignored: polyalign has a strategy of the same name; rename it"]


def test_a_file_that_is_no_plugin_is_a_user_error(own):
    with pytest.raises(UserError, match=r"bomb\.py cannot be imported: RuntimeError: a listing"):
        plugins.load_plugin("strategies", "bomb")
    with pytest.raises(UserError, match=r"empty\.py is not a strategy: it has no Config"):
        plugins.load_plugin("strategies", "empty")


def test_an_installed_package_can_bring_a_plugin(monkeypatch):
    point = EntryPoint("elsewhere", "polyalign.models.strategies.full", "polyalign.strategies")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point] if group == point.group else [])
    assert "elsewhere" in plugins.plugin_names("strategies")
    assert plugins.load_plugin("strategies", "elsewhere").__name__ == "polyalign.models.strategies.full"
    assert "elsewhere" not in plugins.plugin_names("sources")


def test_an_unknown_plugin_is_a_user_error_with_advice():
    with pytest.raises(UserError, match=r'unknown strategy "lilt-dep": did you mean "lilt-deep"\?.* \./strategies'):
        plugins.load_plugin("strategies", "lilt-dep")


@pytest.mark.parametrize("name", ["lilt_deep", "_shared", "", "../cli", "strategies"])
def test_only_listed_names_can_be_loaded(own, name):
    with pytest.raises(UserError):
        plugins.load_plugin("strategies", name)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_plugins_and_all_of_them_import_with_a_config(kind):
    found = plugins.plugin_names(kind)
    assert found
    for name in found:
        module = plugins.load_plugin(kind, name)
        assert module.__name__ == f"polyalign.{HOME[kind]}.{name.replace('-', '_')}"
        assert module.Config.model_config["extra"] == "forbid", name
        assert module.Config.model_config["frozen"], name


@pytest.mark.parametrize(("kind", "function"), [("strategies", "apply"), ("sources", "load"), ("tasks", "score")])
def test_every_plugin_has_its_one_function(kind, function):
    assert all(callable(getattr(plugins.load_plugin(kind, name), function)) for name in plugins.plugin_names(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_every_plugin_says_in_its_first_line_what_it_is(kind):
    for name in plugins.plugin_names(kind):
        docstring = plugins.load_plugin(kind, name).__doc__
        assert docstring, name
        assert docstring.splitlines()[0].endswith("."), name


def test_what_is_not_a_file_or_settings_or_cannot_be_imported_is_no_plugin(own, monkeypatch):
    (own / "folder.py").mkdir()
    os.mkfifo(own / "pipe.py")
    assert not {"folder", "pipe"} & set(plugins.plugin_names("strategies"))
    (own / "odd.py").write_text("def Config(): ...\ndef apply(aligner, config): ...\n")
    with pytest.raises(UserError, match=r"odd\.py is not a strategy: it has no Config"):
        plugins.load_plugin("strategies", "odd")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [EntryPoint("gone", "no.such.module", group)])
    with pytest.raises(UserError, match=r"the entry point no\.such\.module cannot be imported: ModuleNotFoundError"):
        plugins.load_plugin("strategies", "gone")


def test_only_a_plugin_that_is_named_is_run(tmp_path, monkeypatch):
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "bomb.py").write_text("raise RuntimeError('nobody named this')\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"--images is for .*coco-cn"):
        source_spec.photos("flickr8k", tmp_path, allow_missing=False)
    for name in ("../sources/bomb", "sources.bomb", str(tmp_path / "sources" / "bomb"), "bomb.py"):
        with pytest.raises(UserError, match="unknown source"):
            plugins.load_plugin("sources", name)


def test_no_strategy_is_run_that_nobody_named(own, tmp_path):
    own.joinpath("lilt.py").unlink()
    assert usual_strategies("starter") == tuple(plugins.shipped_plugins("strategies"))
    (tmp_path / "mine.toml").write_text('extends = "starter"\n[strategies.my-way]\n', encoding="utf-8")
    assert set(usual_strategies("mine.toml")) == {*plugins.shipped_plugins("strategies"), "my-way"}


@pytest.mark.parametrize("command", ["plan", "strategies"])
def test_the_commands_that_take_all_strategies_run_only_these(command, own, tmp_path, run):
    code, out, err = run(command, "--lang", "en", "--recipe", tiny.write(tmp_path / "tiny.toml"), "--json")
    assert code == 0, err
    assert "bomb" not in out
    assert "running code" not in err
