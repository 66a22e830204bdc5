"""Export a run: write it, open it with the library of the target, and compare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from polyalign.config.schema import Recipe
from polyalign.evaluation.encoders import Aligned
from polyalign.evaluation.model import Model
from polyalign.evaluation.tasks import retrieval
from polyalign.models import checkpoint
from polyalign.models.aligner import Aligner
from polyalign.models.strategies import lora
from polyalign.serving.export.check import RECORD, Export, Pairs, Vectors, test_pairs
from polyalign.training.inherit import weights_digest
from polyalign.utils import storage
from polyalign.utils.errors import DISK_ERRORS, UserError, did_you_mean, first_line
from polyalign.utils.progress import progress
from polyalign.utils.text import clean
from polyalign.utils.versions import versions

TARGETS = {
    "onnx": "polyalign.serving.export.onnx",
    "sentence-transformers": "polyalign.serving.export.sentence_transformers",
    "open-clip": "polyalign.serving.export.open_clip",
    "transformers": "polyalign.serving.export.transformers",
}
MERGED = "polyalign"
"""The target of ``polyalign merge``: a run that contains its towers."""


@dataclass(frozen=True)
class Source:
    """A run to export; the low-rank updates of its ``aligner`` are merged into the weights.

    ``out`` is the final place of the folder that is written, ``repo`` its name on the hub, and ``int8`` asks for
    quantized graphs beside those in float32.
    """

    run: Path
    aligner: Aligner
    recipe: Recipe
    out: Path
    repo: str | None = None
    int8: bool = False


@dataclass(frozen=True)
class Options:
    """How to export: see ``Source``; ``overrides`` name other data to compare on, and ``images`` is the number."""

    repo: str | None = None
    int8: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict)
    images: int = 1000


def export(run: Path, target: str, out: Path, options: Options | None = None) -> Export:
    """Export a finished run into the new folder ``out``.

    Raises:
        UserError: no finished run, the target cannot hold it or its library is missing, ``out`` exists, or the vectors
            of the exported model differ; then nothing is left in ``out``.
    """
    options = options or Options()
    module = find_target(target)
    for option, given in (("int8", options.int8), ("repo", options.repo)):
        if given and option not in module.OPTIONS:
            raise UserError(f"--{option} is not for --to {target}: leave it out")
    with storage.new_folder(out) as partial:
        aligner, recipe = checkpoint.load(run)
        for tower in (aligner.vision, aligner.text):
            lora.merge(tower)
        _check_holds(target, module, aligner, recipe)
        task = "merging" if target == MERGED else f"exporting to {target}"
        pairs = test_pairs(run, aligner, recipe.lang, options.overrides, options.images)
        progress(task, 0, 3)
        own = Vectors.of(Model(Aligned(str(run), checkpoint.load(run)[0], recipe, recipe.cache, run)), pairs.table)
        progress(task, 1, 3)
        source = Source(run, aligner, recipe, out.absolute(), options.repo, options.int8)
        with _reported(target):
            module.write(partial, source)
            progress(task, 2, 3)
            made = _compare(target, module, partial, own, pairs)
            if hasattr(module, "finish"):
                module.finish(partial, source)
        bias = aligner.logit_bias
        record = Export(
            target=target,
            run=run.name,
            checkpoint=weights_digest(run),
            strategy=recipe.strategy["name"],
            lang=recipe.lang,
            scale=aligner.scale.item(),
            bias=None if bias is None else bias.item(),
            versions={**versions(), **{name: version(name) for name in module.LIBRARIES}},
            **made,
        )
        record.save_json(partial / RECORD)
        progress(task, 3, 3)
    return record


def find_target(target: str) -> ModuleType:
    """Return the module of a target.

    Raises:
        UserError: there is no such target, or a library that it needs is not installed.
    """
    if target == MERGED:
        return import_module("polyalign.serving.merge")
    if target not in TARGETS:
        raise UserError(f'unknown target "{target}": {did_you_mean(target, TARGETS)}')
    module = import_module(TARGETS[target])
    if missing := [name for name, imported in module.LIBRARIES.items() if find_spec(imported) is None]:
        raise UserError(f"--to {target} needs {', '.join(missing)}: pip install 'polyalign[{module.EXTRA}]'")
    return module


@contextmanager
def _reported(target: str) -> Iterator[None]:
    """Turn what another library raises on a model that it does not take into one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and (error.filename is not None or error.errno in DISK_ERRORS):
            raise
        problem = f"{type(error).__name__}: {clean(first_line(error), 300)}"
        raise UserError(f"this model cannot be exported to {target}: {problem}; choose another --to") from error


def _check_holds(target: str, module: ModuleType, aligner: Aligner, recipe: Recipe) -> None:
    if (problem := module.problem(aligner)) is not None:
        others = [name for name, path in TARGETS.items() if import_module(path).problem(aligner) is None]
        can = f"use --to {' or '.join(others)}" if others else "no target can"
        raise UserError(f"{target} cannot hold this {recipe.strategy['name']} model: {problem}; {can}")


def _compare(target: str, module: ModuleType, folder: Path, own: Vectors, pairs: Pairs) -> dict[str, Any]:
    """Open the written model and compare it with the run; return fields of the record."""
    recall = {}
    found = {name: Vectors.of(encoder, pairs.table) for name, encoder in module.reload(folder).items()}
    main = next(iter(found))
    image, text = found[main].difference(own)
    if not (image <= module.TOLERANCE and text <= module.TOLERANCE):  # also if one is not a number
        raise UserError(
            f"the {target} export differs from the run by {image:.1g} for images and {text:.1g} for text, and the "
            f"limit is {module.TOLERANCE:g}: it is not written; please report it with the recipe"
        )
    if len(found) > 1 and pairs.real:
        recall = {
            name: retrieval.measure(one.images, one.texts, pairs.table).mean_recall.value for name, one in found.items()
        }
    return {
        "compared_on": pairs.what,
        "images": len(own.images),
        "texts": len(own.texts),
        "image": image,
        "text": text,
        "tolerance": module.TOLERANCE,
        "recall": recall,
    }
