"""Records of results, saved as JSON, from which tables and tests are made without the models.

Values are fractions, seconds and bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, AliasChoices, Field, model_validator

from polyalign.config.values import Code
from polyalign.data.pairs import Origin
from polyalign.evaluation import ranking
from polyalign.evaluation.intervals import recall_intervals
from polyalign.evaluation.record import Record

DirectionName = Literal["text_to_image", "image_to_text"]
_ROUNDING = 1e-9


def _named(recipe: dict[str, Any]) -> dict[str, Any]:
    """Check the parts of a resolved recipe that tables use."""
    if not isinstance(recipe.get("name"), str):
        raise ValueError("it has no name")
    if not isinstance(recipe.get("train", {}), dict):
        raise ValueError("train is not a table")
    return recipe


def _halved(tuned: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
    """Check the record of successive halving, which tables use."""
    for row in (tuned.get("part", ()), *tuned.get("dev_mean_recall", ())):
        if not isinstance(row, list | tuple) or not all(one is None or isinstance(one, int | float) for one in row):
            raise ValueError("part and dev_mean_recall are not numbers")
    return tuned


RecipeTable = Annotated[dict[str, Any], AfterValidator(_named)]
Tuned = Annotated[dict[str, tuple[Any, ...]], AfterValidator(_halved)]
Count = Annotated[int, Field(ge=1)]


class Score(Record):
    """A value and its 95 % interval, as fractions."""

    value: float
    low: float
    high: float

    @model_validator(mode="after")
    def _is_in_its_interval(self) -> Self:
        if self.value < self.low - _ROUNDING or self.value > self.high + _ROUNDING:
            raise ValueError(f"the value {self.value:g} is not in its interval [{self.low:g}, {self.high:g}]")
        return self


def scores_of(*columns: npt.NDArray[np.float64]) -> tuple[Score, ...]:
    """Return M scores from their values, lower and upper limits, each (M,)."""
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return tuple(Score(value=value, low=low, high=high) for value, low, high in rows)


def recall_scores(seeds: Sequence[ranking.Hits]) -> tuple[Score, ...]:
    """Return the six recalls and the mean recall, averaged over seeds, with the intervals of ``recall_intervals``.

    Args:
        seeds: the hits of each training seed, all on the same gallery.
    """
    return scores_of(*recall_intervals([one.hits for one in seeds], seeds[0].queries))


class Direction(Record):
    """Retrieval in one direction.

    ``recall`` is the hit rate at 1, 5 and 10. ``ties`` is the number of queries whose best right answer has the same
    score as a wrong one. ``ranks`` are those of each query's best right answer, in the order of the gallery, or empty.
    """

    direction: DirectionName
    recall: dict[int, Score]
    median_rank: float
    mean_rank: float
    queries: int
    ties: int
    ranks: tuple[Count, ...] = ()

    @model_validator(mode="after")
    def _cutoffs_are_known(self) -> Self:
        if tuple(self.recall) != ranking.RECALL_AT:
            raise ValueError(f"recall is not at {', '.join(map(str, ranking.RECALL_AT))}")
        return self

    @model_validator(mode="after")
    def _ranks_agree(self) -> Self:
        stated = np.array([self.queries, self.mean_rank, self.median_rank])
        ranks = np.array(self.ranks)
        if len(ranks) and not np.allclose(stated, [len(ranks), ranks.mean(), float(np.median(ranks))], 1e-12, 1e-9):
            raise ValueError("queries, mean_rank or median_rank are not those of the ranks")
        return self


class Retrieval(Record):
    """Retrieval in both directions in one gallery.

    ``fingerprint`` is a hash of the image ids and captions in their order: results with the same fingerprint have the
    same queries. ``image_of`` is the image of each caption; it is empty if caption ``i`` belongs to image ``i``.
    ``mean_recall`` is the mean of the six recalls. With ``fold_of``, the fold of each image, each fold was searched
    separately: recalls are means over folds, and ``images``, ``captions`` and ranks are those of all folds.
    """

    gallery: str
    lang: str
    origin: Origin
    fingerprint: str
    images: Count
    captions: Count
    image_of: tuple[int, ...] = ()
    fold_of: tuple[int, ...] = ()
    tie_rule: Literal["pessimistic"] = "pessimistic"
    text_to_image: Direction
    image_to_text: Direction
    mean_recall: Score

    @model_validator(mode="after")
    def _counts_agree(self) -> Self:
        queries = {len(direction.ranks) for direction in (self.text_to_image, self.image_to_text)}
        if len(self.image_of or range(self.images)) != self.captions:
            raise ValueError("the captions and their images differ in number")
        if self.image_of and not 0 <= min(self.image_of) <= max(self.image_of) < self.images:
            raise ValueError(f"image_of is not one of the {self.images} images")
        if queries not in ({0}, {self.captions, self.images}):
            raise ValueError("the queries and their ranks differ in number")
        if self.fold_of and len(self.fold_of) != self.images:
            raise ValueError("the images and their folds differ in number")
        return self

    @model_validator(mode="after")
    def _recalls_agree(self) -> Self:
        values = np.array([score.value for score in self.scores])
        expected = ranking.recalls(self.hits()) if self.text_to_image.ranks else ranking.with_mean(values[:6])
        if not np.allclose(values, expected, 0, _ROUNDING):
            raise ValueError("the recalls are not those of the ranks, or their mean is wrong")
        return self

    @property
    def scores(self) -> tuple[Score, ...]:
        """The six recalls, text to image first, and the mean recall."""
        return (*self.text_to_image.recall.values(), *self.image_to_text.recall.values(), self.mean_recall)

    def fold_sizes(self) -> tuple[int, ...]:
        """Return the number of images of each fold; without folds, that of the gallery."""
        return tuple(np.unique(self.fold_of, return_counts=True)[1].tolist()) if self.fold_of else (self.images,)

    def _image_of(self) -> npt.NDArray[np.int64]:
        return np.array(self.image_of, dtype=np.int64) if self.image_of else np.arange(self.images)

    def captions_per_image(self) -> npt.NDArray[np.int64]:
        """Return the number of captions of each image (I,)."""
        return np.bincount(self._image_of(), minlength=self.images).astype(np.int64)

    def hits(self) -> ranking.Hits:
        """Return the hits of each image.

        Raises:
            ValueError: the ranks were left out.
        """
        ranks = (self.text_to_image.ranks, self.image_to_text.ranks)
        if not ranks[0]:
            raise ValueError(f"the ranks of {self.gallery} in {self.lang} were left out")
        folds = np.array(self.fold_of) if self.fold_of else None
        return ranking.gather_hits(np.array(ranks[0]), np.array(ranks[1]), self._image_of(), folds)

    def without_ranks(self) -> Retrieval:
        """Return the record without its ranks, which are most of it, if no test needs them."""
        ways = ("text_to_image", "image_to_text")
        return self.model_copy(update={way: getattr(self, way).model_copy(update={"ranks": ()}) for way in ways})

    def chance(self) -> npt.NDArray[np.float64]:
        """Return the six recalls (6,) expected of a random ranking."""
        counts, folds = self.captions_per_image(), np.array(self.fold_of or [0] * self.images)
        means: npt.NDArray[np.float64] = np.mean([ranking.chance(counts[folds == f]) for f in np.unique(folds)], axis=0)
        return means


class ZeroShot(Record):
    """Zero-shot classification of one dataset in one language.

    ``mean_per_class`` is the accuracy averaged over classes. Languages with different numbers of ``classes`` cannot be
    compared. ``templates`` are the prompts, ``named_by`` is the source of the class names, ``ties`` the number of
    images whose right class has the same score as a wrong one.
    """

    dataset: str
    lang: str
    templates: tuple[str, ...]
    named_by: str
    classes: int
    images: int
    ties: int
    top1: Score
    top5: Score
    mean_per_class: Score


class TextByRetrieval(Record):
    """chrF (0 to 100) of the captions that images retrieve, against the images' other captions.

    For comparison, ``random`` is the chrF of a random caption of another image, and ``own`` that of the image's first
    caption. ``signature`` is sacrebleu's.
    """

    gallery: str
    lang: str
    images: int
    captions: int
    chrf: float
    random: float
    own: float
    signature: str


class Change(Record):
    """A value before and after alignment."""

    before: float = Field(ge=0)
    after: float = Field(ge=0)


class Retention(Record):
    """How much of the towers' original ability is left after training.

    ``sentences`` is the share of sentences that retrieve their translation, by language pair (``en-sw``);
    ``perplexity`` the pseudo-perplexity by language, if the text tower has a language-model head; ``probe`` the
    accuracy of a classifier on the vision tower's features, by name. ``cka`` is the similarity of every layer before
    and after (1 is unchanged, up to rotation and scale), and ``moved`` the mean distance between a tower's unit outputs
    before and after (0 to 2), for the same inputs.
    """

    sentences: dict[str, Change] = Field(default_factory=dict)
    perplexity: dict[str, Change] = Field(default_factory=dict)
    probe: dict[str, Change] = Field(default_factory=dict)
    cka: dict[Literal["vision", "text"], tuple[float, ...]] = Field(default_factory=dict)
    moved: dict[Literal["vision", "text"], float] = Field(default_factory=dict)

    @property
    def kept(self) -> float | None:
        """The share left of sentence retrieval and of the probe, averaged over the two; None without either."""
        shares = [
            sum(change.after for change in changes.values()) / sum(change.before for change in changes.values())
            for changes in (self.sentences, self.probe)
            if any(change.before > 0 for change in changes.values())
        ]
        return sum(shares) / len(shares) if shares else None


class Amount(Record):
    """A number of training pairs and of their images."""

    pairs: Count
    images: Count


class DevEvaluation(Record):
    """An evaluation on dev: steps and seconds so far, mean loss since the previous one, and mean recall.

    At step 0, before training, there is no loss.
    """

    step: int
    seconds: float
    loss: float | None
    dev_mean_recall: float


class Run(Record):
    """One training run and its test.

    ``recipe`` is the resolved recipe, from which the run can be repeated. ``untrained`` is the test of the same towers
    with the projections as initialised, or of the run that training started from. The first of ``test`` are in the
    languages of ``trained_on``, the others in languages without pairs of their own; ``untrained_in`` has the untrained
    test in the second and further languages. ``pairs`` and ``images`` are numbers of training data of all languages,
    ``trained_on`` those of each if there are several, ``pairs_seen`` includes repeats. ``parallel_rows`` is the number
    of rows of parallel sentences that were trained on. ``stopped_early`` means that dev recall stopped improving before
    the planned end. ``seconds`` is the elapsed time of training including the computation of frozen features,
    ``cpu_seconds`` its processor time over all threads and processes, ``checkpoint_bytes`` the size of the weights.
    ``tuned`` are the values tried on dev, by key of the recipe, which has the chosen one; of successive halving also
    the ``dev_mean_recall`` of each candidate in the rungs that it reached (None if it failed), and the ``part`` of the
    training that each rung lasted. ``dev_evaluations`` is the learning curve on dev (``looks`` in older files); the
    best state is tested. ``retention`` is called ``knowledge`` in older files. ``retries`` is the number of restarts
    after a worker died.
    """

    schema_version: Literal[1] = 1
    recipe: RecipeTable
    lang: Code
    strategy: str
    towers: Literal["both", "vision", "text"]
    budget: str
    seed: int
    pairs: int
    images: int
    pairs_seen: int
    steps: int
    epochs: float
    stopped_early: bool
    trainable: int
    total: Count
    seconds: float
    cpu_seconds: float
    peak_memory_bytes: int
    checkpoint_bytes: int
    device: str
    threads: int
    caption_origin: Origin
    versions: dict[str, str]
    trained_on: dict[Code, Amount] = Field(default_factory=dict)
    parallel_rows: int = Field(0, ge=0)
    parallel_langs: tuple[Code, ...] = ()
    untrained: Retrieval
    untrained_in: dict[Code, Retrieval] = Field(default_factory=dict)
    test: tuple[Retrieval, ...] = Field(min_length=1)
    dev_evaluations: tuple[DevEvaluation, ...] = Field((), validation_alias=AliasChoices("dev_evaluations", "looks"))
    tuned: Tuned = Field(default_factory=dict)
    retries: int = 0
    retention: Retention | None = Field(None, validation_alias=AliasChoices("retention", "knowledge"))

    @property
    def langs(self) -> tuple[str, ...]:
        """The languages that the run was trained for."""
        return (self.lang, *self.untrained_in)

    def in_language(self, lang: str) -> Run:
        """Return this run as one of ``lang``, for the tables of that language.

        Its first test and its numbers of pairs are those of the language, and of the other tests only those in
        languages that it was not trained for stay. The recipe names the language first and the others sorted.
        """
        if len(self.langs) == 1:
            return self
        amount = self.trained_on.get(lang)
        first = next(test for test in self.test if test.lang == lang)
        return self.model_copy(
            update={
                **_in_language(self, lang),
                "pairs": self.pairs if amount is None else amount.pairs,
                "images": self.images if amount is None else amount.images,
                "untrained": self.untrained_in.get(lang, self.untrained),
                "untrained_in": {},
                "test": (first, *(test for test in self.test if test.lang not in self.langs)),
            }
        )

    @property
    def cost_seconds(self) -> float:
        """The cost: processor time on a CPU, which other load does not change, else elapsed time."""
        return self.cpu_seconds if self.device == "cpu" else self.seconds


def _in_language(run: Run | LeftOut, lang: str) -> dict[str, Any]:
    """Return the language, recipe and budget of a run as they are in the tables of one of its languages."""
    data = dict(run.recipe.get("data", {}))
    others = sorted({run.lang, *data.get("also_langs", ())} - {lang})
    budgets = {code: one for code, one in data.get("budgets", {}).items() if code != lang}
    pairs = data.get("budgets", {}).get(lang, data.get("budget"))
    limits = [part for part in run.budget.split("+") if "pairs" not in part and not part.endswith("all")]
    own = ["0-pairs"] if run.budget.startswith("0-pairs") else [pairs] if pairs else []
    data |= {"also_langs": others, "budget": pairs, "budgets": budgets}
    return {
        "lang": lang,
        "recipe": {**run.recipe, "lang": lang, "data": data},
        "budget": "+".join([*own, *limits]) or "all",
    }


class LeftOut(Record):
    """A run that failed in a comparison, and why; the other fields are those of ``Run``."""

    recipe: RecipeTable
    lang: Code
    strategy: str
    towers: Literal["both", "vision", "text"]
    budget: str
    seed: int
    why: str

    @property
    def langs(self) -> tuple[str, ...]:
        """The languages that the run was to be trained for."""
        return (self.lang, *self.recipe.get("data", {}).get("also_langs", ()))

    def in_language(self, lang: str) -> LeftOut:
        """Return this record as one of a run in ``lang``; see ``Run.in_language``."""
        return self if len(self.langs) == 1 else self.model_copy(update=_in_language(self, lang))
