"""Evaluation of a finished run or an external model, on a task or on a suite of benchmarks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from polyalign.config.language import describe_error, load_language, unknown_key_hint
from polyalign.config.plugins import load_plugin
from polyalign.config.resolve import read_recipe, resolve, validate
from polyalign.config.run_files import RECIPE, check_finished
from polyalign.config.schema import Recipe, merge
from polyalign.data.load import load_split, load_table, refuse_equal_captions
from polyalign.data.pairs import PairTable
from polyalign.data.trained_images import warn_if_trained_on
from polyalign.evaluation import external_models, suites
from polyalign.evaluation.encoders import Aligned, Encoder, ImageMemory, device
from polyalign.evaluation.suites import Suite, SuiteResult
from polyalign.models import checkpoint
from polyalign.utils.errors import UserError
from polyalign.utils.progress import progress_bars


@dataclass(frozen=True)
class Request:
    """What to evaluate a model on.

    ``recipe`` is that of the run, None for an external model. ``langs`` are language codes (default: those of the run).
    ``overrides`` are keys of the recipe to change, such as ``source``.
    """

    model: str
    recipe: Recipe | None
    langs: tuple[str, ...] = ()
    split: str = "test"
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, model: str | Path | Encoder, *request: Any) -> Request:
        """Make the request for a model, without loading its towers."""
        if not isinstance(model, str | Path):
            return cls(model.name, model.recipe if isinstance(model, Aligned) else None, *request)
        recipe = None
        if not external_models.is_external(str(model)):
            check_finished(Path(model))
            recipe = read_recipe(Path(model) / RECIPE)
        return cls(str(model), recipe, *request)

    def codes(self) -> list[str]:
        """Return the languages, by default those of the run.

        Raises:
            UserError: the model is external, and there are no ``langs``.
        """
        if self.langs:
            return list(self.langs)
        if self.recipe is None:
            raise UserError(f"{self.model} has no default language: name one with --lang")
        return list(self.recipe.langs)

    def recipe_for(self, lang: str) -> Recipe:
        """Return the recipe that loads the data in a language.

        Raises:
            UserError: an unknown language or setting, or an external model without data.
        """
        load_language(lang)
        if self.recipe is not None:
            table = merge(self.recipe.in_language(lang), dict(self.overrides))
            return validate(table, f"{self.model} with --set")
        if "name" not in self.overrides.get("source", {}):
            raise UserError(f"name the data to evaluate {self.model} on with --data or --suite")
        return resolve("starter", lang, "projection", {"source": self.overrides["source"]})

    def tables(self) -> Iterator[PairTable]:
        """Yield the split in each language, without unreadable images and empty captions.

        Raises:
            UserError: the source lacks a language or the split, or does not state the languages of its captions.
        """
        recipes = [self.recipe_for(code) for code in self.codes()]
        if {recipe.lang for recipe in recipes} != {self.recipe and self.recipe.lang}:
            refuse_equal_captions(self._captions(recipes))  # before a large model is loaded
        for recipe in recipes:
            yield load_split(recipe, self.split)

    def _captions(self, recipes: Sequence[Recipe]) -> Iterator[PairTable]:
        """Yield the table of each recipe, and that in the language of the run if the source has it."""
        yield from (load_table(recipe, self.split) for recipe in recipes)
        if self.recipe is not None and self.recipe.lang not in self.codes():
            with suppress(UserError):  # other data need not have the language of the run
                yield load_table(self.recipe_for(self.recipe.lang), self.split)


def evaluate(
    model: str | Path | Encoder,
    task: str = "retrieval",
    *,
    langs: Sequence[str] = (),
    split: str = "test",
    overrides: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    gallery: Any = None,
) -> list[Any]:
    """Evaluate a finished run or an external model on a task.

    Args:
        model: folder of a run, name of an external model (``hf:NAME``, ``open_clip:NAME/PRETRAINED``, ``mclip:NAME``),
            or a loaded encoder.
        task: name of a task: one of ``evaluation/tasks``, of the user's ``./tasks``, or of an installed package.
        langs: language codes; default: those of the run.
        split: ``train``, ``dev`` or ``test``.
        overrides: keys of the run's recipe to change, such as ``{"source": {...}}`` or ``{"cache": {...}}``.
        options: settings of the task, checked by its ``Config``.
        gallery: what to evaluate on, such as a ``PairTable``; default: the data of the run, or of ``overrides``.

    Returns:
        One result for each gallery, usually one per language.

    Raises:
        UserError: no such model, task or setting, or data that cannot be evaluated on.
    """
    module = load_plugin("tasks", task)
    config = configure(module, task, options or {})
    request = Request.of(model, tuple(langs), split, overrides or {})
    alone = request.recipe is None or (request.recipe.parent is None and request.recipe.teacher is None)
    checked_in_training = alone and gallery is None and split != "train" and "source" not in request.overrides
    with progress_bars():
        own = getattr(module, "galleries", lambda request, _: request.tables())
        galleries: Iterator[Any] = own(request, config) if gallery is None else iter([gallery])
        first = next(galleries)  # reports wrong data before a large model is loaded
        encoder = ImageMemory(open_model(model, request.overrides.get("cache")))
        results = []
        for one in itertools.chain([first], galleries):
            if not checked_in_training:
                _check_training_images(encoder.encoder, one)
            results.append(module.score(encoder, one, config))
        return results


def evaluate_suite(
    model: str | Path | Encoder, suite: Suite, langs: Sequence[str] = (), *, allow_absent: bool = False
) -> SuiteResult:
    """Evaluate a finished run or an external model on a suite, in these languages or in ``("all",)``.

    Raises:
        UserError: no such model, or benchmarks of the suite are missing and ``allow_absent`` is false.
    """
    codes = Request.of(model, tuple(langs)).codes()
    ready = suites.find(suite, codes, allow_absent=allow_absent)
    with progress_bars():
        encoder = open_model(model)
        for benchmark in ready.here:  # one table is enough: all languages have the same photos
            _check_training_images(encoder, benchmark.first)
        return suites.run(encoder, ready)


def _check_training_images(encoder: Encoder, gallery: Any) -> None:
    if isinstance(encoder, Aligned) and isinstance(gallery, PairTable):
        warn_if_trained_on(encoder.folder, gallery)


def open_model(
    model: str | Path | Encoder, cache: Mapping[str, Any] | None = None, *, text_only: bool = False
) -> Encoder:
    """Load a finished run, or an external model by name, onto the accelerator if there is one.

    ``cache`` changes keys of the section ``cache`` of the recipe for this evaluation. With ``text_only`` the vision
    tower of a run is not loaded, and the text tower stays on the processor, which is quick for single sentences.

    Raises:
        UserError: there is no finished run, external model or key of this name.
    """
    if not isinstance(model, str | Path):
        return model
    if external_models.is_external(str(model)):
        return external_models.load(str(model))
    folder = Path(model)
    aligner, recipe = checkpoint.load(folder, text_only=text_only)
    changed = validate(merge(recipe.table(), {"cache": dict(cache or {})}), f"{model} with --set")
    return Aligned(str(model), aligner if text_only else aligner.to(device()), recipe, changed.cache, folder)


def configure(module: ModuleType, task: str, options: Mapping[str, Any]) -> Any:
    """Return the ``Config`` of a task.

    Raises:
        UserError: an unknown setting, or a value out of its range.
    """
    if options and not module.Config.model_fields:
        raise UserError(f'task {task}: unknown option "{next(iter(options))}": this task has no options')
    try:
        return module.Config(**options)
    except ValidationError as error:
        raise UserError(f"task {task}: {describe_error(error)}{unknown_key_hint(error, module.Config)}") from error


def renderer(task: str) -> Callable[[Sequence[Any]], Any] | None:
    """Return the function that shows the results of a task, if it has one."""
    return getattr(load_plugin("tasks", task), "render", None)
