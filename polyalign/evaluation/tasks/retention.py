"""Retention: what the towers could do before alignment, and can still do after it.

Everything is measured on the towers' own features, before the projections. Whether alignment transfers to languages
that were not trained on is measured by retrieval in them (``Run.test``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Group
from torch import nn
from transformers import AutoModelForMaskedLM

from polyalign.config.language import load_language
from polyalign.config.resolve import validate
from polyalign.config.schema import Recipe, merge
from polyalign.data.labelled import Labelled, starter_objects
from polyalign.data.load import load_table
from polyalign.data.pairs import ImageRef, PairTable
from polyalign.evaluation import ranking, tables
from polyalign.evaluation.encoders import Encoder, aligner_of
from polyalign.evaluation.results import Change, Retention
from polyalign.models.aligner import Aligner
from polyalign.models.build import build_aligner
from polyalign.models.towers.common import masked_pool
from polyalign.models.towers.text import TextTower
from polyalign.models.towers.vision import VisionTower
from polyalign.utils.errors import UserError

if TYPE_CHECKING:
    from polyalign.evaluation.evaluate import Request

Features = npt.NDArray[np.float32]
T = TypeVar("T")


class Config(BaseModel):
    """Numbers of sentences and labelled images; the pseudo-perplexity is slow and takes fewer sentences.

    ``neighbours`` is the k of the k-NN probe.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sentences: int = Field(default=500, ge=2)
    perplexity_sentences: int = Field(default=50, ge=0)
    images: int = Field(default=1000, ge=2)
    neighbours: int = Field(default=10, ge=1)
    batch_size: int = Field(default=128, ge=1)


@dataclass(frozen=True)
class Probes:
    """What the towers are asked before and after alignment.

    ``before`` is an aligner whose towers are as pretrained. ``parallel`` are tables in several languages: the first
    captions of an image that all of them have are translations. ``labelled`` are images with classes, or None.
    """

    before: Aligner
    parallel: tuple[PairTable, ...] = ()
    labelled: Labelled | None = None


@dataclass(frozen=True)
class Answers:
    """What the towers of an aligner answer.

    ``layers`` holds for each tower the features (N, W) of every stage, mean-pooled over tokens, its output last; for
    text in the first of the languages.
    """

    sentences: dict[str, float]
    perplexity: dict[str, float]
    probe: dict[str, float]
    layers: dict[Literal["vision", "text"], list[Features]]


def probes(recipe: Recipe) -> Probes:
    """Return the probes that a recipe's data allows: its test captions in its own language and those it is tested in.

    Labels exist only in the starter world, whose objects are known.

    Raises:
        UserError: a tower or the data cannot be loaded.
    """
    untouched = validate(merge(recipe.model_dump(exclude_none=True), {"strategy": {"name": "projection"}}), recipe.name)
    return Probes(
        before=build_aligner(untouched),
        parallel=tuple(load_table(recipe, "test", lang) for lang in (recipe.lang, *recipe.test.languages)),
        labelled=starter_objects(load_language(recipe.lang)) if recipe.source["name"] == "starter" else None,
    )


def galleries(request: Request, config: Config) -> Iterator[Probes]:
    """Yield what a run's towers are asked, in its language and others (default: those it was tested in).

    Raises:
        UserError: an external model, which has no towers of before, or a source without one of the languages.
    """
    own = request.recipe
    if own is None:
        raise UserError(f"{request.model} is not a run: retention compares the towers of a run before and after")
    others = [code for code in request.langs or own.test.languages if code != own.lang]
    table = merge(own.table(), merge(dict(request.overrides), {"test": {"languages": others}}))
    yield probes(validate(table, f"{request.model} with --set"))


def score(encoder: Encoder, gallery: Probes, config: Config) -> Retention:
    """Ask the towers before and after alignment, and compare.

    Raises:
        UserError: the tables of ``gallery`` share no images, or the encoder is an external model.
    """
    return measure(aligner_of(encoder), gallery, config)


def render(results: Sequence[Retention]) -> Group:
    """Show a table for each result."""
    return Group(*map(tables.retention_table, results))


def measure(aligner: Aligner, gallery: Probes, config: Config) -> Retention:
    """Ask the towers of the aligner and those of ``gallery.before``, and compare.

    Raises:
        UserError: the tables of ``gallery`` share no images.
    """
    before = gallery.before.to(aligner.logit_scale.device)
    return compare(ask(before, gallery, config), ask(aligner, gallery, config))


