"""Scores of machine-made captions against human references: chrF++, BLEU and spBLEU by sacrebleu."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.table import Column
from sacrebleu.metrics.base import Metric
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.utils import SACREBLEU_DIR

from polyalign.config.language import Lang
from polyalign.data import image_ids
from polyalign.data.fetch import is_offline
from polyalign.data.pairs import Origin, PairTable
from polyalign.utils.errors import UserError
from polyalign.utils.plain_table import PlainTable

_BOOTSTRAP = 1000
_FLORES_MODEL = Path(SACREBLEU_DIR) / "models" / "flores200sacrebleuspm"


class AuditScore(BaseModel, frozen=True):
    """A score from 0 to 100 with the half-width of its 95 % bootstrap interval, or why it could not be computed.

    ``human`` is the score of the first reference caption of each image against the image's other references. It is an
    upper reference point: captions of one image differ between people, so 100 is out of reach.
    """

    metric: str
    score: float | None = None
    plus_minus: float | None = None
    human: float | None = None
    signature: str | None = None
    missing_because: str | None = None


class AuditReport(BaseModel, frozen=True):
    """Scores of the captions of one table against another, over the images in both."""

    lang: str
    candidate: str
    candidate_origin: Origin
    reference: str
    reference_origin: Origin
    images: int
    captions: int
    captions_left_out: int
    references_per_caption: float
    scores: tuple[AuditScore, ...]


def score_captions(candidate: PairTable, reference: PairTable, lang: Lang) -> AuditReport:
    """Score each caption of ``candidate`` against all captions of the same image in ``reference``.

    Images are matched by id or by the photo that the id identifies (``image_ids.photo``). Captions of images without
    a reference are left out.

    Raises:
        UserError: the languages differ, or no image is shared.
    """
    if candidate.lang != reference.lang:
        raise UserError(
            f"{candidate.name} is in {candidate.lang} and {reference.name} in {reference.lang}: "
            "captions can only be scored against the same language"
        )
    references = defaultdict[str, list[str]](list)
    for image, caption in zip(reference.image_of, reference.captions, strict=True):
        references[_key(reference.image_ids[image])].append(caption)
    keys = [_key(image_id) for image_id in candidate.image_ids]
    kept = [c for c, image in enumerate(candidate.image_of) if keys[image] in references]
    if not kept:
        first = [table.image_ids[0] if table.image_ids else "none" for table in (candidate, reference)]
        raise UserError(f"{candidate.name} and {reference.name} share no images (first ids: {' and '.join(first)})")
    texts = [candidate.captions[c] for c in kept]
    against = [references[keys[candidate.image_of[c]]] for c in kept]
    shared = {keys[candidate.image_of[c]] for c in kept}
    others = [(first, rest) for key in shared for first, *rest in [references[key]] if rest]
    # sacrebleu's default tokenizer splits at spaces; its Chinese tokenizer splits characters.
    tokenizer = "13a" if lang.has_spaces else "zh" if lang.script in ("Hani", "Hans", "Hant") else "char"
    metrics = {"chrF++": CHRF(word_order=2), "BLEU": BLEU(tokenize=tokenizer), "spBLEU": _spbleu()}
    return AuditReport(
        lang=candidate.lang,
        candidate=candidate.name,
        candidate_origin=candidate.origin,
        reference=reference.name,
        reference_origin=reference.origin,
        images=len(shared),
        captions=len(kept),
        captions_left_out=len(candidate) - len(kept),
        references_per_caption=sum(map(len, against)) / len(against),
        scores=tuple(_score(name, metric, texts, against, others) for name, metric in metrics.items()),
    )


def _key(image_id: str) -> str:
    return image_ids.photo(image_id) or image_id


def _spbleu() -> Metric | str:
    """Return BLEU over Flores-200 pieces, whose model sacrebleu downloads on first use, or why it is not available."""
    if is_offline() and not _FLORES_MODEL.is_file():
        return f"offline, and its SentencePiece model is not in {_FLORES_MODEL}"
    try:
        return BLEU(tokenize="flores200")
    except (OSError, RuntimeError, SystemExit) as error:  # sacrebleu exits on an untrusted certificate
        return f"its SentencePiece model could not be loaded from {_FLORES_MODEL}: {error}"


def _score(
    name: str,
    metric: Metric | str,
    texts: list[str],
    against: list[list[str]],
    others: list[tuple[str, list[str]]],
) -> AuditScore:
    if isinstance(metric, str):
        return AuditScore(metric=name, missing_because=metric)
    human = None
    if others:
        human = metric.corpus_score([first for first, _ in others], _streams([rest for _, rest in others])).score
    result: Any = metric.corpus_score(texts, _streams(against), n_bootstrap=_BOOTSTRAP)
    signature = str(metric.get_signature())
    return AuditScore(metric=name, score=result.score, plus_minus=result._ci, human=human, signature=signature)


def _streams(against: Sequence[Sequence[str]]) -> Any:
    """Transpose references to sacrebleu's format: all first references, all second ones, ..., padded with None."""
    return list(map(list, zip_longest(*against)))


def render(report: AuditReport) -> PlainTable:
    """Format a report as a table."""
    title = (
        f"{report.candidate} ({report.candidate_origin}) against {report.reference} ({report.reference_origin}), "
        f"{report.lang}: {report.captions:,} captions of {report.images:,} images, "
        f"{report.references_per_caption:.1f} references each"
    )
    if report.captions_left_out:
        title += f"; captions left out because their images have no reference: {report.captions_left_out:,}"
    numbers = (Column(name, justify="right") for name in ("score", "people"))
    table = PlainTable("", *numbers, Column("signature", overflow="fold"), title=title, title_justify="left")
    for one in report.scores:
        if one.score is None:
            table.add_row(one.metric, "-", "-", f"not scored: {one.missing_because}")
        else:
            human = "-" if one.human is None else f"{one.human:.1f}"
            table.add_row(one.metric, f"{one.score:.1f} ± {one.plus_minus:.1f}", human, one.signature)
    return table
