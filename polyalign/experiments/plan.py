"""What a run would take of this machine, for each strategy, before anything is downloaded or trained."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import timm
import torch
from huggingface_hub import HfApi, constants, try_to_load_from_cache
from pydantic import BaseModel, ConfigDict
from rich import box

from polyalign.config.budget import PairBudget, parse_budget
from polyalign.config.resolve import resolve
from polyalign.config.schema import Recipe
from polyalign.data.load import draw, load_table
from polyalign.data.pairs import PairTable, merge
from polyalign.evaluation.tables import duration
from polyalign.experiments import costs
from polyalign.models.towers.text_loading import load_tokenizer
from polyalign.training.plan import Plan
from polyalign.utils import storage
from polyalign.utils.errors import UserError, first_line
from polyalign.utils.hub import check_hub
from polyalign.utils.plain_table import PlainTable
from polyalign.utils.process import peak_memory, processes
from polyalign.utils.progress import progress
from polyalign.utils.text import binary_size

logger = logging.getLogger(__name__)

How = Literal["measured", "estimated"]

_MARGIN = 1.1  # of the memory, for temporary tensors
_SAMPLE = 2_000  # captions
_CHARACTERS = 4  # of a token, where the tokenizer is not here
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


class Figure(BaseModel):
    """A number of bytes or seconds, and whether it is measured here or estimated."""

    model_config = ConfigDict(frozen=True)

    amount: float
    how: How


class Row(BaseModel):
    """What a strategy would take; ``lacks`` is what this machine has too little of, ``problem`` why it cannot train.

    ``cache`` and ``memory`` are in bytes, ``time`` in seconds, the computation of the frozen layers included. It is
    None where the memory does not suffice, and less if training stops early or the layers are cached already.
    """

    strategy: str
    trainable: int = 0
    total: int = 0
    cache: Figure | None = None
    memory: Figure | None = None
    time: Figure | None = None
    lacks: tuple[str, ...] = ()
    problem: str | None = None


class Forecast(BaseModel):
    """The amounts of data, what the machine has, and a row for each strategy.

    ``download`` is that of the towers in bytes; ``memory_free`` and ``disk_free`` are in bytes.
    """

    recipe: str
    lang: str
    pairs: int
    images: int
    steps: int
    device: str
    tokens: Figure
    download: Figure
    memory_free: int
    disk_free: int
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class _Data:
    """Training pairs, all tables whose features are cached, and the lengths of some training captions in tokens."""

    train: PairTable
    dev: list[PairTable]
    others: list[PairTable]
    lengths: npt.NDArray[np.int64]
    counted: bool

    def cache(self, recipe: Recipe, of: costs.Shapes) -> int:
        """Return the bytes of all features; tables of the same images share those, and equal captions are one."""
        tables = [self.train, *self.dev, *self.others]
        images = sum({table.image_ids: len(table.images) for table in tables[1:]}.values())
        images += len(self.train.images) * (recipe.data.views or 1)
        captions = len({(table.lang, caption) for table in tables for caption in table.captions})
        return round(images * of.image + captions * (of.caption + of.token * float(self.lengths.mean())))

    def seconds(self, recipe: Recipe, of: costs.Seconds) -> float:
        """Return the seconds of training and dev evaluations, and of computing the features of both."""
        plan = Plan.of(recipe, len(self.train))
        dev_images = sum({table.image_ids: len(table.images) for table in self.dev}.values())
        dev = sum(map(len, self.dev))
        prepared = (len(self.train.images) * (recipe.data.views or 1) + dev_images) * of.image
        prepared += (len(self.train) + dev) * of.caption
        trained = plan.steps * of.step + len(plan.dev_evaluations) * dev * of.evaluation
        return min(prepared + trained, recipe.train.max_seconds or float("inf"))


def forecast(name: str, lang: str, strategies: Sequence[str], overrides: dict[str, Any]) -> Forecast:
    """Say what each strategy would take with a recipe, a language and data.

    Raises:
        UserError: an unknown recipe, language or strategy, or the data cannot be read.
    """
    recipes = [resolve(name, lang, strategy, overrides) for strategy in strategies]
    first = recipes[0]
    device = processes().device
    data = _load(first)
    base, free = peak_memory(torch.device("cpu")) if device.type == "cpu" else 0, free_memory(device)
    disk = _disk_free(storage.cache_folder())
    rows = []
    for place, recipe in enumerate(recipes):
        progress("measuring", place, len(recipes), recipe.strategy["name"])
        rows.append(_row(recipe, data, base, free, disk))
    progress("measuring", len(recipes), len(recipes))
    if all(row.problem for row in rows):
        raise UserError(str(rows[0].problem))
    if first.parallel is not None:
        logger.warning("warning: the parallel text of the recipe is not counted")
    download = _download(first, 4 * min(row.total for row in rows if row.total))
    if download.amount > _disk_free(Path(constants.HF_HUB_CACHE)):
        rows = [row.model_copy(update={"lacks": (*row.lacks, "disk for the towers")}) for row in rows]
    return Forecast(
        recipe=name,
        lang=lang,
        pairs=len(data.train),
        images=len(data.train.images),
        steps=Plan.of(first, len(data.train)).steps,
        device=str(device),
        tokens=Figure(amount=float(data.lengths.mean()), how="measured" if data.counted else "estimated"),
        download=download,
        memory_free=free,
        disk_free=disk,
        rows=tuple(sorted(rows, key=lambda row: row.trainable)),
    )


def _row(recipe: Recipe, data: _Data, base: int, free: int, disk: int) -> Row:
    """Say what one strategy takes; ``base`` bytes are held before it is built."""
    strategy = recipe.strategy["name"]
    batch = min(recipe.optim.batch_size, len(data.train))
    try:
        of = costs.shapes(recipe, int(data.lengths.max()))
        cache = data.cache(recipe, of)
        on_disk = cache if base else 0  # a process on the CPU also holds the pages that it reads
        memory = round(_MARGIN * (base + of.memory(min(recipe.optim.micro_batch or batch, batch), batch) + on_disk))
        found = (("memory", memory > free + base), ("disk", cache > min(disk, recipe.cache.max_gib * 2**30)))
        lacks = tuple(what for what, too_much in found if too_much)
        time = None
        if "memory" not in lacks:
            order = np.linspace(0, len(data.lengths) - 1, 32).astype(int)
            lengths = [int(data.lengths[i]) for i in order]
            seconds = costs.measure(recipe, data.train.images, lengths, batch)
            time = Figure(amount=data.seconds(recipe, seconds), how="measured")
    except UserError as error:
        return Row(strategy=strategy, problem=str(error))
    return Row(
        strategy=strategy,
        trainable=of.trainable,
        total=of.total,
        cache=Figure(amount=cache, how="measured" if data.counted or not of.token else "estimated"),
        memory=Figure(amount=memory, how="estimated"),
        time=time,
        lacks=lacks,
    )


def _load(recipe: Recipe) -> _Data:
    """Load the tables of a run; images are not checked, so that unreadable ones and leakage are counted too."""

    def load(split: str, lang: str) -> PairTable:
        table = load_table(recipe, split, lang).without_empty_captions()
        if not len(table):
            raise UserError(f"{table.name} ({lang}): no image has a caption that is not blank")
        return table

    def drawn(lang: str) -> PairTable:
        budget = recipe.pairs_budget(lang)
        pairs = None if budget is None else parse_budget(budget)
        table = load("train", lang)
        return draw(table, pairs, recipe.data.data_seed) if isinstance(pairs, PairBudget) else table

    train = merge([drawn(lang) for lang in recipe.langs])
    dev = [load("dev", lang) for lang in recipe.data.targets or recipe.langs]
    others = [load("test", lang) for lang in (*recipe.langs, *recipe.transfer)]
    captions = list(train.captions[:_SAMPLE])
    longest = recipe.text.max_tokens
    try:
        found = load_tokenizer(recipe.text)([f"{recipe.text.prompt or ''}{caption}" for caption in captions])
        lengths, counted = [len(ids) for ids in found["input_ids"]], True
    except UserError as error:
        logger.info(f"the lengths of the captions are estimated: {error}")
        lengths, counted = [2 + len(caption) // _CHARACTERS for caption in captions], False
    return _Data(train, dev, others, np.clip(lengths, 3, longest).astype(np.int64), counted)


def _download(recipe: Recipe, parameters: int) -> Figure:
    """Return the bytes of the towers that are not on this machine, from the hub, or else from their parameters."""
    wanted = [one for one in (_vision_repo(recipe), _text_repo(recipe)) if one is not None]
    missing = [(repo, revision) for repo, revision in wanted if not _is_here(repo, revision)]
    if missing:
        check_hub()
    try:
        sizes = [_size_on_hub(repo, revision) for repo, revision in missing]
    except UserError as error:
        logger.info(f"the download is estimated from the parameters of both towers: {error}")
        return Figure(amount=parameters, how="estimated")
    return Figure(amount=sum(sizes), how="measured")


def _vision_repo(recipe: Recipe) -> tuple[str, str | None] | None:
    """Return the place of the vision tower on the hub; None if it is a local file or folder."""
    spec = recipe.vision
    if spec.model == "starter" or spec.weights is not None or Path(spec.model).expanduser().is_dir():
        return None
    if ":" in spec.model:
        place = spec.model.partition(":")[2]
        return None if Path(place).is_dir() else (place, None)
    config = timm.get_pretrained_cfg(spec.model, allow_unregistered=True)
    return (str(config.hf_hub_id), None) if config is not None and config.hf_hub_id else None


def _text_repo(recipe: Recipe) -> tuple[str, str | None] | None:
    spec = recipe.text
    is_local = spec.model == "starter" or Path(spec.model).expanduser().is_dir()
    return None if is_local else (spec.model, spec.revision)


def _is_here(repo: str, revision: str | None) -> bool:
    return any(isinstance(try_to_load_from_cache(repo, name, revision=revision), str) for name in _WEIGHTS)


def _size_on_hub(repo: str, revision: str | None) -> int:
    """Return the bytes of the safetensors files of a model, and of the small files beside them.

    Raises:
        UserError: the hub cannot be reached, or has no such model.
    """
    if constants.HF_HUB_OFFLINE:
        raise UserError("the hub is not asked offline")
    try:
        files = HfApi().model_info(repo, revision=revision, files_metadata=True).siblings or []
    except Exception as error:  # the client raises errors of several libraries
        raise UserError(f"the hub does not say how large {repo} is: {first_line(error)}") from error
    ends = (".safetensors", ".json", ".txt", ".model")
    return sum(file.size or 0 for file in files if "/" not in file.rfilename and file.rfilename.endswith(ends))


def free_memory(device: torch.device) -> int:
    """Return the bytes of memory that a process can still take: of the GPU, else of the machine and its limits."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    facts, group = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    if not facts.is_file():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = _number(facts, "MemAvailable:") * 1024
    limit = group / "memory.max"
    if limit.is_file() and (allowed := limit.read_text().strip()).isdigit():
        free = min(free, int(allowed) - _number(group / "memory.stat", "anon"))
    return max(0, free)


