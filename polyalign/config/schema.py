"""The schema of a recipe: validated settings from which a run can be repeated."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, field_validator

from polyalign.config.budget import MemoryBudget, TimeBudget
from polyalign.config.plugins import Kind, load_plugin, plugin_names
from polyalign.config.source_spec import SourceSpec
from polyalign.config.tower import TextSpec, VisionSpec
from polyalign.utils.precision import Precision

Beta = Annotated[float, Field(ge=0, lt=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Projection(_Section):
    """The width of the space in which images and captions meet."""

    dim: int = Field(256, gt=0)


class Data(_Section):
    """How much of the source is used, and what is refused.

    ``budget`` (``10k-pairs``) draws a seeded subset; ``data_seed`` chooses which, and stays the same over training
    seeds. ``max_corrupt`` is the share of unreadable images above which training is refused.
    ``keep_out`` are other test sets, each a source's ``name`` with its options: their images are treated as the
    recipe's own test images are, refused in training or excluded from it; and from dev.
    ``views`` trains on so many crops of each image, an epoch on each in turn, in place of the plain image. ``mirror``
    flips half of them, which makes "left" and "right" in a caption wrong.
    """

    budget: str | None = None
    data_seed: int = Field(0, ge=0)
    max_corrupt: float = Field(0.01, ge=0, le=1)
    leakage: Literal["refuse", "exclude", "allow"] = "refuse"
    keep_out: tuple[dict[str, Any], ...] = ()
    views: int | None = Field(None, gt=0)
    mirror: bool = False

    @field_validator("keep_out")
    @classmethod
    def _known(cls, value: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        for one in value:
            if "name" not in one:
                raise ValueError(f"no name (known: {', '.join(plugin_names('sources'))})")
            SourceSpec.flat(one).configure()
        return value


class Optim(_Section):
    """AdamW with linear warm-up and a cosine to ``lr * min_lr_ratio``.

    ``micro_batch`` bounds memory: the towers see so many pairs at a time, the loss still all of the batch (GradCache).
    Training lasts ``epochs``, or ``min_steps`` where the epochs of a small budget would be fewer steps than that.
    """

    loss: Literal["infonce", "sigmoid"] = "infonce"
    lr: float = Field(1e-3, gt=0)
    min_lr_ratio: float = Field(0.1, ge=0, le=1)
    weight_decay: float = Field(0.02, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    warmup_steps: int = Field(50, ge=0)
    batch_size: int = Field(256, gt=1)
    micro_batch: int | None = Field(None, gt=0)
    epochs: int = Field(15, gt=0, le=100_000)
    min_steps: int = Field(0, ge=0)
    grad_clip: float = Field(1.0, gt=0)


class Train(_Section):
    """The loop: ``evals`` looks at the dev split, evenly spread; stop after ``patience`` of them without a gain.

    ``max_seconds`` ends training, and the learning rate's course with it, when so much time is spent; what it cost to
    compute the frozen part once is time spent too. Training that holds more than ``max_memory_bytes`` is refused.
    ``compile`` has torch compile the blocks that run, which takes a minute or more, and on a processor gains nothing.
    ``recompute`` keeps no activations inside blocks and runs them again for their gradients: less memory, more time.
    """

    seed: int = Field(0, ge=0)
    evals: int = Field(20, gt=0)
    patience: int = Field(5, gt=0)
    precision: Precision = "auto"
    compile: bool = False
    recompute: bool = False
    max_seconds: float | None = Field(None, gt=0)
    max_memory_bytes: int | None = Field(None, gt=0)


class Test(_Section):
    """``languages`` never trained on in which the test gallery is measured too: what carries over to them.

    ``knowledge`` also asks the towers, before and after, what they knew when they were pretrained.
    """

    languages: tuple[str, ...] = ()
    knowledge: bool = False


class Cache(_Section):
    """What is computed once: with ``prefix`` what the frozen layers give, kept in ``dtype``; without, only pixels.

    ``precision`` is that of what is computed without gradients: the frozen layers, and every evaluation. ``auto`` takes
    bf16 on a GPU that has it, and on a processor where it is measured to be faster.
    """

    prefix: bool = True
    dtype: Literal["float16", "float32"] = "float16"
    precision: Precision = "fp32"
    max_gib: float = Field(20, gt=0)


class Recipe(_Section):
    """A resolved recipe.

    ``strategy`` and ``source`` hold a plugin's ``name`` and its options, checked by that plugin's own ``Config``.
    """

    name: str
    description: str = ""
    lang: str
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
        kind: Kind = "strategies" if info.field_name == "strategy" else "sources"
        if "name" not in value:
            raise ValueError(f"no name (known: {', '.join(plugin_names(kind))})")
        options = {key: option for key, option in value.items() if key != "name"}
        config = load_plugin(kind, str(value["name"])).Config(**options)
        return {"name": value["name"], **config.model_dump(mode="json", exclude_none=True)}

    @property
    def budget(self) -> str:
        """The budget as ``--budget`` takes it; ``all`` where training is not bounded."""
        bounds = [self.data.budget] if self.data.budget is not None else []
        if self.train.max_seconds is not None:
            bounds.append(str(TimeBudget(seconds=self.train.max_seconds)))
        if self.train.max_memory_bytes is not None:
            bounds.append(str(MemoryBudget(bytes=self.train.max_memory_bytes)))
        return "+".join(bounds) or "all"

    def plugin(self, section: Literal["strategy", "source"]) -> tuple[Any, Any]:
        """Return the module and the ``Config`` of the strategy or the source."""
        value = getattr(self, section)
        module = load_plugin("strategies" if section == "strategy" else "sources", value["name"])
        return module, module.Config(**{key: option for key, option in value.items() if key != "name"})

    def to_toml(self) -> str:
        """Write the recipe so that ``from_toml`` gives it back."""
        return tomli_w.dumps(self.table())

    def table(self) -> dict[str, Any]:
        """Return the recipe as a table, as results and TOML files contain it; ``validate`` is the inverse."""
        return self.model_dump(mode="json", exclude_none=True)

    def is_of(self, resolved: dict[str, Any]) -> bool:
        """Whether a result's resolved recipe is this one, be it written before some setting was added."""
        return complete(resolved) == self.table()


def complete(resolved: dict[str, Any]) -> dict[str, Any]:
    """Add to a resolved recipe the settings that came after it was written; it was made with what is their default."""
    sections = {name: field.default for name, field in Recipe.model_fields.items()}
    defaults = {
        name: section.model_dump(mode="json", exclude_none=True)
        for name, section in sections.items()
        if isinstance(section, _Section)
    }
    return merge(defaults, resolved)


def merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Lay one nested table over another; a source or strategy of another name replaces the whole section."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        if (
            isinstance(value, dict)
            and isinstance(below, dict)
            and below.get("name") == value.get("name", below.get("name"))
        ):
            merged[key] = merge(below, value)
        else:
            merged[key] = value
    return merged
