from __future__ import annotations

import io

from rich.console import Console

from polyalign.config import plugins
from polyalign.models import parameter_count as strategy_table
from tests import architectures, tiny


def shown(rows: list[strategy_table.Row]) -> str:
    out = io.StringIO()
    Console(file=out, width=120).print(strategy_table.render(rows, "tiny"))
    return out.getvalue()


def test_every_strategy_is_counted_from_the_fewest_parameters_up(tmp_path):
    recipe = tiny.write(tmp_path / "tiny.toml")
    rows = strategy_table.count(str(recipe), "en", {})
    assert sorted(row.strategy for row in rows) == plugins.plugin_names("strategies")
    assert [row.trainable for row in rows] == sorted(row.trainable for row in rows)
    by_name = {row.strategy: row for row in rows}
    assert by_name["projection"].trainable == 2 * (32 * 16 + 16) + 1
    assert by_name["full"].trainable == by_name["full"].total == by_name["projection"].total
    built = tiny.aligner("lilt")
    assert (by_name["lilt"].trainable, by_name["lilt"].total) == built.count()
    assert (by_name["lit"].vision_cut, by_name["lit"].text_cut) == ("5 of 5", "0 of 5")


def test_the_table_shows_absolute_counts_and_shares(tmp_path):
    text = shown(strategy_table.count(str(tiny.write(tmp_path / "tiny.toml")), "en", {}))
    assert "1,057" in text
    assert "100.00" in text


def test_a_strategy_the_towers_cannot_carry_is_a_row_that_says_why(tmp_path):
    recipe = tiny.write(tmp_path / "tiny.toml", vision={"model": "test_resnet"})
    rows = {row.strategy: row for row in strategy_table.count(str(recipe), "en", {})}
    assert rows.keys() == set(plugins.plugin_names("strategies"))
    assert {"lilt", "lilt-deep", "lora"} <= {name for name, row in rows.items() if row.problem}
    assert not any(rows[name].problem for name in ("projection", "layernorm", "full"))
    assert "needs transformer blocks" in str(rows["lilt"].problem)
    assert "needs transformer" in shown(list(rows.values()))


def test_a_network_that_looks_at_values_is_counted_too():
    architecture = {**architectures.SMALL, **architectures.TEXT["deberta-v2"], "model_type": "deberta-v2"}
    text = {"model": "not/there", "architecture": architecture, "max_tokens": 20}
    [lora] = [row for row in strategy_table.count("starter", "sw", {"text": text}) if row.strategy == "lora"]
    assert lora.problem is None
    assert lora.text_cut == "1 of 5"
