from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from polyalign.config.resolve import gather_overrides, resolve
from polyalign.config.schema import Recipe
from polyalign.experiments.next_steps import next_commands
from tests import tiny


def parsed(words: list[str]) -> Recipe:
    """Resolve the options of ``polyalign train`` as the command does."""
    options: dict[str, Any] = {"--set": []}
    for option, value in zip(words[::2], words[1::2], strict=True):
        options[option] = [*options["--set"], value] if option == "--set" else value
    changes = gather_overrides(options["--set"], budget=options.get("--budget"), data=options.get("--data"))
    return resolve(options.get("--recipe", "starter"), options["--lang"], options["--strategy"], changes)


@pytest.mark.parametrize(
    ("data", "budget", "sets"),
    [
        (None, None, []),
        (None, "1k-pairs+20min", ["optim.epochs=3", "vision.args={}"]),
        ("folder", None, []),
        ("folder", "50-pairs", ["source.caption_column=caption", "source.dev_share=0.3", "optim.lr=0.5"]),
    ],
)
def test_the_command_for_another_strategy_keeps_data_budget_and_settings(
    data: str | None, budget: str | None, sets: list[str], tmp_path: Path
) -> None:
    root = None if data is None else str(tiny.data())
    recipe = resolve("starter", "en", "lilt", gather_overrides(sets, budget=budget, data=root))
    command = shlex.split(next_commands(tmp_path, recipe, "starter")[-1])
    assert command[:2] == ["polyalign", "train"]
    again = parsed(command[2:])
    assert again.strategy["name"] == "lit"
    assert again.model_copy(update={"strategy": recipe.strategy}) == recipe


def test_the_rate_of_the_other_strategy_is_that_of_the_recipe_file(tmp_path: Path) -> None:
    command = next_commands(tmp_path, resolve("starter", "sw", "lit"), "starter")[-1]
    assert command == "polyalign train --lang sw --strategy projection"


def test_only_what_works_is_suggested(tmp_path: Path) -> None:
    drawn = next_commands(tmp_path / "my run", resolve("starter", "sw", "lilt"), None)
    assert drawn == [
        f"polyalign show '{tmp_path / 'my run'}' --open",
        f"polyalign eval '{tmp_path / 'my run'}' --lang sw,en",
    ]
    photos = resolve("starter", "en", "lilt", gather_overrides([], data=str(tiny.data())))
    assert next_commands(tmp_path, photos, None) == [
        f"polyalign show {tmp_path} --open",
        f"polyalign search {tmp_path} 'what the photo shows' --images {tiny.data()} --open",
    ]
