"""Every evaluator: a configuration that takes no unknown key, and a function of three arguments."""

from __future__ import annotations

import inspect

import pytest
from pydantic import ValidationError

from polyalign.config import plugins

ALL = plugins.names("tasks")


def test_the_evaluators_are_found() -> None:
    assert set(ALL) >= {"retrieval", "zeroshot", "knowledge", "text-by-retrieval"}


@pytest.mark.parametrize("name", ALL)
def test_it_has_the_shape_of_an_evaluator(name: str) -> None:
    module = plugins.load("tasks", name)
    assert list(inspect.signature(module.evaluate).parameters) == ["aligner", "gallery", "config"]
    assert module.Config() == module.Config()
    with pytest.raises(ValidationError, match="extra_forbidden"):
        module.Config(no_such_option=1)
    assert module.__doc__
    assert module.evaluate.__doc__
