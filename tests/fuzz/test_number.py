"""A whole run has thousands of cases."""

from __future__ import annotations

import pytest


def test_thousands_of_cases_are_run(request: pytest.FixtureRequest) -> None:
    collected: dict[str, list[int]] = {}
    for item in request.session.items:
        if number := getattr(getattr(item, "function", None), "cases", 0):
            collected.setdefault(item.path.stem, []).append(number)
    kinds = {"test_options", "test_recipes", "test_languages", "test_tables", "test_images"}
    kinds |= {"test_checkpoints", "test_caches", "test_results"}
    if collected.keys() < kinds:
        pytest.skip(f"only {', '.join(collected) or 'this file'} was asked for")
    assert sum(map(sum, collected.values())) >= 2_000
