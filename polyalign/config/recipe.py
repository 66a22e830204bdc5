"""Recipes: recipe + language + strategy + ``--set`` resolve to one frozen record from which a run can be repeated."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from polyalign.config import budget as budgets
from polyalign.config import language as languages
from polyalign.config import plugins, shipped, source_spec
from polyalign.config.language import describe
from polyalign.config.source_spec import SourceSpec
from polyalign.config.tower import TextSpec, VisionSpec
from polyalign.utils.errors import UserError, did_you_mean
from polyalign.utils.precision import Precision


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


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
    data_seed: int = 0
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
                raise ValueError(f"no name (known: {', '.join(plugins.names('sources'))})")
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
    betas: tuple[float, float] = (0.9, 0.98)
    warmup_steps: int = Field(50, ge=0)
    batch_size: int = Field(256, gt=1)
    micro_batch: int | None = Field(None, gt=0)
    epochs: int = Field(15, gt=0)
    min_steps: int = Field(0, ge=0)
    grad_clip: float = Field(1.0, gt=0)


class Train(_Section):
    """The loop: ``evals`` looks at the dev split, evenly spread; stop after ``patience`` of them without a gain.

    ``max_seconds`` ends training, and the learning rate's course with it, when so much time is spent; what it cost to
    compute the frozen part once is time spent too. Training that holds more than ``max_memory_bytes`` is refused.
    ``compile`` has torch compile the blocks that run, which takes a minute or more, and on a processor gains nothing.
    ``recompute`` keeps no activations inside blocks and runs them again for their gradients: less memory, more time.
    """

    seed: int = 0
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
        kind: plugins.Kind = "strategies" if info.field_name == "strategy" else "sources"
        if "name" not in value:
            raise ValueError(f"no name (known: {', '.join(plugins.names(kind))})")
        options = {key: option for key, option in value.items() if key != "name"}
        config = plugins.load(kind, str(value["name"])).Config(**options)
        return {"name": value["name"], **config.model_dump(mode="json", exclude_none=True)}

    @property
    def budget(self) -> str:
        """Say what bounds training, in the words of ``--budget``; ``all`` where nothing does, which is all pairs."""
        bounds = [self.data.budget] if self.data.budget is not None else []
        if self.train.max_seconds is not None:
            bounds.append(str(budgets.TimeBudget(seconds=self.train.max_seconds)))
        if self.train.max_memory_bytes is not None:
            bounds.append(str(budgets.MemoryBudget(bytes=self.train.max_memory_bytes)))
        return "+".join(bounds) or "all"

    def plugin(self, section: Literal["strategy", "source"]) -> tuple[Any, Any]:
        """Give the module and the ``Config`` of the strategy or the source."""
        value = getattr(self, section)
        module = plugins.load("strategies" if section == "strategy" else "sources", value["name"])
        return module, module.Config(**{key: option for key, option in value.items() if key != "name"})

    def to_toml(self) -> str:
        """Write the recipe so that ``from_toml`` gives it back."""
        return tomli_w.dumps(self.table())

    def table(self) -> dict[str, Any]:
        """Give the recipe as results and TOML files hold it; ``validate`` gives it back."""
        return self.model_dump(mode="json", exclude_none=True)

    def is_of(self, resolved: dict[str, Any]) -> bool:
        """Whether a result's resolved recipe is this one, be it written before some setting was added."""
        return complete(resolved) == self.table()


def from_toml(path: Path) -> Recipe:
    """Read a resolved recipe, as it is written beside a checkpoint."""
    return validate(shipped.read_toml(path), str(path))


def resolve(name: str, lang: str, strategy: str | None = None, overrides: dict[str, Any] | None = None) -> Recipe:
    """Resolve a recipe for a language and a strategy.

    ``name`` is a shipped recipe, one of the user's ``./recipes``, or a path. Later wins: the recipe it ``extends``,
    the recipe, its ``[strategies.<name>]``, the language's ``[recipe]``, ``overrides``.

    Raises:
        UserError: unknown recipe, language, strategy or key, or a value out of its range.
    """
    raw = _read(name)
    where, overrides = f"recipe {name}", overrides or {}
    presets = _section(raw, "strategies", where)
    own, asked = _section(raw, "strategy", where), _section(overrides, "strategy", "--set")
    chosen = asked.get("name") or strategy or own.get("name")
    if chosen is None:
        known = ", ".join(plugins.names("strategies"))
        raise UserError(f"{where} names no strategy: say what trains with --strategy (known: {known})")
    if chosen not in plugins.names("strategies"):
        raise UserError(f'unknown strategy "{chosen}": {did_you_mean(str(chosen), plugins.names("strategies"))}')
    raw = {key: value for key, value in raw.items() if key not in ("strategies", "languages", "transfer")}
    if chosen != own.get("name"):
        raw["strategy"] = {}
    layers = (
        {"strategy": {"name": chosen}},
        _section(presets, chosen, f"{where}, strategies"),
        languages.load(lang).recipe,
        overrides,
        {"lang": lang},
    )
    for layer in layers:
        raw = merge(raw, layer)
    return validate(raw, where)


