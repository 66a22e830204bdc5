"""The lines a text tower is pretrained on: the starter world's own, or a user's files.

A line is one meaning in one or more languages. Text without translations is lines of one language each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from polyalign.config import language as langs
from polyalign.config.language import Lang
from polyalign.data.starter.grammar import choose, word
from polyalign.data.starter.scenes import sample_scene
from polyalign.utils.errors import UserError
from polyalign.utils.progress import Progress

Line = Mapping[str, str]
"""Sentence by language code."""

UNNAMED = "text"
"""What stands for a language where a user's file says none."""

HELD_OUT = 1000
"""How many lines are kept back to measure with, where there are enough."""


@dataclass(frozen=True)
class Corpus:
    """Lines to learn from, and lines held out to measure with; ``origin`` says in words where they come from."""

    train: Sequence[Line]
    held_out: Sequence[Line]
    origin: str

    def languages(self) -> list[str]:
        """List the languages, the one with most sentences first."""
        counts = self.sentences()
        return sorted(counts, key=lambda code: (-counts[code], code))

    def sentences(self) -> dict[str, int]:
        """Count the training sentences of each language."""
        counts: dict[str, int] = {}
        for line in self.train:
            for code in line:
                counts[code] = counts.get(code, 0) + 1
        return counts

    def digest(self) -> str:
        """Hash the training lines, so that a run is not resumed on other text."""
        digest = hashlib.sha256()
        for line in self.train:
            digest.update(repr(sorted(line.items())).encode())
        return digest.hexdigest()[:16]


def starter(
    codes: Sequence[str],
    lines: int,
    low_resource_share: float,
    seed: int,
    *,
    held_out: int = HELD_OUT,
    progress: Progress | None = None,
) -> Corpus:
    """Say ``lines`` scenes of the starter world in every language; a low-resource one has only that share of them.

    The ``held_out`` scenes are said in every language.

    Raises:
        UserError: a language has no ``[starter]`` table.
    """
    languages = [langs.load(code) for code in codes]
    rng = np.random.default_rng([seed, 0])
    train: list[Line] = []
    for done in range(lines):
        train.append(_say(_some(languages, low_resource_share, rng), rng))
        if progress and (done + 1) % 500 == 0:
            progress("saying scenes", done + 1, lines)
    rng = np.random.default_rng([seed, 1])
    kept_back = [_say(languages, rng) for _ in range(held_out)]
    return Corpus(train, kept_back, f"the starter world's grammar, {lines:,} scenes")


def files(texts: Sequence[Path], parallel: Mapping[str, Path], seed: int, *, held_out: int = HELD_OUT) -> Corpus:
    """Read a user's files, one sentence a line; ``parallel`` files belong together line by line.

    An empty line in a parallel file means that the translation is missing. A tenth of the parallel lines is held
    out, at most ``held_out``.

    Raises:
        UserError: a file cannot be read, parallel files differ in length, or there is nothing in them.
    """
    alone = [{UNNAMED: sentence} for path in texts for sentence in _read(path) if sentence]
    columns = {code: _read(path) for code, path in parallel.items()}
    lengths = {code: len(column) for code, column in columns.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{parallel[code]} has {count}" for code, count in lengths.items())
        raise UserError(f"parallel files must have the same number of lines: {counts}")
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    together = [line for row in rows if (line := {code: text for code, text in row.items() if text})]
    order = np.random.default_rng(seed).permutation(len(together))
    kept_back = min(held_out, len(together) // 10)
    train = alone + [together[i] for i in sorted(order[kept_back:])]
    if len(train) < 2:
        given = ", ".join(str(path) for path in [*texts, *parallel.values()])
        raise UserError(f"too little text to learn from in {given}: one sentence a line is expected")
    names = [path.name for path in [*texts, *parallel.values()]]
    return Corpus(train, [together[i] for i in sorted(order[:kept_back])], f"{', '.join(names)}")


def _some(languages: Sequence[Lang], low_resource_share: float, rng: np.random.Generator) -> list[Lang]:
    chance = rng.random(len(languages))
    return [lang for lang, u in zip(languages, chance, strict=True) if not lang.low_resource or u < low_resource_share]


def _say(languages: Sequence[Lang], rng: np.random.Generator) -> Line:
    plan = choose(sample_scene(rng), rng)
    return {lang.code: word(plan, lang, rng) for lang in languages}


def _read(path: Path) -> list[str]:
    try:
        return [" ".join(line.split()) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} as UTF-8 text: {error}") from error