def ask(aligner: Aligner, probes: Probes, config: Config) -> Answers:
    """Answer the probes with the towers of one aligner; the answers can be compared with many others.

    Raises:
        UserError: the tables share no images.
    """
    aligner.eval()
    spoken = _parallel(probes.parallel, config.sentences)
    layers: dict[Literal["vision", "text"], list[Features]] = {}
    outputs = {}
    for lang, sentences in spoken.items():
        by_layer = text_layers(aligner.text, sentences, config.batch_size)
        layers.setdefault("text", by_layer)
        outputs[lang] = _unit(by_layer[-1])
    probe = {}
    if probes.labelled is not None:
        rows = _spread(len(probes.labelled.images), config.images)
        images = [probes.labelled.images[row] for row in rows]
        layers["vision"] = image_layers(aligner.vision, images, config.batch_size)
        name = f"{config.neighbours}-nn {probes.labelled.name}"
        probe[name] = knn_accuracy(_unit(layers["vision"][-1]), probes.labelled.labels[rows], config.neighbours)
    return Answers(
        sentences={f"{a}-{b}": sentence_retrieval(outputs[a], outputs[b]) for a, b in combinations(outputs, 2)},
        perplexity=_perplexities(aligner.text, spoken, config),
        probe=probe,
        layers=layers,
    )


def compare(before: Answers, after: Answers) -> Retention:
    """Compare the answers of two aligners to the same probes."""
    # A tower may have grown a block: its layers are compared from below, and its output with the output.
    twins = {
        tower: [*zip(old[:-1], after.layers[tower], strict=False), (old[-1], after.layers[tower][-1])]
        for tower, old in before.layers.items()
    }
    return Retention(
        sentences=_changes(before.sentences, after.sentences),
        perplexity=_changes(before.perplexity, after.perplexity),
        probe=_changes(before.probe, after.probe),
        cka={tower: tuple(round(cka(old, new), 6) for old, new in pairs) for tower, pairs in twins.items()},
        moved={
            tower: round(float(np.linalg.norm(_unit(pairs[-1][0]) - _unit(pairs[-1][1]), axis=1).mean()), 6)
            for tower, pairs in twins.items()
        },
    )


def sentence_retrieval(one: Features, other: Features) -> float:
    """Return the share of sentences that find their translation, averaged over both directions.

    Args:
        one: (N, W) unit features of the sentences in one language.
        other: (N, W) those of their translations.
    """
    there, back = ranking.both_directions(one, other, np.arange(len(one)))
    return float((there.rank == 1).mean() + (back.rank == 1).mean()) / 2


def knn_accuracy(features: Features, labels: ranking.Ints, neighbours: int) -> float:
    """Classify every second image of a class by its nearest among the others, weighted by similarity.

    Args:
        features: (N, W) unit features.
        labels: (N,) classes.
        neighbours: k.
    """
    place = np.empty(len(labels), dtype=np.int64)
    order = np.argsort(labels, kind="stable")
    place[order] = np.arange(len(labels)) - np.searchsorted(labels[order], labels[order])
    known, asked = np.flatnonzero(place % 2 == 0), np.flatnonzero(place % 2 == 1)
    near = features[asked] @ features[known].T
    nearest = np.argsort(-near, axis=1, kind="stable")[:, :neighbours]
    votes = np.zeros((len(asked), int(labels.max()) + 1))
    rows = np.arange(len(asked))[:, None]
    np.add.at(votes, (rows, labels[known][nearest]), np.take_along_axis(near, nearest, axis=1))
    return float((votes.argmax(axis=1) == labels[asked]).mean())


def cka(one: Features, other: Features) -> float:
    """Return the linear centred kernel alignment of two sets of features of the same inputs (Kornblith et al., 2019).

    Args:
        one: (N, V).
        other: (N, W).
    """
    x, y = (features.astype(np.float64) - features.mean(axis=0, dtype=np.float64) for features in (one, other))
    norm = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(np.linalg.norm(y.T @ x) ** 2 / norm) if norm > 0 else 0.0


@torch.no_grad()
def text_layers(tower: TextTower, sentences: Sequence[str], batch_size: int = 128) -> list[Features]:
    """Return the features (N, W) of every stage of the text tower, mean-pooled over real tokens, the output last."""

    def run(batch: Sequence[str]) -> list[torch.Tensor]:
        x = tower.collate(tower.tokenize(list(batch))).to(_device(tower))
        *hidden, features = tower.layers(x)
        return [*(masked_pool(one, x.mask, "mean") for one in hidden), features]

    return _by_layer(sentences, batch_size, run)


