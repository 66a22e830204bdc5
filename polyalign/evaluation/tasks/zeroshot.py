"""Zero-shot classification: an image belongs to the class whose prompts it is nearest to."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict
from rich.table import Table

from polyalign.config.language import language_codes, load_language
from polyalign.data import class_names
from polyalign.data.image_check import check_images
from polyalign.data.labelled import Labelled, load
from polyalign.data.pairs import PairTable
from polyalign.evaluation import ranking, tables
from polyalign.evaluation.encoders import Encoder
from polyalign.evaluation.results import Score, ZeroShot
from polyalign.utils.errors import UserError

if TYPE_CHECKING:
    from polyalign.evaluation.evaluate import Request

logger = logging.getLogger(__name__)


class Config(BaseModel):
    """What to classify, and how the classes are named.

    ``images`` is a folder with a folder for each class, a known dataset (`polyalign datasets`) or another Hugging Face
    dataset, of which ``split`` is used (default: its own test split). ``names`` is a file of class names (see
    ``class_names.read``); by default the data names them, in English. ``prompts`` are templates with ``{}`` for the
    name; default: the language's own; ``openai``: those of CLIP's authors.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: str
    names: str | None = None
    split: str | None = None
    prompts: tuple[str, ...] = ()


def galleries(request: Request, config: Config) -> Iterator[Labelled]:
    """Yield the labelled images with class names in each language; ``all`` is every language that has names.

    Raises:
        UserError: no labelled images, more than one in a hundred unreadable, or no names in a language.
    """
    found = load(config.images, config.split)
    wanted = list(_named(found, config, request.codes()))
    bad = _unreadable(found)
    yield from (one.without(bad) for one in wanted)


def score(encoder: Encoder, gallery: Labelled, config: Config) -> ZeroShot:
    """Embed images and prompts, and classify.

    The embedding of a class is the mean over the prompts of its names, each of unit length, as in CLIP.

    Raises:
        UserError: a template has no ``{}``.
    """
    templates, texts, class_of = prompts(gallery, config)
    images = encoder.encode_image(gallery.images)
    return measure(images, centres(encoder.encode_text(texts, gallery.lang), class_of), gallery, templates)


def render(results: Sequence[ZeroShot]) -> Table:
    """Show one language per row; languages with different numbers of classes cannot be compared."""
    table = tables.table(
        "Zero-shot classification: percent right, with 95 % intervals",
        "dataset",
        ("images", "classes", "chance", "top-1", "top-5", "mean per class"),
        "\n".join(dict.fromkeys(map(_prompted, results))),
    )
    for one in results:
        counts = (f"{one.images:,}", f"{one.classes:,}", tables.percent(1 / one.classes))
        scores = map(tables.percent, (one.top1, one.top5, one.mean_per_class))
        table.add_row(f"{one.lang} {one.dataset}", *counts, *scores)
    return table


def _prompted(result: ZeroShot) -> str:
    shown = " | ".join(result.templates[:3]) + f" | ... ({len(result.templates)})" * (len(result.templates) > 3)
    return f"{result.lang} prompts: {shown}; names: {result.named_by}"


def measure(
    image_emb: ranking.Floats, class_emb: ranking.Floats, gallery: Labelled, templates: tuple[str, ...]
) -> ZeroShot:
    """Classify from embeddings; wrong classes with an equal score rank ahead of the right one.

    Args:
        image_emb: (N, D), rows of unit length.
        class_emb: (C, D), rows of unit length.
        gallery: the labels.
        templates: the prompts of the class embeddings.
    """
    ranked, _ = ranking.both_directions(class_emb, image_emb, gallery.labels)
    return ZeroShot(
        dataset=gallery.name,
        lang=gallery.lang,
        templates=templates,
        named_by=gallery.named_by,
        classes=len(gallery.names),
        images=len(gallery.images),
        ties=int(np.count_nonzero(ranked.tied)),
        top1=_share(ranked.rank <= 1),
        top5=_share(ranked.rank <= 5),
        mean_per_class=_mean_per_class(ranked.rank <= 1, gallery.labels),
    )


def prompts(gallery: Labelled, config: Config) -> tuple[tuple[str, ...], list[str], ranking.Ints]:
    """Return the templates, the prompts (P,) of all names, and the class of each prompt (P,).

    Raises:
        UserError: a template has no ``{}``.
    """
    templates = class_names.openai_templates() if config.prompts == (class_names.OPENAI,) else config.prompts
    if not templates and gallery.lang in language_codes():
        templates = load_language(gallery.lang).prompts
    templates = templates or ("{}",)
    for template in templates:
        if "{}" not in template:
            raise UserError(f'the prompt "{template}" has no {{}} for the name of the class')
    texts = [template.replace("{}", name) for names in gallery.names for name in names for template in templates]
    counts = [len(names) * len(templates) for names in gallery.names]
    return templates, texts, np.repeat(np.arange(len(gallery.names)), counts)


def _named(found: Labelled, config: Config, langs: Sequence[str]) -> Iterator[Labelled]:
    if list(langs) == ["all"]:
        langs = class_names.languages(config.names or "", map(load_language, language_codes()))
    for lang in map(load_language, langs):
        if config.names is not None:
            table = class_names.read(config.names, lang, found.classes)
            yield found.named(lang.code, table, Path(config.names).name)
        elif lang.code != found.lang:
            raise UserError(
                f"the classes of {config.images} are named in {found.lang}: give names in {lang.code} with --names"
            )
        elif not all(found.names):
            raise UserError(f"the classes of {config.images} are numbers: give their names with --names")
        else:
            yield found


def _unreadable(found: Labelled) -> frozenset[str]:
    """Return the keys of images that cannot be opened; more than one in a hundred are a ``UserError``."""
    ids = tuple(map(str, range(len(found.images))))
    table = PairTable(found.name, found.lang, "human", ids, found.images, ids, np.arange(len(ids)))
    _, checked = check_images(table, max_corrupt=0.01)
    if checked.bad:
        logger.info(f"{found.name}: left out {checked.describe()}")
    return frozenset(found.images[int(one.image_id)].key() for one in checked.bad)


def centres(prompts: npt.NDArray[np.float32], class_of: ranking.Ints) -> ranking.Floats:
    """Return the means (C, D) of unit vectors (P, D) by class, scaled to unit length."""
    starts = np.flatnonzero(np.diff(class_of, prepend=-1))
    sums = np.add.reduceat(prompts.astype(np.float64), starts, axis=0)
    unit: ranking.Floats = sums / np.linalg.norm(sums, axis=1, keepdims=True).clip(1e-12)
    return unit


def _share(right: npt.NDArray[np.bool_]) -> Score:
    """Return a share with its Wilson interval."""
    from scipy.stats import binomtest

    bounds = binomtest(int(right.sum()), len(right)).proportion_ci(0.95, method="wilson")
    return Score(value=float(right.mean()), low=float(bounds.low), high=float(bounds.high))


def _mean_per_class(right: npt.NDArray[np.bool_], labels: ranking.Ints) -> Score:
    """Return the mean over classes that have images; its interval is normal, for a sum of independent shares."""
    images = np.bincount(labels)
    present = images > 0
    shares = np.bincount(labels, weights=right)[present] / images[present]
    error = float(np.sqrt((shares * (1 - shares) / images[present]).sum())) / len(shares)
    mean = float(shares.mean())
    return Score(value=mean, low=max(0.0, mean - 1.96 * error), high=min(1.0, mean + 1.96 * error))
