"""Retrieval between images and captions, in both directions."""

from __future__ import annotations

import hashlib

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from polyalign import metrics
from polyalign.aligner import Aligner
from polyalign.embed import embed
from polyalign.errors import UserError
from polyalign.pairs import PairTable
from polyalign.results import Direction, DirectionName, Retrieval, Score


class Config(BaseModel):
    """How to embed, and how finely to resample for the intervals."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch_size: int = Field(default=256, ge=1)
    resamples: int = Field(default=1000, ge=100)


def evaluate(aligner: Aligner, gallery: PairTable, config: Config) -> Retrieval:
    """Embed the gallery and measure retrieval in it.

    Raises:
        UserError: the gallery is empty, or has images without a caption.
    """
    check_gallery(gallery)
    embedded = embed(aligner, gallery, batch_size=config.batch_size)
    return score(embedded.images, embedded.captions, gallery, resamples=config.resamples)


def score(
    image_emb: metrics.Floats, caption_emb: metrics.Floats, gallery: PairTable, *, resamples: int = 1000
) -> Retrieval:
    """Measure retrieval from embeddings.

    Args:
        image_emb: (I, D), rows of unit length, in the order of the gallery's images.
        caption_emb: (C, D), rows of unit length, in the order of the gallery's captions.
        gallery: which captions belong to which image, and what is being measured.
        resamples: bootstrap draws over images behind each interval.
    """
    check_gallery(gallery)
    text_to_image, image_to_text = metrics.both_directions(image_emb, caption_emb, gallery.image_of)
    hits = metrics.gather_hits(text_to_image.rank, image_to_text.rank, gallery.image_of)
    low, high = metrics.interval(metrics.resample([[hits]], resamples=resamples)[0])
    scores = [
        Score(value=value, low=bottom, high=top)
        for value, bottom, top in zip(metrics.recalls([hits]).tolist(), low.tolist(), high.tolist(), strict=True)
    ]
    in_order = np.array_equal(gallery.image_of, np.arange(len(gallery.images)))
    return Retrieval(
        gallery=gallery.name,
        lang=gallery.lang,
        origin=gallery.origin,
        fingerprint=fingerprint(gallery),
        images=len(gallery.images),
        captions=len(gallery.captions),
        image_of=() if in_order else tuple(gallery.image_of.tolist()),
        text_to_image=_direction("text_to_image", text_to_image, scores[:3]),
        image_to_text=_direction("image_to_text", image_to_text, scores[3:6]),
        mean_recall=scores[6],
    )


def check_gallery(gallery: PairTable) -> None:
    """Refuse a gallery in which not every image has a caption.

    Raises:
        UserError: it is empty or has bare images.
    """
    if not len(gallery):
        raise UserError(f'the gallery "{gallery.name}" has no captions in "{gallery.lang}"')
    bare = np.flatnonzero(np.bincount(gallery.image_of, minlength=len(gallery.images)) == 0)
    if len(bare):
        first = gallery.image_ids[bare[0]]
        raise UserError(f'{len(bare)} images of the gallery "{gallery.name}" have no caption, "{first}" is the first')


def fingerprint(gallery: PairTable) -> str:
    """Hash the image ids, the captions and which belong together, in order: 16 hex digits."""
    digest = hashlib.sha256()
    for part in (*gallery.image_ids, *gallery.captions, *map(str, gallery.image_of.tolist())):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:16]


def _direction(name: DirectionName, ranked: metrics.Ranked, scores: list[Score]) -> Direction:
    return Direction(
        direction=name,
        recall=dict(zip(metrics.RECALL_AT, scores, strict=True)),
        median_rank=float(np.median(ranked.rank)),
        mean_rank=float(ranked.rank.mean()),
        queries=len(ranked.rank),
        ties=int(np.count_nonzero(ranked.tied)),
        ranks=tuple(ranked.rank.tolist()),
    )
