"""Folders of runs: where one goes, what may be written there, and evaluating one again."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from polyalign.config import language as languages
from polyalign.config import recipe as recipes
from polyalign.config.recipe import Recipe
from polyalign.data import class_names, image_check, labelled
from polyalign.data.labelled import Labelled
from polyalign.data.load import load_split, load_table
from polyalign.data.pairs import PairTable
from polyalign.evaluation import external_models, suites
from polyalign.evaluation.encoders import Aligned, Encoder, Gallery, Vectors
from polyalign.evaluation.results import Retention, Retrieval, Run, TextByRetrieval, ZeroShot
from polyalign.evaluation.suites import Suite, SuiteResult
from polyalign.evaluation.tasks import knowledge, retrieval, text_by_retrieval, zeroshot
from polyalign.models import checkpoint
from polyalign.training import train
from polyalign.utils import storage
from polyalign.utils.errors import UserError
from polyalign.utils.process import processes
from polyalign.utils.progress import progress_bars

logger = logging.getLogger(__name__)


def default_folder(recipe: Recipe) -> Path:
    """Name a run after what it is: recipe, language, strategy, what differs from the default, budget, seed."""
    strategy = recipe.strategy
    _, config = recipe.plugin("strategy")
    plain = type(config)()
    parts = [recipe.name, recipe.lang, strategy["name"]]
    parts += [str(strategy[key]) for key in ("towers", "layers") if strategy[key] != getattr(plain, key)]
    parts += [recipe.budget, f"s{recipe.train.seed}"]
    return Path("runs") / "-".join(parts).replace(":", "")


def train_into(folder: Path, recipe: Recipe, *, resume: bool, overwrite: bool) -> Run | None:
    """Train into a folder; a finished run of the same recipe is given back as it is. None in all but the main process.

    Raises:
        UserError: the folder holds another run, or an unfinished one and neither ``resume`` nor ``overwrite`` is given;
            or it cannot be written to.
    """
    storage.check_writable(folder)
    every = processes()
    main = every.is_main_process
    finished, begun = folder / train.RESULT, folder / train.STATE
    if overwrite and main and (finished.exists() or begun.exists()):
        shutil.rmtree(folder)
    every.wait_for_everyone()  # none may look into a folder that is being emptied
    if not main:
        logging.getLogger("polyalign").setLevel(logging.ERROR)
    if finished.exists():
        run = Run.load_json(finished)
        if not recipe.is_of(run.recipe):
            raise UserError(f"{folder} holds a run with other settings: give another --out, or --overwrite")
        logger.info(f"{folder} is finished already; --overwrite trains it again")
        return run if main else None
    if begun.exists() and not resume:
        raise UserError(f"{folder} holds an unfinished run: go on with --resume, or begin again with --overwrite")
    if resume and not begun.exists():
        logger.info(f"nothing to resume in {folder}: beginning anew")
    with progress_bars(enabled=main):
        return train.train(recipe, folder, resume=resume)


def open_model(model: str | Path, cache: dict[str, Any] | None = None) -> tuple[Encoder, Recipe | None]:
    """Load what is to be evaluated: a finished run, with its recipe, or a peer (see ``peers``), which has none.

    ``cache`` holds keys of that section of a recipe: how to compute this time, whatever the run did.

    Raises:
        UserError: there is no finished run or no such peer, or no such key.
    """
    if external_models.is_external(str(model)):
        return external_models.load(str(model)), None
    aligner, recipe = checkpoint.load(Path(model))
    how = recipes.merge(recipe.table(), {"cache": cache or {}})
    return Aligned(str(model), aligner, recipes.validate(how, f"{model} with --set").cache), recipe


def evaluate(model: str | Path, langs: list[str], split: str, overrides: dict[str, Any]) -> list[Retrieval]:
    """Measure a finished run in these languages (its own when none is given), on its own source or another.

    A peer has neither: it is told both.

    Raises:
        UserError: there is no finished run or peer, or the source lacks the language or the split.
    """
    found = _embedded(model, langs, split, overrides, retrieval.check_gallery)
    return [retrieval.score(*vectors, gallery) for gallery, vectors in found]


def evaluate_texts(model: str | Path, langs: list[str], split: str, overrides: dict[str, Any]) -> list[TextByRetrieval]:
    """Score the captions that images retrieve, as ``evaluate`` measures whether they do.

    Raises:
        UserError: see ``evaluate``; or an image has fewer than two captions.
    """
    found = _embedded(model, langs, split, overrides, text_by_retrieval.check_gallery)
    return [text_by_retrieval.score(*vectors, gallery) for gallery, vectors in found]


def _embedded(
    model: str | Path, langs: list[str], split: str, overrides: dict[str, Any], check: Callable[[PairTable], None]
) -> Iterator[tuple[PairTable, tuple[Vectors, Vectors]]]:
    """Embed the gallery of each language, after a check of it."""
    stand_in = _stand_in(model, langs, split, overrides) if external_models.is_external(str(model)) else None
    encoder, own = open_model(model, overrides.get("cache"))
    codes, recipe = _codes(model, langs, own), own or stand_in
    assert recipe is not None  # a run has its own, a peer the other
    with progress_bars():
        photos = Gallery(encoder)
        for code in codes:
            languages.load(code)
            table = recipes.merge(recipe.table(), {**overrides, "lang": code})
            asked = recipes.validate(table, f"{model} with --set")
            gallery = load_split(asked, split)
            check(gallery)
            yield gallery, photos.embed(gallery)


def _stand_in(model: str | Path, langs: list[str], split: str, overrides: dict[str, Any]) -> Recipe:
    """Give a recipe that says where a peer's data is, which has none.

    The data is looked at, so that what is wrong with it is said before a large model is loaded.

    Raises:
        UserError: no data or no language is named, or the source lacks a language or the split.
    """
    codes = _codes(model, langs, None)
    if "name" not in overrides.get("source", {}):
        raise UserError(f"say what to measure {model} on with --data or --suite")
    found = [recipes.resolve("starter", code, "projection", {"source": overrides["source"]}) for code in codes]
    for one in found:
        load_table(one, split)
    return found[0]


def evaluate_suite(model: str | Path, suite: Suite, langs: list[str], *, allow_absent: bool) -> SuiteResult:
    """Measure a finished run or a peer on a suite, in these languages (a run's own when none is given) or in ``all``.

    Raises:
        UserError: see ``open_model`` and ``suite.find``.
    """
    # Before a large model is loaded, if that can be.
    ready = suites.find(suite, langs, allow_absent=allow_absent) if langs else None
    encoder, recipe = open_model(model)
    if ready is None:
        ready = suites.find(suite, _codes(model, [], recipe), allow_absent=allow_absent)
    with progress_bars():
        return suites.run(encoder, ready)


def retention(folder: Path, langs: list[str], overrides: dict[str, Any]) -> Retention:
    """Ask a finished run's towers what they knew before training, in its own language and these.

    Their captions are taken as translations of each other, in the run's own source or another. Without languages it is
    those that the run was tested in.

    Raises:
        UserError: there is no finished run, or the source lacks a language.
    """
    aligner, recipe = checkpoint.load(folder)
    asked_in = {"test": {"languages": [code for code in langs or recipe.test.languages if code != recipe.lang]}}
    table = recipes.merge(recipe.table(), recipes.merge(overrides, asked_in))
    asked = knowledge.probes(recipes.validate(table, f"{folder} with --set"))
    return knowledge.evaluate(aligner, asked, knowledge.Config())


def classify(
    model: str | Path, images: str, langs: list[str], names: str | None, split: str | None, prompts: tuple[str, ...]
) -> list[ZeroShot]:
    """Classify labelled images without training, in each language (a run's own when none is given).

    Args:
        model: a run's folder or a peer.
        images: a folder of a folder a class, a known dataset (see ``labelled_sets``), or another of the hub.
        langs: ``all`` is every language of Babel-ImageNet's file.
        names: a file of the classes' names (see ``class_names.read``); the data names them in English.
        split: of a dataset of the hub; its own test split when not given.
        prompts: templates; the language's own when there are none, ``openai`` for those of CLIP's authors.
        say: told which images cannot be read and are left out.

    Raises:
        UserError: see ``open_model``; no labelled images, unreadable ones, or no names in a language.
    """
    found = labelled.load(images, split)
    templates = class_names.openai_templates() if prompts == (class_names.OPENAI,) else prompts
    # Before a large model is loaded, if that can be.
    wanted = _named(found, images, langs, names) if langs else None
    encoder, recipe = open_model(model)
    wanted = wanted or _named(found, images, _codes(model, [], recipe), names)
    results = []
    with progress_bars():
        bad = _unreadable(found)
        photos = Gallery(encoder)
        for gallery in (one.without(bad) for one in wanted):
            texts = zeroshot.prompts(gallery, zeroshot.Config(prompts=templates))
            centres = zeroshot.centres(encoder.encode_text(texts[1]), texts[2])
            results.append(zeroshot.score(photos.images(gallery.images), centres, gallery, texts[0]))
    return results


def _unreadable(found: Labelled) -> frozenset[str]:
    """Give the keys of images that cannot be opened.

    Raises:
        UserError: they are more than one in a hundred.
    """
    ids = tuple(map(str, range(len(found.images))))
    table = PairTable(found.name, found.lang, "human", ids, found.images, ids, np.arange(len(ids)))
    _, checked = image_check.check_images(table, max_corrupt=0.01)
    if checked.bad:
        logger.info(f"{found.name}: left out {checked.describe()}")
    return frozenset(found.images[int(one.image_id)].key() for one in checked.bad)


def _named(found: Labelled, images: str, langs: list[str], names: str | None) -> list[Labelled]:
    """Name the classes in each language."""
    if langs == ["all"]:
        langs = class_names.languages(names or "", map(languages.load, languages.names()))
    named = []
    for lang in map(languages.load, langs):
        if names is not None:
            table = class_names.read(names, lang, found.classes)
            named.append(found.named(lang.code, table, Path(names).name))
        elif lang.code != found.lang:
            raise UserError(
                f"the classes of {images} are named in {found.lang}: give names in {lang.code} with --names"
            )
        elif not all(found.names):
            raise UserError(f"the classes of {images} are called by numbers: give their names with --names")
        else:
            named.append(found)
    return named


def _codes(model: str | Path, langs: list[str], recipe: Recipe | None) -> list[str]:
    if langs:
        return langs
    if recipe is None:
        raise UserError(f"{model} has no language of its own: say which with --lang")
    return [recipe.lang]


def next_commands(folder: Path, run: Run) -> list[str]:
    """Suggest what to try after training."""
    other = next((strategy for strategy in ("lilt", "projection", "lit") if strategy != run.strategy), "full")
    return [
        f"polyalign eval {folder} --lang {run.lang},en",
        f"polyalign train --lang {run.lang} --strategy {other} --recipe {run.recipe['name']}",
        f"polyalign strategies --recipe {run.recipe['name']}",
    ]
