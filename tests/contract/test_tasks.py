"""Every task has a configuration that refuses unknown keys, and a function of three arguments."""

from __future__ import annotations

import inspect

import pytest
from pydantic import ValidationError

from polyalign.config import plugins

ALL = plugins.plugin_names("tasks")


def test_the_tasks_are_found() -> None:
    assert set(ALL) >= {"retrieval", "zeroshot", "retention", "text-by-retrieval"}


@pytest.mark.parametrize("name", ALL)
def test_it_has_the_shape_of_a_task(name: str) -> None:
    module = plugins.load_plugin("tasks", name)
    assert list(inspect.signature(module.score).parameters) == ["encoder", "gallery", "config"]
    assert module.Config.model_config["frozen"]
    with pytest.raises(ValidationError, match="extra_forbidden"):
        module.Config(no_such_option=1)
    assert module.__doc__
    assert module.score.__doc__
