"""COCO-CN: Chinese captions written by people; the test images also have human translations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from polyalign.config.language import Lang
from polyalign.data.pairs import PairTable
from polyalign.data.readers import benchmark
from polyalign.data.readers.files import existing, expecting, lines, read_json, string
from polyalign.data.readers.info import PUBLISHED

INFO = PUBLISHED["coco-cn"]

_PARTS = {"train": "train", "dev": "val", "test": "test"}
_RELEASE = "coco-cn-version1805v1.1"
_JSON = ("captions.json", "merged_captions_coco-cn_test.json")


class Config(benchmark.Benchmark):
    """``captions``: those ``written`` about the images, or ``all``, including the translations of the test images."""

    captions: Literal["written", "all"] = "written"


languages = benchmark.fixed("zh")


def load(config: Config, lang: Lang, split: str) -> PairTable:
    """Load a split, see ``Benchmark``."""
    benchmark.check("coco-cn", lang, split, splits=_PARTS, languages=languages(config))
    part = f"coco-cn_{_PARTS[split]}.txt"
    json_files = [config.root / name for name in _JSON] if split == "test" else []
    path = existing(config.root / part, config.root / _RELEASE / part, *json_files, what="list of images")
    pairs = _from_json(path, config) if path in json_files else _from_release(path, config)
    return benchmark.table(f"coco-cn-{config.captions}-{split}", lang, "human", pairs, config)


def _from_release(path: Path, config: Config) -> Iterator[tuple[str, str]]:
    wanted = {line.strip() for line in lines(path)}
    files = [existing(path.parent / "imageid.human-written-caption.txt", what="file of captions")]
    translated = path.parent / "imageid.manually-translated-caption.txt"
    if config.captions == "all" and translated.is_file():
        files.append(translated)
    for file in files:
        yield from ((f"{name}.jpg", text) for name, text in benchmark.tokens(file) if name in wanted)


def _from_json(path: Path, config: Config) -> Iterator[tuple[str, str]]:
    """Read COCO's format; ``source`` is ``cn`` for written captions, ``zhm`` for translated ones."""
    content = read_json(path)
    with expecting(path, "images[].{id, file_name}, annotations[].{image_id, caption, source}"):
        names = {image["id"]: string(image["file_name"]) for image in content["images"]}
        for one in content["annotations"]:
            if config.captions == "all" or one["source"] == "cn":
                yield names[one["image_id"]], benchmark.join_words(one["caption"])