def _number(path: Path, key: str) -> int:
    """Return the number after a key in a file of lines."""
    return next(int(words[1]) for line in path.read_text().splitlines() if (words := line.split())[0] == key)


def _disk_free(folder: Path) -> int:
    return shutil.disk_usage(next(place for place in (folder, *folder.absolute().parents) if place.exists())).free


def render(found: Forecast) -> PlainTable:
    """Draw a forecast for the terminal."""
    towers = f"towers to download: {_bytes(found.download)}" if found.download.amount else "no towers to download"
    tokens = f"{'' if found.tokens.how == 'measured' else '~'}{found.tokens.amount:.0f} tokens a caption"
    table = PlainTable(
        title=f"Recipe {found.recipe}, {found.lang}, on {found.device}",
        caption=f"{found.pairs:,} pairs of {found.images:,} images, {tokens}, {found.steps:,} steps\n"
        f"{towers}; free: {binary_size(found.memory_free)} of memory, {binary_size(found.disk_free)} of disk\n"
        "~ estimated from shapes and parameters; without it, measured, or stated by the hub\n"
        "time: with the frozen layers, at most: training may stop early",
        box=box.SIMPLE_HEAD,
    )
    for name, justify in (("strategy", "left"), *((one, "right") for one in ("trained %", "cache", "memory", "time"))):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("fits")
    for row in found.rows:
        if row.problem:
            table.add_row(row.strategy, "-", "-", "-", "-", "no (see below)")
            continue
        share = f"{100 * row.trainable / row.total:.2f}"
        time = "-" if row.time is None else duration(row.time.amount)
        fits = f"no: {', '.join(row.lacks)}" if row.lacks else "yes"
        table.add_row(row.strategy, share, _bytes(row.cache), _bytes(row.memory), time, fits)
    return table


def _bytes(figure: Figure | None) -> str:
    return "-" if figure is None else f"{'' if figure.how == 'measured' else '~'}{binary_size(figure.amount)}"
