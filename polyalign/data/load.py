"""Loading of a recipe's splits without corrupt images or leakage, limited to the pair budget."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from polyalign.config import source_spec
from polyalign.config.budget import PairBudget, parse_budget
from polyalign.config.language import load_language
from polyalign.config.schema import Recipe
from polyalign.config.source_spec import SourceSpec
from polyalign.data import image_prints, leakage
from polyalign.data.image_check import ImageReport, check_images, refuse_corrupt
from polyalign.data.pairs import PairTable, count_images, merge, stable_hash
from polyalign.utils.errors import UserError

logger = logging.getLogger(__name__)

_FEW = 10  # images of dev or test


def load_source(spec: SourceSpec, lang: str, split: str) -> PairTable:
    """Load a split of a source in a language.

    Raises:
        UserError: an option of the source is invalid, or the source lacks the split or language.
    """
    source, config = spec.configure()
    table: PairTable = source.load(config, load_language(lang), split)
    return table


def load_table(recipe: Recipe, split: str, lang: str | None = None) -> PairTable:
    """Load a split of the recipe's source, in its language or another.

    Raises:
        UserError: the source lacks the split or language.
    """
    return load_source(SourceSpec.flat(recipe.source), lang or recipe.lang, split)


@dataclass(frozen=True)
class Tables:
    """The data of a run: ``train`` with the pairs of all its languages, ``dev`` and ``test`` by language.

    ``dev`` has the languages whose recall selects the checkpoint.
    """

    train: PairTable
    dev: dict[str, PairTable]
    test: dict[str, PairTable]

    def trained_on(self) -> dict[str, tuple[int, int]]:
        """Return the numbers of training pairs and images by language."""
        langs = np.array(self.train.caption_langs or [self.train.lang] * len(self.train))
        return {
            lang: (int((langs == lang).sum()), len(np.unique(self.train.image_of[langs == lang])))
            for lang in dict.fromkeys(langs.tolist())
        }


def load_tables(recipe: Recipe, trained: PairTable | None = None) -> Tables:
    """Load train, dev and test without corrupt images, empty captions and leakage, with the budget drawn from train.

    No training image may be in dev or test of any language, and no dev image in test, since dev selects the checkpoint
    that is tested. Images of the test sets in ``data.keep_out`` are also kept out of train and dev. ``trained`` are the
    images of an earlier run, which may be in train only.

    Raises:
        UserError: too many images are corrupt, leakage is found and refused, there are fewer pairs than the budget, or
            the training pairs teach nothing.
    """
    test = load_tests(recipe, trained)
    others = [merge([*test.values()]), *load_kept_out(recipe)]
    dev = {lang: _load_dev(recipe, lang, trained, others) for lang in recipe.data.targets or recipe.langs}
    others = [merge([*dev.values()]), *others]
    train = merge([_load_train(recipe, lang, others) for lang in recipe.langs])
    refuse_unlearnable(train)
    return Tables(train, dev, test)


def load_devs(recipe: Recipe, trained: PairTable | None = None) -> dict[str, PairTable]:
    """Load dev in each language whose recall selects the checkpoint; see ``load_tables``."""
    others = [merge([*load_tests(recipe, trained).values()]), *load_kept_out(recipe)]
    return {lang: _load_dev(recipe, lang, trained, others) for lang in recipe.data.targets or recipe.langs}


def _load_dev(recipe: Recipe, lang: str, trained: PairTable | None, others: Sequence[PairTable]) -> PairTable:
    return _without_leaks(without_trained(load_split(recipe, "dev", lang), trained, recipe), "dev", others, recipe)


def load_tests(recipe: Recipe, trained: PairTable | None = None) -> dict[str, PairTable]:
    """Load test in each language of a recipe; see ``load_tables``.

    Raises:
        UserError: as ``load_tables``, or two languages have the same captions.
    """
    tests = {lang: without_trained(load_split(recipe, "test", lang), trained, recipe) for lang in recipe.langs}
    refuse_equal_captions(tests.values())
    return tests


def refuse_equal_captions(tables: Iterable[PairTable]) -> None:
    """Check that captions differ between languages: a source that does not state a language gives the same for all.

    Raises:
        UserError: two tables of different languages have the same captions.
    """
    spoken: dict[tuple[str, ...], str] = {}
    for table in tables:
        if (other := spoken.setdefault(table.captions, table.lang)) != table.lang:
            raise UserError(
                f"{table.name} has the same captions in {other} and {table.lang}: state the language of each caption "
                f"in a column lang, or give each language a column (caption_{other}, caption_{table.lang}); or name "
                f"the one language of all captions: --set source.lang={table.lang}"
            )


def without_trained(table: PairTable, trained: PairTable | None, recipe: Recipe) -> PairTable:
    """Exclude, refuse or allow images that an earlier run was trained on, according to ``data.leakage``."""
    if trained is None or recipe.data.leakage == "allow":
        return table
    found = leakage.find_leaks(trained, table)
    if found.leaks and recipe.data.leakage == "refuse":
        raise UserError(
            f"leakage: the earlier run was trained on images of {table.name}: {found.describe()}; leave them out of "
            f"{table.name} with --set data.leakage=exclude, or keep them with --set data.leakage=allow"
        )
    if found.leaks:
        logger.info(f"left out of {table.name}: {found.describe()}")
    return _not_empty(table.without_images(found.test_ids), "the earlier run was trained on all its images")


def _load_train(recipe: Recipe, lang: str, others: Sequence[PairTable]) -> PairTable:
    budget = recipe.pairs_budget(lang)
    if budget is None:
        return _without_leaks(load_split(recipe, "train", lang), "train", others, recipe)
    return _drawn(recipe, budget, others, lang)


def load_split(recipe: Recipe, split: str, lang: str | None = None) -> PairTable:
    """Load one split, in the recipe's language or another, without corrupt images and empty captions.

    Raises:
        UserError: the source lacks the split or language, too many images are corrupt, or no pairs are left.
    """
    table, report = check_images(_load_captions(recipe, split, lang), max_corrupt=recipe.data.max_corrupt)
    if report.bad:
        logger.info(f"{split}: left out {report.describe()}")
    if split != "train" and len(table.images) < _FEW:
        share = f"each image is {1 / len(table.images):.0%} of a recall"
        logger.warning(f"warning: {table.name} has only {count_images(len(table.images))}: {share}, which says little")
    return _not_empty(table, "no image has a caption that is not blank")


def refuse_unlearnable(train: PairTable) -> None:
    """Check that training pairs differ, since a contrastive loss learns from differences only.

    Raises:
        UserError: there is one pair, or all images or all captions are the same.
    """
    prints = {i: one for i, one in image_prints.prints(train.images).items() if one.problem is None}
    looks = {prints[i].thumb.tobytes() if i in prints else image_id for i, image_id in enumerate(train.image_ids)}
    captions = {" ".join(caption.casefold().split()) for caption in train.captions}
    if len(train) == 1 or len(looks) == 1 or len(captions) == 1:
        same = "is one pair" if len(train) == 1 else "is one image" if len(looks) == 1 else "are equal captions"
        more = "; contrastive training needs two pairs or more: allow a larger budget" if len(train) == 1 else ""
        name = f"{train.name} ({train.lang})"
        raise UserError(f"{name}: all there is to train on {same}: nothing can be learned from it{more}")


def _load_captions(recipe: Recipe, split: str, lang: str | None = None) -> PairTable:
    """Load one split without empty captions; no image is opened."""
    if source_spec.takes_images(recipe.source["name"]) and "images" not in recipe.source:
        raise UserError(f"{recipe.source['name']}: set the photo folder with --images FOLDER")
    table = load_table(recipe, split, lang)
    spoken = table.without_empty_captions()
    if len(spoken) < len(table):
        logger.info(f"{split}: left out {len(table) - len(spoken):,} empty captions of {len(table):,}")
    return _not_empty(spoken, "no image has a caption that is not blank")


def _drawn(recipe: Recipe, pairs: str, others: Sequence[PairTable], lang: str) -> PairTable:
    """Draw the budget, check only the drawn images, and redraw to replace images that are left out.

    The result is the same as if the whole split were checked first, since leaving out an image does not change the
    rest of the draw (see ``draw``).
    """
    budget = parse_budget(pairs)
    if not isinstance(budget, PairBudget):
        raise UserError(f"data.budget must be a number of pairs (10k-pairs): pass {pairs} as --budget")
    table = _load_captions(recipe, "train", lang)
    looked_at: set[str] = set()
    report = ImageReport(images=0, missing=(), corrupt=())
    while True:
        drawn = draw(table, budget, recipe.data.data_seed)
        new = drawn.without_images(looked_at)
        if not len(new.images):
            return drawn
        looked_at |= set(new.image_ids)
        readable, found = check_images(new, max_corrupt=1.0)
        if found.bad:
            logger.info(f"train: left out {found.describe()}")
        report = ImageReport(
            images=len(looked_at), missing=report.missing + found.missing, corrupt=report.corrupt + found.corrupt
        )
        refuse_corrupt(table.name, report, recipe.data.max_corrupt)
        clean = _without_leaks(readable, "train", others, recipe, may_be_empty=True)
        table = table.without_images(set(new.image_ids) - set(clean.image_ids))


def draw(table: PairTable, budget: PairBudget, seed: int) -> PairTable:
    """Return a random subset of pairs; for one seed, a smaller subset is contained in every larger one.

    A pair's place in the draw depends only on the seed, the image id and the rank of the caption among the captions of
    its image. So leaving out a corrupt image changes no other choice, and two languages with one caption per image get
    the same images.

    Raises:
        UserError: the table has fewer pairs.
    """
    if budget.pairs > len(table):
        raise UserError(f"{table.name} has {len(table):,} pairs for {table.lang}, fewer than {budget}: ask for fewer")
    texts = (f"{seed}\n{table.image_ids[table.image_of[c]]}\n{rank}" for c, rank in enumerate(table.caption_ranks()))
    places = np.array([stable_hash(text) for text in texts], dtype=np.uint64)
    return table.take_pairs(np.sort(np.argsort(places, kind="stable")[: budget.pairs]))


def _without_leaks(
    table: PairTable, split: str, others: Sequence[PairTable], recipe: Recipe, *, may_be_empty: bool = False
) -> PairTable:
    """Exclude, refuse or allow images of other tables in a split, according to ``data.leakage``."""
    for other in others if recipe.data.leakage != "allow" else ():
        found = leakage.find_leaks(table, other)
        if recipe.data.leakage == "exclude" and found.leaks:
            logger.info(f"left out of {'training' if split == 'train' else split}: {found.describe()}")
            table = table.without_images(found.train_ids)
        else:
            leakage.refuse(found)
    return table if may_be_empty else _not_empty(table, "all images are also in a set that is tested on")


def load_kept_out(recipe: Recipe) -> list[PairTable]:
    """Load the further test sets whose images must not be trained on (``data.keep_out``)."""
    return [_kept_out(SourceSpec.flat(one), recipe.lang) for one in recipe.data.keep_out]


def _kept_out(spec: SourceSpec, lang: str) -> PairTable:
    """Load another test set for its images, in any of its languages if it lacks the recipe's language."""
    known = spec.languages()
    return load_source(spec, lang if known is None or lang in known or not known else known[0], "test")


def _not_empty(table: PairTable, otherwise: str) -> PairTable:
    if not len(table):
        raise UserError(f"{table.name} ({table.lang}): {otherwise}")
    return table
