"""Retention: how much of the towers' original ability is left after training.

Everything is measured on the features of the towers, before the projections. Transfer to languages that were not
trained on is measured by retrieval in them (``Run.test``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Group
from rich.table import Table
from torch import nn
from transformers import AutoModelForMaskedLM

from polyalign.config.language import load_language
from polyalign.config.resolve import validate
from polyalign.config.schema import Recipe, merge
from polyalign.config.values import Whole
from polyalign.data.labelled import Labelled, starter_objects
from polyalign.data.load import load_table, refuse_equal_captions
from polyalign.data.pairs import PairTable
from polyalign.evaluation import ranking, tables
from polyalign.evaluation.encoders import Encoder, aligner_of
from polyalign.evaluation.results import Change, Retention
from polyalign.models import checkpoint
from polyalign.models.aligner import Aligner
from polyalign.models.build import build_aligner
from polyalign.models.towers.text import TextTower
from polyalign.models.towers.vision import VisionTower
from polyalign.utils.errors import UserError

if TYPE_CHECKING:
    from polyalign.evaluation.evaluate import Request

Features = npt.NDArray[np.float32]


class Config(BaseModel):
    """Maximum numbers of sentences and labelled images, and the ``neighbours`` k of the k-NN probe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sentences: Whole = Field(default=500, ge=2, le=10**6)
    perplexity_sentences: Whole = Field(default=50, ge=0, le=10**6)
    images: Whole = Field(default=1000, ge=2, le=10**6)
    neighbours: Whole = Field(default=10, ge=1, le=1000)
    batch_size: Whole = Field(default=128, ge=1, le=10**5)


@dataclass(frozen=True)
class Probes:
    """Data to measure the towers on before and after training.

    ``before`` is an aligner with pretrained towers. ``parallel`` are tables in several languages: the first captions of
    an image in all of them are taken for translations. ``labelled`` are images with classes, or None.
    """

    before: Aligner
    parallel: tuple[PairTable, ...] = ()
    labelled: Labelled | None = None


@dataclass(frozen=True)
class Answers:
    """Measurements of the towers of one aligner.

    ``layers`` are the features (N, W) of every stage of each tower, see ``layer_features``; for text in the first
    language.
    """

    sentences: dict[str, float]
    perplexity: dict[str, float]
    probe: dict[str, float]
    layers: dict[Literal["vision", "text"], list[Features]]


def probes(recipe: Recipe) -> Probes:
    """Return the probes for a recipe: its test captions in all languages it is tested in, and labelled images.

    Only the starter world has labels.

    Raises:
        UserError: a tower or the data cannot be loaded.
    """
    alone = {"parallel": None, "parent": None, "teacher": None, "optim": {"loss": "infonce"}}
    parallel = tuple(load_table(recipe, "test", lang) for lang in (recipe.lang, *recipe.transfer))
    refuse_equal_captions(parallel)
    untouched = validate(merge(recipe.table(), {"strategy": {"name": "projection"}, **alone}), recipe.name)
    return Probes(
        before=build_aligner(untouched),
        parallel=parallel,
        labelled=starter_objects(load_language(recipe.lang)) if recipe.source["name"] == "starter" else None,
    )


def galleries(request: Request, config: Config) -> Iterator[Probes]:
    """Yield the probes for a run, in its language and others (default: those it was tested in).

    Raises:
        UserError: the model is external, or the source lacks one of the languages.
    """
    own = request.recipe
    if own is None:
        raise UserError(f"{request.model} is not a run: retention compares the towers of a run before and after")
    checkpoint.check_pretrained(Path(request.model))
    others = [code for code in request.langs or own.test.languages if code not in own.langs]
    table = merge(own.table(), merge(dict(request.overrides), {"test": {"languages": others}}))
    yield probes(validate(table, f"{request.model} with --set"))


def score(encoder: Encoder, gallery: Probes, config: Config) -> Retention:
    """Measure the towers of a run before and after training.

    Raises:
        UserError: the tables of ``gallery`` share no images, or the encoder is an external model.
    """
    return measure(aligner_of(encoder), gallery, config)


def render(results: Sequence[Retention]) -> Group:
    """Show a table for each result."""
    return Group(*map(_table, results))


def _table(result: Retention) -> Table:
    kept = "" if result.kept is None else f": {tables.percent(result.kept)} percent"
    table = tables.table(f"Retention{kept}", "", ("before", "after"))
    for what, changes in (("sentence retrieval", result.sentences), ("probe", result.probe)):
        for key, change in changes.items():
            table.add_row(f"{what}, {key}", tables.percent(change.before), tables.percent(change.after))
    for lang, change in result.perplexity.items():
        table.add_row(f"pseudo-perplexity, {lang}", f"{change.before:.1f}", f"{change.after:.1f}")
    for tower, layers in result.cka.items():
        table.add_row(f"CKA of the {tower} tower's layers, lowest first", "", "  ".join(f"{v:.2f}" for v in layers))
    for tower, distance in result.moved.items():
        table.add_row(f"distance moved, {tower} output", "", f"{distance:.3f}")
    return table


def measure(aligner: Aligner, gallery: Probes, config: Config) -> Retention:
    """Measure the towers of an aligner and those of ``gallery.before``, and compare.

    Raises:
        UserError: the tables of ``gallery`` share no images.
    """
    before = answer(gallery.before.to(aligner.logit_scale.device), gallery, config)
    after = answer(aligner, gallery, config)
    # A tower may have a new block on top: layers are compared from the lowest, and outputs with each other.
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