def _section(raw: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    section = raw.get(key, {})
    if not isinstance(section, dict):
        raise UserError(f'{where}: "{key}" is a section with keys of its own, not {section!r}')
    return section


def recipe_languages(name: str) -> list[str]:
    """List the languages a recipe is meant for (its ``languages``), for commands that are given none."""
    found = _read(name).get("languages")
    if not isinstance(found, list) or not found:
        raise UserError(f"recipe {name} names no list of languages: say which with --lang")
    return list(found)


def transfer_languages(name: str, lang: str) -> list[str]:
    """List the languages in which a recipe's own data shows what carries over from ``lang`` (its ``transfer``)."""
    return [code for code in _read(name).get("transfer", []) if code != lang]


def complete(resolved: dict[str, Any]) -> dict[str, Any]:
    """Add to a resolved recipe the settings that came after it was written; it was made with what is their default."""
    sections = {name: field.default for name, field in Recipe.model_fields.items()}
    defaults = {
        name: section.model_dump(mode="json", exclude_none=True)
        for name, section in sections.items()
        if isinstance(section, _Section)
    }
    return merge(defaults, resolved)


def parse_set(items: list[str]) -> dict[str, Any]:
    """Turn ``["optim.lr=3e-4", ...]`` into a nested table; a value is read as TOML, else taken as a string.

    Raises:
        UserError: an item is not ``key=value``.
    """
    table: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        *path, leaf = (part.strip() for part in key.split("."))
        if not equals or not all((*path, leaf)):
            raise UserError(f'--set takes key=value, as in --set optim.lr=3e-4; got "{item}"')
        nested: dict[str, Any] = {}
        inner = nested
        for part in path:
            inner = inner.setdefault(part, {})
        inner[leaf] = _value(text)
        table = merge(table, nested)
    return table


def _value(text: str) -> Any:
    try:
        read = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text.strip()
    return read["value"] if len(read) == 1 else text.strip()  # text of several lines may read as several keys


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


def _read(name: str) -> dict[str, Any]:
    path = Path(name) if name.endswith(".toml") else shipped.find("recipes", name)
    raw = shipped.read_toml(path)
    base = raw.pop("extends", None)
    if base is not None:
        under = shipped.read_toml(shipped.find("recipes", base))
        if "extends" in under:
            raise UserError(f"recipe {name} extends {base}, which itself extends another: one step is allowed")
        raw = merge(under, raw)
    return {**raw, "name": path.stem}


def validate(raw: dict[str, Any], where: str) -> Recipe:
    """Check a resolved table against the schema.

    Raises:
        UserError: an unknown key or a value out of its range; the message names ``where`` it stands.
    """
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{where}: {describe(error)}{_hint(error, raw)}") from error


def _hint(error: ValidationError, raw: dict[str, Any]) -> str:
    """Suggest the key that was meant, where one is unknown, and what to place where for a dataset without its root."""
    first = error.errors()[0]
    if first["type"] == "missing" and first["loc"] == ("source", "root"):
        return source_spec.place(str(raw["source"]["name"]), "--set source.")
    if first["type"] != "extra_forbidden":
        return ""
    model: Any = Recipe
    for part in map(str, first["loc"][:-1]):
        if model is Recipe and part in ("strategy", "source"):
            model = plugins.load("strategies" if part == "strategy" else "sources", raw[part]["name"]).Config
            continue
        field = model.model_fields.get(part)
        model = field.annotation if field is not None else None
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return ""
    return f"; {did_you_mean(str(first['loc'][-1]), model.model_fields)}"


def overrides(
    sets: list[str],
    *,
    budget: str | None = None,
    towers: str | None = None,
    layers: str | None = None,
    data: str | None = None,
    seed: int | None = None,
    images: Path | None = None,
    allow_missing: bool = False,
) -> dict[str, Any]:
    """Gather the command line's options into one table of overrides; ``--set`` wins over the others.

    ``data`` is the name of a source, or a folder, which the source ``folder`` reads; a recipe's budget is meant for the
    recipe's own data, and other data is used whole unless ``budget`` says otherwise. ``images`` is a benchmark's folder
    of photos, ``allow_missing`` leaves out those that are not there.

    Raises:
        UserError: ``data`` is neither, or has its photos elsewhere; ``budget`` is none; ``--set`` is not ``key=value``.
    """
    table: dict[str, Any] = {"train": {"seed": seed}, "strategy": {"towers": towers, "layers": layers}}
    if data is not None:
        known = plugins.names("sources")
        if Path(data).exists():
            table["source"] = {"name": "folder", "root": str(data)}
        elif data in known:
            table["source"] = {"name": data}
        else:
            raise UserError(f'--data "{data}" is no folder and no source: {did_you_mean(data, known)}')
    source = table.get("source", {})
    table["source"] = source | source_spec.photos(source.get("name"), images, allow_missing=allow_missing)
    given = {
        section: kept
        for section, options in table.items()
        if (kept := {key: value for key, value in options.items() if value is not None})
    }
    if data is not None:
        given = merge(given, {"data": {"budget": None}})
    if budget is not None:
        given = merge(given, within(budget))
    return merge(given, parse_set(sets))


def within(budget: str) -> dict[str, Any]:
    """Turn a budget into the keys of a recipe that keep to it; one that names no pairs takes all there are.

    Raises:
        UserError: it is no budget.
    """
    pairs: str | None = None
    train: dict[str, float] = {}
    for one in budgets.parse_all(budget):
        if isinstance(one, budgets.PairBudget):
            pairs = str(one)
        elif isinstance(one, budgets.TimeBudget):
            train["max_seconds"] = one.seconds
        else:
            train["max_memory_bytes"] = one.bytes
    return {"data": {"budget": pairs}} | ({"train": train} if train else {})
