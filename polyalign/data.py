"""The three splits of a recipe, checked: nothing corrupt, nothing of train in dev or test, no more than the budget."""

from __future__ import annotations

from collections.abc import Callable

from polyalign import budget, image_check, leakage
from polyalign.build import load_table
from polyalign.errors import UserError
from polyalign.pairs import PairTable
from polyalign.progress import Progress
from polyalign.recipe import Recipe

Say = Callable[[str], None]
"""Called with a line the user should read."""


def load_tables(recipe: Recipe, progress: Progress, say: Say) -> dict[str, PairTable]:
    """Load train, dev and test; leave corrupt images out, refuse leakage, draw the budget.

    Raises:
        UserError: too many corrupt images, images of train in dev or test, fewer pairs than the budget.
    """
    tables: dict[str, PairTable] = {}
    for split in ("train", "dev", "test"):
        table = load_table(recipe, split)
        table, report = image_check.check_images(table, progress, max_corrupt=recipe.data.max_corrupt)
        if report.bad:
            say(f"{split}: left out {report.describe()}")
        tables[split] = table.without_empty_captions()
    for split in ("dev", "test"):
        if recipe.data.leakage == "allow":
            continue
        found = leakage.check(tables["train"], tables[split], progress=progress)
        if recipe.data.leakage == "exclude" and found.leaks:
            say(f"left out of training: {found.describe()}")
            tables["train"] = leakage.exclude(tables["train"], found)
        else:
            leakage.refuse(found)
    if recipe.data.budget is not None:
        wanted = budget.parse(recipe.data.budget)
        if not isinstance(wanted, budget.PairBudget):
            raise UserError(f"train takes a budget of pairs, such as 10k-pairs; {recipe.data.budget} is for compare")
        tables["train"] = budget.draw(tables["train"], wanted, recipe.data.data_seed)
    return tables