def answer(aligner: Aligner, probes: Probes, config: Config) -> Answers:
    """Measure the towers of one aligner.

    Raises:
        UserError: the tables share no images.
    """
    aligner.eval()
    spoken = _parallel(probes.parallel, config.sentences)
    layers: dict[Literal["vision", "text"], list[Features]] = {}
    outputs: dict[str, Features] = {}
    perplexity: dict[str, float | None] = {}
    probe: dict[str, float] = {}
    for lang, sentences in spoken.items():
        by_layer = layer_features(aligner.text, sentences, config.batch_size, lang)
        layers.setdefault("text", by_layer)
        outputs[lang] = _unit(by_layer[-1])
        if few := sentences[: config.perplexity_sentences]:
            perplexity[lang] = pseudo_perplexity(aligner.text, few, config.batch_size, lang)
    if probes.labelled is not None:
        rows = _spread(len(probes.labelled.images), config.images)
        images = [probes.labelled.images[row] for row in rows]
        layers["vision"] = layer_features(aligner.vision, images, config.batch_size)
        name = f"{config.neighbours}-nn {probes.labelled.name}"
        probe[name] = knn_accuracy(_unit(layers["vision"][-1]), probes.labelled.labels[rows], config.neighbours)
    return Answers(
        sentences={f"{a}-{b}": sentence_retrieval(outputs[a], outputs[b]) for a, b in combinations(outputs, 2)},
        perplexity={lang: value for lang, value in perplexity.items() if value is not None},
        probe=probe,
        layers=layers,
    )


def sentence_retrieval(one: Features, other: Features) -> float:
    """Return the share of sentences that retrieve their translation, averaged over both directions.

    Args:
        one: (N, W) unit features of the sentences in one language.
        other: (N, W) those of their translations.
    """
    there, back = ranking.both_directions(one, other, np.arange(len(one)))
    return float((there.rank == 1).mean() + (back.rank == 1).mean()) / 2


def knn_accuracy(features: Features, labels: ranking.Ints, neighbours: int) -> float:
    """Return the accuracy of a k-NN classifier weighted by similarity, tested on every second image of a class.

    Args:
        features: (N, W) unit features.
        labels: (N,) classes.
        neighbours: k.
    """
    place = np.tril(labels[:, None] == labels, -1).sum(axis=1)  # number of earlier images of the same class
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
def layer_features(
    tower: TextTower | VisionTower, items: Sequence[Any], batch_size: int = 128, lang: str | None = None
) -> list[Features]:
    """Return the features (N, W) of every stage of a tower, averaged over real tokens or positions, the output last.

    Args:
        tower: the text tower for sentences, the vision tower for images.
        items: N sentences or images.
        batch_size: number of items computed at once.
        lang: the language of the sentences.
    """
    batches: list[list[torch.Tensor]] = []
    for start in range(0, len(items), batch_size):
        batch = items[start : start + batch_size]
        x: Any
        if isinstance(tower, TextTower):
            x = tower.collate(tower.tokenize(list(batch), lang)).to(_device(tower))
        else:
            x = torch.stack([tower.transform(image.open()) for image in batch]).to(_device(tower))
        batches.append(tower.pooled_layers(x))
    return [torch.cat(parts).float().cpu().numpy() for parts in zip(*batches, strict=True)]


@torch.no_grad()
def pseudo_perplexity(
    tower: TextTower, sentences: Sequence[str], batch_size: int = 128, lang: str | None = None
) -> float | None:
    """Return exp of the mean cross-entropy of each token when it is masked (Salazar et al., 2020).

    The language-model head is that of the pretrained model; None if it has none.
    """
    head = _language_model(tower)
    if head is None:
        return None
    special = set(tower.tokenizer.all_special_ids)
    masked, truth, places = [], [], []
    for ids in tower.tokenize(list(sentences), lang):
        for place, token in enumerate(ids):
            if token not in special:
                masked.append([*ids[:place], tower.tokenizer.mask_token_id, *ids[place + 1 :]])
                truth.append(token)
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
    """Return the tower's encoder with the pretrained language-model head; None if there is no head."""
    config = cast(Any, tower.model.config)
    if not any(name.endswith("ForMaskedLM") for name in config.architectures or ()):
        return None
    model = AutoModelForMaskedLM.from_pretrained(
        config.name_or_path, revision=tower.revision, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    )
    setattr(model, model.base_model_prefix, tower.model)
    return cast(nn.Module, model.eval().to(_device(tower)))


def _parallel(tables: Sequence[PairTable], count: int) -> dict[str, list[str]]:
    """Return by language the first captions of at most ``count`` images that all tables have."""
    if not tables:
        return {}
    first = [
        {table.image_ids[i]: caption for i, caption in zip(table.image_of[::-1], table.captions[::-1], strict=True)}
        for table in tables
    ]
    shared = [image_id for image_id in first[0] if all(image_id in captions for captions in first)][::-1]
    if not shared:
        raise UserError(f"there is no parallel text: {', '.join(t.lang for t in tables)} share no images")
    kept = [shared[row] for row in _spread(len(shared), count)]
    return {table.lang: [captions[i] for i in kept] for table, captions in zip(tables, first, strict=True)}


def _spread(total: int, count: int) -> list[int]:
    """Return at most ``count`` evenly spaced indices below ``total``, so that all sorted classes occur."""
    return [int(row) for row in np.unique(np.linspace(0, total - 1, min(total, count)).round())]


def _changes(before: dict[str, float], after: dict[str, float]) -> dict[str, Change]:
    return {key: Change(before=round(before[key], 6), after=round(after[key], 6)) for key in before if key in after}


def _unit(features: Features) -> Features:
    unit: Features = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    return unit


def _device(tower: nn.Module) -> torch.device:
    return next(tower.parameters()).device
