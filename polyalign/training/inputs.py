"""What a run is trained and tested on: image-caption pairs, or parallel sentences and the vectors of a teacher."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import numpy.typing as npt

from polyalign.config.schema import Cache, Recipe
from polyalign.data.load import Tables, load_kept_out, load_table, load_tables, load_tests
from polyalign.data.pairs import Origin, PairTable, stable_hash
from polyalign.data.parallel import ParallelText, load_parallel
from polyalign.data.trained_images import join
from polyalign.evaluation.encoders import Encoder
from polyalign.evaluation.results import Amount
from polyalign.evaluation.tasks.retention import sentence_retrieval
from polyalign.models.aligner import Aligner
from polyalign.models.embed import (
    PairFeatures,
    SentenceFeatures,
    number_distinct,
    prepare,
    prepare_sentences,
    sentence_features,
)
from polyalign.models.feature_cache import caption_features, vectors
from polyalign.training.inherit import open_teacher, trained_images
from polyalign.training.plan import check_divisible
from polyalign.utils.errors import UserError
from polyalign.utils.process import one_first

logger = logging.getLogger(__name__)

_DEV_SHARE, _MOST_DEV = 0.1, 500
_FEWEST = 2  # rows to retrieve from
_KNOWN = 300  # rows


@dataclass(frozen=True)
class Inputs:
    """The features that a run trains on, evaluates on and is tested on, and where they come from.

    Attributes:
        train: features of the training pairs; of a distilled run, the teacher's vectors stand for images.
        dev: a dev split for each language whose recall selects the checkpoint.
        galleries: the test split of each language.
        test: the features of ``galleries``.
        trained_on: numbers of training pairs and images by language.
        origin: where the training captions come from.
        images: the images that this run, its parent and its teacher were trained on; None if they are unknown.
        earlier: those that its parent or its teacher was trained on.
        sentences: parallel sentences trained on beside the pairs.
        parallel: the parallel text that is trained on, beside the pairs or alone.
    """

    train: PairFeatures
    dev: tuple[PairFeatures, ...]
    galleries: dict[str, PairTable]
    test: dict[str, PairFeatures]
    trained_on: dict[str, Amount]
    origin: Origin
    images: PairTable | None
    earlier: PairTable | None = None
    sentences: SentenceFeatures | None = None
    parallel: ParallelText | None = None


def of_pairs(recipe: Recipe, aligner: Aligner, processes: int) -> Inputs:
    """Load image-caption pairs, and parallel sentences if the recipe has them, and compute their frozen features.

    Raises:
        UserError: bad data, leakage, or a batch that cannot be divided among the processes.
    """
    earlier = trained_images(recipe)
    tables = load_tables(recipe, earlier)
    check_divisible(recipe, len(tables.train), processes)
    text = None if recipe.parallel is None else _parallel(recipe, tables)
    if cut := aligner.text.count_cut(list(tables.train.captions)):
        captions = f"{cut:,} of {len(tables.train):,} training captions"
        logger.info(f"{captions} have more than text.max_tokens = {recipe.text.max_tokens} tokens and are cut")
    with one_first():
        plain = partial(prepare, aligner, config=recipe.cache)  # dev and test are never augmented
        train = prepare(aligner, tables.train, recipe.cache, recipe.data)
        dev = tuple(plain(table) for table in tables.dev.values())
        test = {lang: plain(table) for lang, table in tables.test.items()}
        anchored = recipe.parallel is not None and recipe.parallel.anchor > 0
        if text is not None:
            _report_known(aligner, text, recipe.cache)
        sentences = None if text is None else prepare_sentences(aligner, text, recipe.cache, anchored=anchored)
    amounts = {lang: Amount(pairs=pairs, images=images) for lang, (pairs, images) in tables.trained_on().items()}
    images = join(tables.train, earlier)
    return Inputs(train, dev, tables.test, test, amounts, tables.train.origin, images, earlier, sentences, text)


def _report_known(aligner: Aligner, text: ParallelText, config: Cache) -> None:
    """Say how often the text tower finds a translation before training: it can learn what is missing."""
    pivot, *others = text.langs
    found = []
    for place, lang in enumerate(others, start=1):
        both = [(row[0], row[place]) for row in text.rows if row[0] and row[place]][:_KNOWN]
        if len(both) > 1:
            sides = zip(zip(*both, strict=True), (pivot, lang), strict=True)
            one, other = (sentence_features(aligner, side, code, config) for side, code in sides)
            found.append(f"{lang} {100 * sentence_retrieval(one, other):.0f} % of {len(both)}")
    if found:
        logger.info(
            f"translations that the text tower finds before training, from {pivot}: {', '.join(found)} sentences"
        )


def _parallel(recipe: Recipe, tables: Tables) -> ParallelText:
    spoken = [tables.train] if len(recipe.langs) == 1 else []
    return load_parallel(recipe, [*tables.dev.values(), *tables.test.values(), *_other_tests(recipe)], spoken)


def _other_tests(recipe: Recipe) -> list[PairTable]:
    """Load the tests in languages without pairs, and those that are kept out."""
    return [*(load_table(recipe, "test", lang) for lang in recipe.transfer), *load_kept_out(recipe)]


def of_teacher(recipe: Recipe, aligner: Aligner, load_teacher: Callable[[], Encoder] | None = None) -> Inputs:
    """Load parallel sentences, and compute the teacher's vectors of those in the pivot language.

    The sentences in all languages, the pivot among them, are trained to have these vectors. A tenth of the rows, at
    most 500, is the dev split. ``load_teacher`` (default: ``open_teacher``) is called if the
    teacher's vectors are not cached.

    Raises:
        UserError: bad data or leakage, or the run is not taught all of its languages.
    """
    assert recipe.teacher is not None
    load_teacher = load_teacher or cache(partial(open_teacher, recipe.teacher))
    earlier = trained_images(recipe)
    galleries = load_tests(recipe, earlier)
    text = load_parallel(recipe, [*galleries.values(), *_other_tests(recipe)], list(galleries.values()))
    if absent := [lang for lang in recipe.langs if lang not in text.langs]:
        raise UserError(f"{text.name} has no sentences in {absent[0]}: it has {', '.join(text.langs)}")
    rows = [row for row in text.rows if row[0]]
    order = np.argsort([stable_hash(f"{recipe.data.data_seed}\n{row[0]}") for row in rows], kind="stable")
    held_out = min(_MOST_DEV, int(len(rows) * _DEV_SHARE))
    if held_out < _FEWEST:
        raise UserError(f"{text.name} has {len(rows)} rows in {text.langs[0]}: distillation needs 20 or more")
    dev_rows, train_rows = ([rows[i] for i in part] for part in (order[:held_out], order[held_out:]))
    with one_first():
        _report_known(aligner, text, recipe.cache)
        taught = partial(_taught, recipe, aligner, load_teacher)
        train = taught(train_rows, text.langs, text.langs[0])
        targets = recipe.data.targets or recipe.langs
        dev = tuple(taught(dev_rows, text.langs, text.langs[0], only=lang) for lang in targets)
        test = {lang: prepare(aligner, table, recipe.cache) for lang, table in galleries.items()}
    origin = next(iter(galleries.values())).origin
    return Inputs(
        train, dev, galleries, test, {}, origin, earlier, earlier, parallel=replace(text, rows=tuple(train_rows))
    )


def _taught(
    recipe: Recipe,
    aligner: Aligner,
    load_teacher: Callable[[], Encoder],
    rows: Sequence[Sequence[str]],
    langs: Sequence[str],
    pivot: str,
    only: str | None = None,
) -> PairFeatures:
    """Return the sentences of rows as captions, and the teacher's vectors of those in the first language as images.

    With ``only`` these are the sentences in that language, and the vectors of their rows. ``load_teacher`` is called
    if the vectors are not cached.
    """
    assert recipe.teacher is not None
    if only is not None:
        rows = [row for row in rows if row[langs.index(only)]]
        if len(rows) < _FEWEST:
            raise UserError(f"{len(rows)} of the rows held out for dev have a sentence in {only}: give more of them")
    pivots = [row[0] for row in rows]
    digest = hashlib.sha256(f"{recipe.teacher.weights}\0{pivot}".encode()).hexdigest()
    found = vectors(digest, pivots, lambda texts: load_teacher().encode_text(texts, pivot), recipe.cache)
    columns = [i for i, lang in enumerate(langs) if only in (None, lang)]
    said = [(row[i], langs[i], place) for i in columns for place, row in enumerate(rows) if row[i]]
    sentences, spoken = [sentence for sentence, _, _ in said], [lang for _, lang, _ in said]
    image_of: npt.NDArray[np.int64] = np.array([place for _, _, place in said], dtype=np.int64)
    store = caption_features(aligner.text, sentences, aligner.cuts()[1], recipe.cache, spoken)
    images = replace(found, cut=aligner.vision.whole + 1)
    return PairFeatures(images, store, image_of, number_distinct(sentences), number_distinct(spoken))
