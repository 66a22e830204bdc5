"""The three splits of a recipe, checked: nothing corrupt, nothing of train in dev or test, no more than the budget."""

from __future__ import annotations

import logging
from collections.abc import Callable

from polyalign.config import budget, source_spec
from polyalign.config import language as languages
from polyalign.config.recipe import Recipe
from polyalign.config.source_spec import SourceSpec
from polyalign.data import image_check, leakage, subset
from polyalign.data.pairs import PairTable
from polyalign.utils.errors import UserError

logger = logging.getLogger(__name__)

Say = Callable[[str], None]
"""Called with a line the user should read."""


def load_source(spec: SourceSpec, lang: str, split: str) -> PairTable:
    """Load a split of a source in a language.

    Raises:
        UserError: an option of the source is wrong, or the source does not have that split or language.
    """
    source, config = spec.configure()
    table: PairTable = source.load(config, languages.load(lang), split)
    return table


def load_table(recipe: Recipe, split: str, lang: str | None = None) -> PairTable:
    """Load a split of the recipe's source, in its language or another.

    Raises:
        UserError: the source does not have it.
    """
    return load_source(SourceSpec.flat(recipe.source), lang or recipe.lang, split)


def load_tables(recipe: Recipe) -> dict[str, PairTable]:
    """Load train, dev and test; leave corrupt images out, refuse leakage, draw the budget.

    Raises:
        UserError: too many corrupt images, leakage where it is refused, fewer pairs than the budget.
    """
    tables = {split: load_split(recipe, split) for split in ("train", "dev", "test")}
    others = [_kept_out(SourceSpec.flat(one), recipe.lang) for one in recipe.data.keep_out]
    checks = [("train", tables["dev"]), ("train", tables["test"])]
    # Dev chooses which state of the run is kept: it must not hold what is tested on either.
    checks += [(split, other) for other in others for split in ("train", "dev")]
    for split, table in checks if recipe.data.leakage != "allow" else []:
        found = leakage.check(tables[split], table)
        if recipe.data.leakage == "exclude" and found.leaks:
            logger.info(f"left out of {'training' if split == 'train' else split}: {found.describe()}")
            tables[split] = leakage.exclude(tables[split], found)
            _not_empty(tables[split], "that are in no set to be tested on")
        else:
            leakage.refuse(found)
    if recipe.data.budget is not None:
        wanted = budget.parse(recipe.data.budget)
        if not isinstance(wanted, budget.PairBudget):
            raise UserError(f"data.budget counts pairs, as in 10k-pairs: give {recipe.data.budget} as --budget")
        tables["train"] = subset.draw(tables["train"], wanted, recipe.data.data_seed)
    return tables


def load_split(recipe: Recipe, split: str, lang: str | None = None) -> PairTable:
    """Load one split, in the recipe's language or another, without corrupt images and empty captions.

    Raises:
        UserError: the source does not have it, too many images are corrupt, or nothing is left.
    """
    if source_spec.takes_images(recipe.source["name"]) and "images" not in recipe.source:
        raise UserError(f"{recipe.source['name']}: say which folder its photos are in with --images FOLDER")
    table = load_table(recipe, split, lang)
    table, report = image_check.check_images(table, max_corrupt=recipe.data.max_corrupt)
    if report.bad:
        logger.info(f"{split}: left out {report.describe()}")
    spoken = table.without_empty_captions()
    if len(spoken) < len(table):
        logger.info(f"{split}: left out {len(table) - len(spoken):,} empty captions of {len(table):,}")
    table = spoken
    _not_empty(table, "with a caption that is not blank")
    return table


def _kept_out(spec: SourceSpec, lang: str) -> PairTable:
    """Load another test set for the images in it; any language does where it lacks the recipe's."""
    known = spec.languages()
    return load_source(spec, lang if known is None or lang in known or not known else known[0], "test")


def _not_empty(table: PairTable, what: str) -> None:
    if not len(table):
        raise UserError(f"{table.name} has no images {what} ({table.lang})")
