"""Text by retrieval: the caption an image retrieves, scored by chrF against the image's other captions.

It credits a wrong caption that says nearly the right thing, which recall does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict
from rich.table import Table
from sacrebleu.metrics.chrf import CHRF

from polyalign.data.pairs import PairTable
from polyalign.evaluation import ranking, tables
from polyalign.evaluation.encoders import Encoder
from polyalign.evaluation.results import TextByRetrieval
from polyalign.utils.errors import UserError


class Config(BaseModel):
    """``seed`` draws the captions of the random baseline."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = 0


def score(encoder: Encoder, gallery: PairTable, config: Config) -> TextByRetrieval:
    """Embed the gallery and score the captions that its images retrieve.

    Raises:
        UserError: an image has fewer than two captions.
    """
    check_gallery(gallery)
    images, captions = encoder.encode_image(gallery.images), encoder.encode_text(gallery.captions)
    return measure(images, captions, gallery, seed=config.seed)


def render(results: Sequence[TextByRetrieval]) -> Table:
    """Show one gallery a row."""
    return tables.text_by_retrieval_table(results)


def measure(
    image_emb: ranking.Floats, caption_emb: ranking.Floats, gallery: PairTable, *, seed: int = 0
) -> TextByRetrieval:
    """Score from embeddings: the nearest caption, a random one of another image, and one of the image's own.

    Args:
        image_emb: (I, D), rows of unit length.
        caption_emb: (C, D), rows of unit length.
        gallery: the captions; every image has at least two.
        seed: of the random captions.
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
    """Refuse a gallery in which an image has no other caption to be scored against.

    Raises:
        UserError: it has such an image, or a single one, or is searched in folds.
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
    """Score a chosen caption for each image against the image's captions other than it."""
    references = [
        [gallery.captions[c] for c in captions if c != pick] for pick, captions in zip(chosen, own, strict=True)
    ]
    most = max(map(len, references))
    # sacrebleu takes the nth references of all sentences together, and None where a sentence has fewer.
    streams: Any = [[refs[n] if n < len(refs) else None for refs in references] for n in range(most)]
    return float(chrf.corpus_score([gallery.captions[pick] for pick in chosen], streams).score)
