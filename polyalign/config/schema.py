"""The schema of a recipe: the validated settings of a run, from which it can be repeated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from polyalign.config.budget import MAX_BYTES, MAX_SECONDS, MemoryBudget, PairBudget, TimeBudget, parse_budget
from polyalign.config.plugins import load_plugin, plugin_names
from polyalign.config.source_spec import SourceSpec
from polyalign.config.tower import TextSpec, VisionSpec
from polyalign.config.values import Code, Number, Seed, Share, Whole
from polyalign.utils.errors import UserError
from polyalign.utils.precision import Precision

Beta = Annotated[Number, Field(ge=0, lt=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Projection(_Section):
    """The dimension of the shared embedding space."""

    dim: Whole = Field(256, gt=0, le=65_536)


class Data(_Section):
    """How much of the source is used, and what is refused.

    ``also_langs`` are further languages whose pairs are trained on together with those of ``lang``; dev recall is the
    mean over ``targets``, by default over all of them. ``budget`` (``10k-pairs``) is the size of a random subset of
    each language, drawn with ``data_seed`` independently of the training seed; ``budgets`` has those of single
    languages. ``max_corrupt`` is the share of unreadable images above which training is refused. ``leakage`` says what
    to do with images of train that are also in dev or test, and of dev that are in test. ``keep_out`` lists further
    test sets to treat like test, each as the ``name`` of a source with its options. ``views`` trains on this number of
    random crops of each image instead of the plain image, one per epoch in turn. ``mirror`` flips half of the crops,
    which makes "left" and "right" in a caption wrong.
    """

    also_langs: tuple[Code, ...] = ()
    targets: tuple[Code, ...] = ()
    budget: str | None = None
    budgets: dict[Code, str] = {}
    data_seed: Seed = 0
    max_corrupt: Share = 0.01
    leakage: Literal["refuse", "exclude", "allow"] = "refuse"
    keep_out: tuple[dict[str, Any], ...] = ()
    views: Whole | None = Field(None, gt=0, le=1_000)
    mirror: bool = False

    @field_validator("budget", "budgets")
    @classmethod
    def _pairs(cls, value: str | dict[str, str] | None) -> str | dict[str, str] | None:
        for one in value.values() if isinstance(value, dict) else [value] if value is not None else []:
            try:
                counts_pairs = isinstance(parse_budget(one), PairBudget)
            except UserError as error:
                raise ValueError(str(error)) from error
            if not counts_pairs:
                raise ValueError(f"not a number of pairs (10k-pairs): pass {one} as --budget")
        return value

    @field_validator("keep_out")
    @classmethod
    def _known(cls, value: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        for one in value:
            if "name" not in one:
                raise ValueError(f"no name (known: {', '.join(plugin_names('sources'))})")
            SourceSpec.flat(one).configure()
        return value


class Optim(_Section):
    """AdamW with linear warm-up and cosine decay to ``lr * min_lr_ratio``.

    The loss ``mse`` is for distillation only: between two towers that both train it has no negatives.

    ``micro_batch`` limits memory: the towers process this number of pairs at a time, while the loss covers the whole
    batch (GradCache). Training lasts for ``epochs``, but at least ``min_steps``.

    ``vision_lr`` and ``text_lr`` are the rates of the towers, ``projection_lr`` that of the projections and the
    temperature, and ``*_weight_decay`` likewise; without them ``lr`` and ``weight_decay`` hold. ``layer_decay`` lowers
    the rate towards the input of a tower: by this factor in the top block, by its square in the next, and so on, and
    most in the embeddings (as in BEiT).
    """

    loss: Literal["infonce", "sigmoid", "mse"] = "infonce"
    lr: Number = Field(1e-3, gt=0, le=1_000)
    min_lr_ratio: Share = 0.1
    weight_decay: Number = Field(0.02, ge=0, le=1_000)
    vision_lr: Number | None = Field(None, gt=0, le=1_000)
    text_lr: Number | None = Field(None, gt=0, le=1_000)
    projection_lr: Number | None = Field(None, gt=0, le=1_000)
    vision_weight_decay: Number | None = Field(None, ge=0, le=1_000)
    text_weight_decay: Number | None = Field(None, ge=0, le=1_000)
    projection_weight_decay: Number | None = Field(None, ge=0, le=1_000)
    layer_decay: Number = Field(1.0, gt=0, le=1)
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    warmup_steps: Whole = Field(50, ge=0, le=10**9)
    batch_size: Whole = Field(256, gt=1, le=2**20)
    micro_batch: Whole | None = Field(None, gt=0, le=2**20)
    epochs: Whole = Field(15, gt=0, le=100_000)
    min_steps: Whole = Field(0, ge=0, le=10**9)
    grad_clip: Number = Field(1.0, gt=0, le=1e9)


class Train(_Section):
    """The training loop, with ``evals`` evaluations on dev; it stops after ``patience`` of them without improvement.

    A language with ``n`` of the pairs has a share of the batches in proportion to ``n ** (1 / temperature)``: 1 is in
    proportion to its pairs, a large value gives all languages the same share. The default is that of XLM-R (Conneau et
    al. 2020: an exponent of 0.3).
    ``max_seconds`` limits the training time, including the computation of frozen features, and the learning rate decays
    over that time. Training that needs more than ``max_memory_bytes`` is refused. ``compile`` compiles the trained
    blocks with torch, which takes a minute or more and does not help on a CPU. ``recompute`` is activation
    checkpointing: less memory, more time.
    """

    seed: Seed = 0
    temperature: Number = Field(3.33, ge=1, le=1e6)
    evals: Whole = Field(20, gt=0, le=100_000)
    patience: Whole = Field(5, gt=0, le=100_000)
    precision: Precision = "auto"
    compile: bool = False
    recompute: bool = False
    max_seconds: Number | None = Field(None, gt=0, le=MAX_SECONDS)
    max_memory_bytes: Whole | None = Field(None, gt=0, le=MAX_BYTES)


class Parallel(_Section):
    """Parallel sentences, on which the text tower is trained beside the pairs.

    ``text`` is a TSV file, a folder or the common path of line-aligned files, ``captions`` (those of the training
    images of the recipe's source), ``starter``, or ``hub:NAME`` (see ``polyalign.data.parallel``). ``langs`` are the
    languages to use, by default all that the text states. Each step takes ``batch_size`` rows, and of each row the
    sentence in ``pivot`` (default: the language of the run, else the first) and one in another language. Their InfoNCE
    in the joint space is added to the loss with ``weight``. ``anchor`` is the weight of the cosine distance of the
    tower's features from those before training. ``sentences`` is the number of rows to draw.
    """

    text: str = Field(min_length=1, max_length=4_096)
    langs: tuple[Code, ...] = ()
    pivot: Code | None = None
    sentences: Whole | None = Field(None, gt=1, le=10**9)
    weight: Number = Field(1.0, ge=0, le=1_000)
    anchor: Number = Field(0.0, ge=0, le=1_000)
    batch_size: Whole = Field(128, gt=1, le=2**20)


class Parent(_Section):
    """The finished run that training goes on from: its folder, and the SHA-256 of its weights."""

    run: str = Field(min_length=1, max_length=4_096)
    weights: str = Field(pattern=r"^[0-9a-f]{64}$")


class Teacher(Parent):
    """The finished run or external model whose vision side and joint space a distilled run takes.

    ``strategy`` is what the run trained. The joint space of an external model is that of its image vectors.
    """

    strategy: dict[str, Any]


class Test(_Section):
    """Further tests after training.

    ``languages`` are tested on the test gallery without training on them (zero-shot transfer). ``knowledge`` measures
    how much of the towers' knowledge from pretraining is retained.
    """

    languages: tuple[Code, ...] = ()
    knowledge: bool = False


class Cache(_Section):
    """What is computed once and cached: the outputs of the frozen layers, in ``dtype``; only pixels without ``prefix``.

    ``precision`` applies to computation without gradients: the frozen layers and evaluation. ``auto`` uses bf16 on a
    GPU that supports it and on a CPU where it is measured to be faster.
    """

    prefix: bool = True
    dtype: Literal["float16", "float32"] = "float16"
    precision: Precision = "fp32"
    max_gib: Number = Field(20, gt=0, le=1e6)


class Recipe(_Section):
    """A resolved recipe.

    ``strategy`` and ``source`` contain the ``name`` of a plugin and its options, checked by its ``Config``.
    """

    name: str = Field(min_length=1, max_length=100, pattern=r"^[^/\\]+$")
    description: str = ""
    lang: Code
    vision: VisionSpec
    text: TextSpec
    projection: Projection = Projection()
    strategy: dict[str, Any]
    source: dict[str, Any]
    data: Data = Data()
    optim: Optim = Optim()
    train: Train = Train()
    test: Test = Test()
    cache: Cache = Cache()
    parallel: Parallel | None = None
    parent: Parent | None = None
    teacher: Teacher | None = None

    @field_validator("strategy", "source")
    @classmethod
    def _options(cls, value: dict[str, Any], info: Any) -> dict[str, Any]:
        if "name" not in value:
            known = plugin_names("strategies" if info.field_name == "strategy" else "sources")
            raise ValueError(f"no name (known: {', '.join(known)})")
        _, config = _plugin(info.field_name, value)
        return {"name": value["name"], **config.model_dump(mode="json", exclude_none=True)}

    @model_validator(mode="after")
    def _languages(self) -> Self:
        langs = self.langs
        if self.optim.loss == "mse" and not self.distils:
            raise ValueError("optim.loss: mse is for polyalign distill: choose infonce or sigmoid")
        if self.distils:
            self._check_distillation()
        if len(set(langs)) < len(langs):
            raise ValueError(f"data.also_langs: a language is named twice ({', '.join(langs)})")
        for key, codes in (("targets", self.data.targets), ("budgets", tuple(self.data.budgets))):
            if unknown := next((code for code in codes if code not in langs), None):
                raise ValueError(f"data.{key}: {unknown} is not trained on (trained on: {', '.join(langs)})")
        return self

    def _check_distillation(self) -> None:
        if self.parallel is None:
            raise ValueError("parallel: distillation needs parallel sentences (--parallel TEXT)")
        unused = {f"parallel.{name}": getattr(self.parallel, name) for name in ("weight", "anchor", "batch_size")}
        usual = {f"parallel.{name}": Parallel.model_fields[name].default for name in ("weight", "anchor", "batch_size")}
        pairs = {"data.budget": self.data.budget, "data.budgets": self.data.budgets, "data.views": self.data.views}
        names = [name for name, value in unused.items() if value != usual[name]]
        if names := [*names, *(name for name, value in pairs.items() if value)]:
            raise ValueError(f"{names[0]}: distillation uses no pairs and one loss: leave it out")

    @property
    def distils(self) -> bool:
        """Whether the text tower learns from a teacher's vectors of parallel sentences, and not from pairs."""
        return self.teacher is not None and self.parent is None

    @property
    def langs(self) -> tuple[str, ...]:
        """All languages that are trained on."""
        return (self.lang, *self.data.also_langs)

    @property
    def transfer(self) -> tuple[str, ...]:
        """The languages that are tested without pairs of their own."""
        return tuple(code for code in self.test.languages if code not in self.langs)

    @property
    def budget(self) -> str:
        """The budget in the form of ``--budget``; ``all`` if there is none."""
        if self.distils:
            return "+".join(["0-pairs", *self.limits])
        own = {lang: self.pairs_budget(lang) for lang in self.langs}
        pairs = [own[self.lang]] if not self.data.budgets else [f"{lang}={one or 'all'}" for lang, one in own.items()]
        return "+".join([*(one for one in pairs if one is not None), *self.limits]) or "all"

    @property
    def limits(self) -> tuple[str, ...]:
        """The budgets of time and memory in the form of ``--budget``."""
        seconds, memory = self.train.max_seconds, self.train.max_memory_bytes
        limits = (seconds and TimeBudget(seconds), memory and MemoryBudget(memory))
        return tuple(str(limit) for limit in limits if limit is not None)

    def pairs_budget(self, lang: str) -> str | None:
        """Return the number of pairs to draw in a language; None for all."""
        return self.data.budgets.get(lang, self.data.budget)

    def plugin(self, section: Literal["strategy", "source"]) -> tuple[Any, Any]:
        """Return the module and the ``Config`` of the strategy or the source."""
        return _plugin(section, getattr(self, section))

    def to_toml(self) -> str:
        """Return the recipe as TOML, which ``read_recipe`` reads."""
        return tomli_w.dumps(self.table())

    def table(self) -> dict[str, Any]:
        """Return the recipe as a table, as in results and TOML files; ``validate`` is the inverse."""
        return self.model_dump(mode="json", exclude_none=True)

    def in_language(self, lang: str) -> dict[str, Any]:
        """Return the recipe as a table with this language alone."""
        table = self.table()
        table["data"] |= {"also_langs": [], "targets": [], "budgets": {}}
        return {**table, "lang": lang}

    def is_of(self, resolved: dict[str, Any]) -> bool:
        """Return whether the resolved recipe of a result is this one; older ones may lack settings."""
        return complete(resolved) == self.table()


def _plugin(section: str, value: dict[str, Any]) -> tuple[Any, Any]:
    """Return the module and the ``Config`` of a section of a recipe."""
    module = load_plugin("strategies" if section == "strategy" else "sources", str(value["name"]))
    return module, module.Config(**{key: option for key, option in value.items() if key != "name"})


def complete(resolved: dict[str, Any]) -> dict[str, Any]:
    """Add the defaults of settings that an older resolved recipe lacks."""
    defaults = {
        name: field.default.model_dump(mode="json", exclude_none=True)
        for name, field in Recipe.model_fields.items()
        if isinstance(field.default, _Section)
    }
    return merge(defaults, resolved)


def merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Merge nested tables; values in ``over`` win.

    A section with another ``name`` or ``model`` replaces the whole section: its other values belong to that plugin or
    tower.
    """
    merged = under | over
    for key, value in over.items():
        below: Any = under.get(key)
        if isinstance(value, dict) and isinstance(below, dict) and not _is_other(value, below):
            merged[key] = merge(below, value)
    return merged


def _is_other(value: dict[str, Any], below: dict[str, Any]) -> bool:
    return any(key in value and key in below and value[key] != below[key] for key in ("name", "model"))


def nest(path: Sequence[str], value: Any) -> dict[str, Any]:
    """Return the nested table that has ``value`` under the keys of a path."""
    for key in reversed(path):
        value = {key: value}
    return dict(value)
