"""Text by retrieval: chrF of the caption that an image retrieves, against the image's other captions.

Unlike recall, it gives credit to a wrong caption with nearly the right meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict
from rich.table import Table
from sacrebleu.metrics.chrf import CHRF

from polyalign.config.values import Seed
from polyalign.data.pairs import PairTable
from polyalign.evaluation import ranking, tables
from polyalign.evaluation.encoders import Encoder
from polyalign.evaluation.results import TextByRetrieval
from polyalign.utils.errors import UserError


class Config(BaseModel):
    """``seed`` draws the captions of the random baseline."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: Seed = 0


def score(encoder: Encoder, gallery: PairTable, config: Config) -> TextByRetrieval:
    """Embed the gallery and score the captions that its images retrieve.

    Raises:
        UserError: an image has fewer than two captions.
    """
    check_gallery(gallery)
    images, captions = encoder.encode_image(gallery.images), encoder.encode_text(gallery.captions, gallery.lang)
    return measure(images, captions, gallery, seed=config.seed)


def render(results: Sequence[TextByRetrieval]) -> Table:
    """Show one gallery per row: the chrF of the retrieved caption, between those of a random and an own one."""
    table = tables.table(
        "Text by retrieval: chrF of the retrieved caption against the image's others",
        "gallery",
        ("images", "captions", "random caption", "retrieved", "own caption"),
        "; ".join(dict.fromkeys(one.signature for one in results)),
    )
    for one in results:
        scores = (f"{score:.1f}" for score in (one.random, one.chrf, one.own))
        table.add_row(f"{one.lang} {one.gallery}", f"{one.images:,}", f"{one.captions:,}", *scores)
    return table


def measure(
    image_emb: ranking.Floats, caption_emb: ranking.Floats, gallery: PairTable, *, seed: int = 0
) -> TextByRetrieval:
    """Score from embeddings: the nearest caption, a random one of another image, and the image's first.

    Args:
        image_emb: (I, D), rows of unit length.
        caption_emb: (C, D), rows of unit length.
        gallery: the captions; every image has at least two.
        seed: seed of the random captions.
    """
    check_gallery(gallery)
    counts = np.bincount(gallery.image_of)
    own = np.split(np.argsort(gallery.image_of, kind="stable"), np.cumsum(counts)[:-1])
    rng = np.random.default_rng(seed)
    others = (np.arange(len(own)) + rng.integers(1, len(own), size=len(own))) % len(own)
    chrf = CHRF()
    return TextByRetrieval(
        gallery=gallery.name,
        lang=gallery.lang,
        images=len(gallery.images),
        captions=len(gallery.captions),
        chrf=_chrf(chrf, ranking.nearest(image_emb, caption_emb).tolist(), own, gallery),
        random=_chrf(chrf, [int(rng.choice(own[other])) for other in others], own, gallery),
        own=_chrf(chrf, [int(captions[0]) for captions in own], own, gallery),
        signature=str(chrf.get_signature()),
    )


def check_gallery(gallery: PairTable) -> None:
    """Check that there are two or more images, with two or more captions each, and no folds.

    Raises:
        UserError: it is not so.
    """
    if gallery.fold_of is not None:
        raise UserError(f'text by retrieval searches a whole gallery, and "{gallery.name}" is searched in folds')
    counts = np.bincount(gallery.image_of, minlength=len(gallery.images))
    fewest = min(counts.tolist(), default=0)
    if len(counts) < 2 or fewest < 2:
        raise UserError(
            f'text by retrieval needs two images or more, with two captions or more each; "{gallery.name}" in '
            f'"{gallery.lang}" has {len(counts):,} images and as few as {fewest} captions an image'
        )


def _chrf(chrf: CHRF, chosen: Sequence[int], own: Sequence[ranking.Ints], gallery: PairTable) -> float:
    """Score one caption for each image against the other captions of the image."""
    references = [
        [gallery.captions[c] for c in captions if c != pick] for pick, captions in zip(chosen, own, strict=True)
    ]
    most = max(map(len, references))
    # sacrebleu takes lists of the nth references of all sentences, with None if a sentence has fewer.
    streams: Any = [[refs[n] if n < len(refs) else None for refs in references] for n in range(most)]
    return float(chrf.corpus_score([gallery.captions[pick] for pick in chosen], streams).score)
