"""Multi30k: Flickr30k captions translated (task 1), or written independently in German and English (task 2)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from polyalign.config.language import Lang
from polyalign.data.pairs import PairTable
from polyalign.data.readers import benchmark
from polyalign.data.readers.files import existing, folder
from polyalign.data.readers.info import PUBLISHED
from polyalign.utils.errors import UserError, did_you_mean

INFO = PUBLISHED["multi30k"]


class Config(benchmark.Benchmark):
    """Task and test set; task 2 has only the test set of 2016."""

    task: Literal[1, 2] = 1
    test: Literal["2016-flickr", "2017-flickr", "2017-mscoco", "2018-flickr"] = "2016-flickr"


def load(config: Config, lang: Lang, split: str) -> PairTable:
    """Load the captions of a language, see ``Benchmark``."""
    test = f"test_{config.test.replace('-', '_')}"
    parts = {"train": "train", "dev": "val", "test": test}
    benchmark.check("multi30k", lang, split, splits=parts, languages=(lang.code,))
    part = parts[split]
    places = (config.root / where / f"{part}.txt" for where in ("task1/image_splits", "image_splits"))
    names = existing(*places, what=f"list of the {part} images")
    stems = [part] if config.task == 1 else _task2_stems(part)
    pairs = [pair for stem in stems for pair in benchmark.aligned(names, _caption_file(config, stem, lang))]
    return benchmark.table(f"multi30k-task{config.task}-{part}", lang, "human", pairs, config)


def languages(config: Config) -> list[str]:
    """List the languages of the test set."""
    return sorted(_captions(config, f"test_{config.test.replace('-', '_')}" if config.task == 1 else "test_2016.1"))


def _task2_stems(part: str) -> list[str]:
    if part.startswith("test") and part != "test_2016_flickr":
        raise UserError(f"multi30k has no task 2 captions for {part}: its only test set is 2016-flickr")
    return [f"{part.removesuffix('_flickr')}.{n}" for n in range(1, 6)]


def _captions(config: Config, stem: str) -> dict[str, Path]:
    """Return the caption file of each language."""
    task = config.root / f"task{config.task}"
    files = [path for folder in (task, task / "raw") for path in folder.glob(f"{stem}.*.gz")]
    return {path.name.removeprefix(f"{stem}.").removesuffix(".gz"): path for path in files}


def _caption_file(config: Config, stem: str, lang: Lang) -> Path:
    files = _captions(config, stem)
    if lang.code in files:
        return files[lang.code]
    task = folder(config.root, "source.root, with task1 and task2") / f"task{config.task}"
    if not files:
        raise UserError(f"multi30k: there is no {stem}.<language>.gz in {task} or {task / 'raw'}")
    raise UserError(f'multi30k has no {stem} captions in "{lang.code}" in {task}: {did_you_mean(lang.code, files)}')
