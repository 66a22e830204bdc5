"""Retrieval between images and captions, in both directions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict
from rich.table import Table

from polyalign.data.pairs import PairTable
from polyalign.evaluation import ranking, tables
from polyalign.evaluation.encoders import Encoder
from polyalign.evaluation.results import Direction, DirectionName, Retrieval, Score, recall_scores
from polyalign.utils.errors import UserError


class Config(BaseModel):
    """No settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def score(encoder: Encoder, gallery: PairTable, config: Config) -> Retrieval:
    """Embed the gallery and measure retrieval in it.

    Raises:
        UserError: the gallery is empty, or has images without a caption.
    """
    check_gallery(gallery)
    images, captions = encoder.encode_image(gallery.images), encoder.encode_text(gallery.captions, gallery.lang)
    return measure(images, captions, gallery)


def render(results: Sequence[Retrieval]) -> Table:
    """Show one gallery per row."""
    table = tables.table(
        "Retrieval: percent found, ± half of the 95 % interval",
        "gallery",
        ["images", *(name.replace(" ", "\n") for name in tables.RECALL_NAMES)],
        "\n".join(dict.fromkeys(map(tables.gallery_line, results))),
    )
    for one in results:
        table.add_row(f"{one.lang} {one.gallery}", tables.searched(one), *map(tables.plus_minus, one.scores))
    return table


def measure(image_emb: ranking.Floats, caption_emb: ranking.Floats, gallery: PairTable) -> Retrieval:
    """Measure retrieval from embeddings; the intervals cover test images only.

    Args:
        image_emb: (I, D), rows of unit length, in the order of the gallery.
        caption_emb: (C, D), rows of unit length, in the order of the gallery.
        gallery: which caption belongs to which image.
    """
    check_gallery(gallery)
    text_to_image, image_to_text = _rank(image_emb, caption_emb, gallery)
    hits = ranking.gather_hits(text_to_image.rank, image_to_text.rank, gallery.image_of, gallery.fold_of)
    scores = recall_scores([hits])
    in_order = np.array_equal(gallery.image_of, np.arange(len(gallery.images)))
    return Retrieval(
        gallery=gallery.name,
        lang=gallery.lang,
        origin=gallery.origin,
        fingerprint=fingerprint(gallery),
        images=len(gallery.images),
        captions=len(gallery.captions),
        image_of=() if in_order else tuple(gallery.image_of.tolist()),
        fold_of=() if gallery.fold_of is None else tuple(gallery.fold_of.tolist()),
        text_to_image=_direction("text_to_image", text_to_image, scores[:3]),
        image_to_text=_direction("image_to_text", image_to_text, scores[3:6]),
        mean_recall=scores[6],
    )


def check_gallery(gallery: PairTable) -> None:
    """Check that a gallery has captions, and every image at least one.

    Raises:
        UserError: it does not.
    """
    if not len(gallery):
        raise UserError(f'the gallery "{gallery.name}" has no captions in "{gallery.lang}"')
    bare = np.flatnonzero(np.bincount(gallery.image_of, minlength=len(gallery.images)) == 0)
    if len(bare):
        first = gallery.image_ids[bare[0]]
        raise UserError(f'{len(bare)} images of the gallery "{gallery.name}" have no caption, "{first}" is the first')


def fingerprint(gallery: PairTable) -> str:
    """Return a hash of the image ids, captions, their images and folds, in order: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    folds = [] if gallery.fold_of is None else gallery.fold_of.tolist()
    for part in (*gallery.image_ids, *gallery.captions, *map(str, [*gallery.image_of.tolist(), *folds])):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:16]


def _rank(
    image_emb: ranking.Floats, caption_emb: ranking.Floats, gallery: PairTable
) -> tuple[ranking.Ranked, ranking.Ranked]:
    """Rank in both directions, within each fold if the gallery has folds."""
    if gallery.fold_of is None:
        return ranking.both_directions(image_emb, caption_emb, gallery.image_of)
    sizes = (len(gallery.captions), len(gallery.images))
    ways = [ranking.Ranked(rank=np.zeros(size, np.int64), tied=np.zeros(size, np.bool_)) for size in sizes]
    for fold in np.unique(gallery.fold_of):
        images = np.flatnonzero(gallery.fold_of == fold)
        captions = np.flatnonzero(gallery.fold_of[gallery.image_of] == fold)
        image_of = np.searchsorted(images, gallery.image_of[captions])
        found = ranking.both_directions(image_emb[images], caption_emb[captions], image_of)
        for way, part, rows in zip(ways, found, (captions, images), strict=True):
            way.rank[rows], way.tied[rows] = part.rank, part.tied
    return ways[0], ways[1]


def _direction(name: DirectionName, ranked: ranking.Ranked, scores: Sequence[Score]) -> Direction:
    return Direction(
        direction=name,
        recall=dict(zip(ranking.RECALL_AT, scores, strict=True)),
        median_rank=float(np.median(ranked.rank)),
        mean_rank=float(ranked.rank.mean()),
        queries=len(ranked.rank),
        ties=int(np.count_nonzero(ranked.tied)),
        ranks=tuple(ranked.rank.tolist()),
    )
