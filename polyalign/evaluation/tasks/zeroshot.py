"""Zero-shot classification: an image belongs to the class whose prompts it is nearest to."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from polyalign.config import language as languages
from polyalign.data.labelled import Labelled
from polyalign.data.pairs import PairTable
from polyalign.evaluation import metrics
from polyalign.evaluation.results import Score, ZeroShot
from polyalign.models.aligner import Aligner
from polyalign.models.embed import embed
from polyalign.utils.errors import UserError


class Config(BaseModel):
    """``prompts`` are templates with ``{}`` for the class's name; the language's own when none is given."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompts: tuple[str, ...] = ()
    batch_size: int = Field(default=256, ge=1)


def evaluate(aligner: Aligner, gallery: Labelled, config: Config) -> ZeroShot:
    """Embed images and prompts, and classify.

    A class is the mean of its names' prompts, each of unit length, as CLIP does it.

    Raises:
        UserError: a template has no ``{}``.
    """
    templates, texts, class_of = prompts(gallery, config)
    # A prompt belongs to no image in particular; the table only carries both to the towers.
    table = PairTable(
        name=gallery.name,
        lang=gallery.lang,
        origin="generated",
        image_ids=tuple(map(str, range(len(gallery.images)))),
        images=gallery.images,
        captions=tuple(texts),
        image_of=np.zeros(len(texts), dtype=np.int64),
    )
    embedded = embed(aligner, table, batch_size=config.batch_size)
    return score(embedded.images, centres(embedded.captions, class_of), gallery, templates)


def prompts(gallery: Labelled, config: Config) -> tuple[tuple[str, ...], list[str], metrics.Ints]:
    """Give the templates, the prompts (P,) that they make of every name, and the class of each prompt (P,).

    Raises:
        UserError: a template has no ``{}``.
    """
    templates = _templates(gallery.lang, config)
    texts = [template.replace("{}", name) for names in gallery.names for name in names for template in templates]
    counts = [len(names) * len(templates) for names in gallery.names]
    return templates, texts, np.repeat(np.arange(len(gallery.names)), counts)


def score(
    image_emb: metrics.Floats, class_emb: metrics.Floats, gallery: Labelled, templates: tuple[str, ...]
) -> ZeroShot:
    """Classify from embeddings; equal scores rank ahead of the right class.

    Args:
        image_emb: (N, D), rows of unit length.
        class_emb: (C, D), rows of unit length.
        gallery: the labels.
        templates: how the class embeddings were made.
    """
    ranked, _ = metrics.both_directions(class_emb, image_emb, gallery.labels)
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


def _templates(lang: str, config: Config) -> tuple[str, ...]:
    own = languages.load(lang).prompts if lang in languages.names() else ()
    templates = config.prompts or own or ("{}",)
    for template in templates:
        if "{}" not in template:
            raise UserError(f'the prompt "{template}" has no {{}} for the name of the class')
    return templates


def centres(prompts: npt.NDArray[np.float32], class_of: metrics.Ints) -> metrics.Floats:
    """Average unit vectors (P, D) by class and bring them back to unit length: (C, D)."""
    starts = np.flatnonzero(np.diff(class_of, prepend=-1))
    centres = np.add.reduceat(prompts.astype(np.float64), starts, axis=0)
    unit: metrics.Floats = centres / np.linalg.norm(centres, axis=1, keepdims=True).clip(1e-12)
    return unit


def _share(right: npt.NDArray[np.bool_]) -> Score:
    """Give a share with its Wilson interval."""
    from scipy.stats import binomtest  # slow to import, and training measures no such share

    bounds = binomtest(int(right.sum()), len(right)).proportion_ci(0.95, method="wilson")
    return Score(value=float(right.mean()), low=float(bounds.low), high=float(bounds.high))


def _mean_per_class(right: npt.NDArray[np.bool_], labels: metrics.Ints) -> Score:
    """Average over the classes that have images; the interval is the normal one for a sum of independent shares."""
    images = np.bincount(labels)
    present = images > 0
    shares = np.bincount(labels, weights=right)[present] / images[present]
    error = float(np.sqrt((shares * (1 - shares) / images[present]).sum())) / len(shares)
    mean = float(shares.mean())
    return Score(value=mean, low=max(0.0, mean - 1.96 * error), high=min(1.0, mean + 1.96 * error))
