"""The schema of a recipe: the validated settings of a run, from which it can be repeated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, field_validator

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

    ``budget`` (``10k-pairs``) is the size of a random subset, drawn with ``data_seed`` independently of the training
    seed. ``max_corrupt`` is the share of unreadable images above which training is refused. ``leakage`` says what to do
    with images of train that are also in dev or test, and of dev that are in test. ``keep_out`` lists further test sets
    to treat like test, each as the ``name`` of a source with its options. ``views`` trains on this number of random
    crops of each image instead of the plain image, one per epoch in turn. ``mirror`` flips half of the crops, which
    makes "left" and "right" in a caption wrong.
    """

    budget: str | None = None
    data_seed: Seed = 0
    max_corrupt: Share = 0.01
    leakage: Literal["refuse", "exclude", "allow"] = "refuse"
    keep_out: tuple[dict[str, Any], ...] = ()
    views: Whole | None = Field(None, gt=0, le=1_000)
    mirror: bool = False

    @field_validator("budget")
    @classmethod
    def _pairs(cls, value: str | None) -> str | None:
        try:
            counts_pairs = value is None or isinstance(parse_budget(value), PairBudget)
        except UserError as error:
            raise ValueError(str(error)) from error
        if not counts_pairs:
            raise ValueError(f"not a number of pairs (10k-pairs): pass {value} as --budget")
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

    ``micro_batch`` limits memory: the towers process this number of pairs at a time, while the loss covers the whole
    batch (GradCache). Training lasts for ``epochs``, but at least ``min_steps``.
    """

    loss: Literal["infonce", "sigmoid"] = "infonce"
    lr: Number = Field(1e-3, gt=0, le=1_000)
    min_lr_ratio: Share = 0.1
    weight_decay: Number = Field(0.02, ge=0, le=1_000)
    vision_lr: Number | None = Field(None, gt=0, le=1_000)
    text_lr: Number | None = Field(None, gt=0, le=1_000)
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    warmup_steps: Whole = Field(50, ge=0, le=10**9)
    batch_size: Whole = Field(256, gt=1, le=2**20)
    micro_batch: Whole | None = Field(None, gt=0, le=2**20)
    epochs: Whole = Field(15, gt=0, le=100_000)
    min_steps: Whole = Field(0, ge=0, le=10**9)
    grad_clip: Number = Field(1.0, gt=0, le=1e9)


class Train(_Section):
    """The training loop, with ``evals`` evaluations on dev; it stops after ``patience`` of them without improvement.

    ``max_seconds`` limits the training time, including the computation of frozen features, and the learning rate decays
    over that time. Training that needs more than ``max_memory_bytes`` is refused. ``compile`` compiles the trained
    blocks with torch, which takes a minute or more and does not help on a CPU. ``recompute`` is activation
    checkpointing: less memory, more time.
    """

    seed: Seed = 0
    evals: Whole = Field(20, gt=0, le=100_000)
    patience: Whole = Field(5, gt=0, le=100_000)
    precision: Precision = "auto"
    compile: bool = False
    recompute: bool = False
    max_seconds: Number | None = Field(None, gt=0, le=MAX_SECONDS)
    max_memory_bytes: Whole | None = Field(None, gt=0, le=MAX_BYTES)


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

    @field_validator("strategy", "source")
    @classmethod
    def _options(cls, value: dict[str, Any], info: Any) -> dict[str, Any]:
        if "name" not in value:
            known = plugin_names("strategies" if info.field_name == "strategy" else "sources")
            raise ValueError(f"no name (known: {', '.join(known)})")
        _, config = _plugin(info.field_name, value)
        return {"name": value["name"], **config.model_dump(mode="json", exclude_none=True)}

    @property
    def budget(self) -> str:
        """The budget in the form of ``--budget``; ``all`` if there is none."""
        seconds, memory = self.train.max_seconds, self.train.max_memory_bytes
        limits = (self.data.budget, seconds and TimeBudget(seconds), memory and MemoryBudget(memory))
        return "+".join(str(limit) for limit in limits if limit is not None) or "all"

    def plugin(self, section: Literal["strategy", "source"]) -> tuple[Any, Any]:
        """Return the module and the ``Config`` of the strategy or the source."""
        return _plugin(section, getattr(self, section))

    def to_toml(self) -> str:
        """Return the recipe as TOML, which ``read_recipe`` reads."""
        return tomli_w.dumps(self.table())

    def table(self) -> dict[str, Any]:
        """Return the recipe as a table, as in results and TOML files; ``validate`` is the inverse."""
        return self.model_dump(mode="json", exclude_none=True)

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
