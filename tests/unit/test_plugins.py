from __future__ import annotations

import pytest

from polyalign import plugins
from polyalign.errors import UserError

KINDS = ("strategies", "sources", "evaluators")


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A ``polyalign`` of two strategies and one shared file, put in front of the true one for ``plugins``."""
    folder = tmp_path / "strategies"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "bomb.py").write_text("raise RuntimeError('a listing imported this')\n")
    (folder / "lilt_deep.py").touch()
    (folder / "_shared.py").touch()
    (folder / "notes.txt").touch()
    monkeypatch.setattr(plugins, "__file__", str(tmp_path / "plugins.py"))


@pytest.mark.usefixtures("planted")
def test_names_are_file_stems_with_dashes_without_shared_files_and_nothing_is_imported():
    assert plugins.names("strategies") == ["bomb", "lilt-deep"]


@pytest.mark.usefixtures("planted")
def test_an_unknown_plugin_is_a_user_error_with_advice():
    with pytest.raises(UserError, match=r'unknown strategy "lilt-dep": did you mean "lilt-deep"\?'):
        plugins.load("strategies", "lilt-dep")


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize("name", ["lilt_deep", "_shared", "", "../cli", "strategies"])
def test_only_listed_names_can_be_loaded(name):
    with pytest.raises(UserError):
        plugins.load("strategies", name)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_plugins_and_all_of_them_import_with_a_config(kind):
    found = plugins.names(kind)
    assert found
    for name in found:
        module = plugins.load(kind, name)
        assert module.__name__ == f"polyalign.{kind}.{name.replace('-', '_')}"
        assert module.Config.model_config["extra"] == "forbid", name
        assert module.Config.model_config["frozen"], name


@pytest.mark.parametrize(
    ("kind", "function"), [("strategies", "apply"), ("sources", "load"), ("evaluators", "evaluate")]
)
def test_every_plugin_has_its_one_function(kind, function):
    assert all(callable(getattr(plugins.load(kind, name), function)) for name in plugins.names(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_every_plugin_says_in_its_first_line_what_it_is(kind):
    for name in plugins.names(kind):
        docstring = plugins.load(kind, name).__doc__
        assert docstring, name
        assert docstring.splitlines()[0].endswith("."), name
