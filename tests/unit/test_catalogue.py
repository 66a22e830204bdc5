from __future__ import annotations

import shutil
from io import StringIO

import pytest
from rich.console import Console

from polyalign.config import plugins
from polyalign.data import catalogue
from polyalign.data.sources import xtd
from polyalign.utils.errors import UserError


def test_all_sources_but_those_for_the_users_own_data_are_datasets():
    known = catalogue.infos()
    assert set(plugins.plugin_names("sources")) - set(known) == {"starter", "folder", "hub"}


def test_a_source_of_the_working_folder_is_run_only_when_it_is_named(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sources").mkdir()
    shutil.copy(xtd.__file__, tmp_path / "sources" / "mine.py")
    assert "mine" not in catalogue.everything()
    assert caplog.messages == []
    assert catalogue.describe("mine").endswith(
        "use it: --data mine --set source.root=FOLDER --set source.images=FOLDER"
    )
    assert "running code from the working folder" in caplog.text
    (tmp_path / "sources" / "bare.py").write_text("from polyalign.data.sources.folder import Config, load\n")
    with pytest.raises(UserError, match='there is no dataset "bare"'):
        catalogue.facts("bare")


def test_one_is_described_in_full_and_an_unknown_one_is_refused():
    text = catalogue.describe("xtd")
    assert "COCO train2014" in text
    assert "--data xtd --set source.root=" in text
    with pytest.raises(UserError, match='no dataset "xtd1": did you mean "xtd"'):
        catalogue.info("xtd1")


@pytest.mark.parametrize("render", [lambda: catalogue.render(catalogue.infos()), catalogue.render_labelled])
def test_a_table_has_a_line_a_dataset_and_fits_a_terminal(render):
    out = StringIO()
    Console(file=out, width=80).print(render())
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in out.getvalue()
    first_words = [line.split()[0] for line in lines if line.strip()]
    known = catalogue.infos() if "xm3600" in first_words else catalogue.LABELLED
    assert set(known) <= set(first_words)


def test_long_lists_of_languages_are_counted():
    out = StringIO()
    Console(file=out, width=80).print(catalogue.render(catalogue.infos()))
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in out.getvalue().splitlines() if line.strip()}
    assert rows["xm3600"].startswith("36 languages")
    assert rows["stair"] == "ja human"
    assert rows["flickr8k"].startswith("en zh ")