@torch.no_grad()
def image_layers(tower: VisionTower, images: Sequence[ImageRef], batch_size: int = 128) -> list[Features]:
    """Return the features (N, W) of every stage of the vision tower, averaged over positions, the output last."""

    def run(batch: Sequence[ImageRef]) -> list[torch.Tensor]:
        x = torch.stack([tower.transform(image.open()) for image in batch]).to(_device(tower))
        places = {2: (), 3: (1,), 4: (1, 2) if getattr(tower.model, "output_fmt", "") == "NHWC" else (2, 3)}
        return [one.mean(places[one.ndim]) if one.ndim > 2 else one for one in tower.layers(x)]

    return _by_layer(images, batch_size, run)


def _by_layer(items: Sequence[T], size: int, run: Callable[[Sequence[T]], list[torch.Tensor]]) -> list[Features]:
    batches = [run(items[start : start + size]) for start in range(0, len(items), size)]
    return [torch.cat(parts).float().cpu().numpy() for parts in zip(*batches, strict=True)]


@torch.no_grad()
def pseudo_perplexity(tower: TextTower, sentences: Sequence[str], batch_size: int = 128) -> float | None:
    """Mask every token in turn and give exp of its mean surprise (Salazar et al., 2020); None where there is no head.

    The head is the one of the tower's own pretrained model, on the tower as it is now.
    """
    head = _language_model(tower)
    if head is None:
        return None
    special = set(tower.tokenizer.all_special_ids)
    masked, truth, places = [], [], []
    for ids in tower.tokenize(list(sentences)):
        for place in (place for place, token in enumerate(ids) if token not in special):
            masked.append([*ids[:place], tower.tokenizer.mask_token_id, *ids[place + 1 :]])
            truth.append(ids[place])
            places.append(place)
    surprise = 0.0
    for start in range(0, len(masked), batch_size):
        rows = slice(start, start + batch_size)
        batch = tower.collate(masked[rows]).to(_device(tower))
        logits = head(input_ids=batch.ids, attention_mask=batch.mask.long()).logits
        at_mask = logits[torch.arange(len(logits)), torch.tensor(places[rows])]
        surprise += float(F.cross_entropy(at_mask.cpu(), torch.tensor(truth[rows]), reduction="sum"))
    return float(np.exp(surprise / len(truth)))


def _language_model(tower: TextTower) -> nn.Module | None:
    """Put the pretrained language-model head on the tower's encoder; None if the pretrained model has no head."""
    config = cast(Any, tower.model.config)
    if not any(name.endswith("ForMaskedLM") for name in config.architectures or ()):
        return None
    model = AutoModelForMaskedLM.from_pretrained(
        config.name_or_path, revision=tower.revision, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    )
    setattr(model, model.base_model_prefix, tower.model)
    return cast(nn.Module, model.eval().to(_device(tower)))


def _perplexities(tower: TextTower, spoken: dict[str, list[str]], config: Config) -> dict[str, float]:
    found = {}
    for lang, sentences in spoken.items():
        if config.perplexity_sentences:
            found[lang] = pseudo_perplexity(tower, sentences[: config.perplexity_sentences], config.batch_size)
    return {lang: value for lang, value in found.items() if value is not None}


def _parallel(tables: Sequence[PairTable], count: int) -> dict[str, list[str]]:
    """Take in every language the first caption of the same images, at most ``count`` of those that all have."""
    if not tables:
        return {}
    first = [dict(zip(_ids(table)[::-1], table.captions[::-1], strict=True)) for table in tables]
    shared = [image_id for image_id in first[0] if all(image_id in captions for captions in first)][::-1]
    if not shared:
        raise UserError(f"there is no parallel text: {', '.join(t.lang for t in tables)} share no images")
    kept = [shared[row] for row in _spread(len(shared), count)]
    return {table.lang: [captions[i] for i in kept] for table, captions in zip(tables, first, strict=True)}


def _ids(table: PairTable) -> list[str]:
    """Return the image id of every caption."""
    return [table.image_ids[image] for image in table.image_of]


def _spread(total: int, count: int) -> list[int]:
    """Choose ``count`` of ``total`` at even distances, so that sorted classes are all met."""
    return [int(row) for row in np.unique(np.linspace(0, total - 1, min(total, count)).round())]


def _changes(before: dict[str, float], after: dict[str, float]) -> dict[str, Change]:
    return {key: Change(before=round(before[key], 6), after=round(after[key], 6)) for key in before if key in after}


def _unit(features: Features) -> Features:
    unit: Features = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    return unit


def _device(tower: nn.Module) -> torch.device:
    return next(tower.parameters()).device
