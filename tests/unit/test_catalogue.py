from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from polyalign.config import plugins
from polyalign.data import catalogue
from polyalign.utils.errors import UserError


def test_all_sources_but_those_for_the_users_own_data_are_datasets():
    known = catalogue.infos()
    assert set(plugins.plugin_names("sources")) - set(known) == {"starter", "folder", "hub"}


def test_one_is_described_in_full_and_an_unknown_one_is_refused():
    text = catalogue.describe("xtd")
    assert "COCO train2014" in text
    assert "--data xtd --set source.root=" in text
    with pytest.raises(UserError, match='no dataset "xtd1": did you mean "xtd"'):
        catalogue.info("xtd1")


def test_the_table_has_a_row_a_dataset_and_its_licence():
    out = StringIO()
    known = catalogue.infos()
    Console(file=out, width=160).print(catalogue.render(known))
    for name in known:
        assert name in out.getvalue()
    assert "CC BY 4.0" in out.getvalue()
