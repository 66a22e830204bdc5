"""Describe a scene in any language that has a ``[starter]`` table: first decide what to say, then how.

``choose`` selects the facts (a plan, independent of language) and ``word`` puts a plan into words. Two languages given
the same plan say the same, which gives parallel text without a translator. Nothing here is specific to a language.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np

from polyalign.config.language import Lang
from polyalign.data.starter.lexicon import Entry, Lexicon, Tags, fill
from polyalign.data.starter.world import OPPOSITE, Scene

KEEP: Final = 0.75
"""Probability that a caption mentions an optional fact."""

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """What a caption says about one thing; None is not mentioned."""

    kind: str
    count: int
    color: str | None
    size: str | None


@dataclass(frozen=True)
class Plan:
    """What a caption says: ``parts[0]`` stands in ``relation`` to ``parts[1]``; None is not mentioned."""

    parts: tuple[Part, Part]
    relation: str | None
    background: str | None

    def turned(self) -> Plan:
        """Say the same from the other side: A left of B is B right of A."""
        relation = None if self.relation is None else OPPOSITE[self.relation]
        return Plan((self.parts[1], self.parts[0]), relation, self.background)


def choose(scene: Scene, rng: np.random.Generator) -> Plan:
    """Choose the facts of a caption: kinds and counts always, each other fact with probability ``KEEP``."""
    keep = rng.random(6) < KEEP
    first, second = (
        Part(thing.kind, thing.count, thing.color if color else None, thing.size if size else None)
        for thing, color, size in zip(scene.things, keep[:2], keep[2:4], strict=True)
    )
    return Plan((first, second), scene.relation if keep[4] else None, scene.background if keep[5] else None)


def word(plan: Plan, lang: Lang, rng: np.random.Generator) -> str:
    """Put a plan into words; the wording is drawn from those of the language.

    Raises:
        UserError: the language cannot say it; names its file and the missing key.
    """
    return _Sentence(plan if rng.random() < 0.5 else plan.turned(), lexicon(lang), rng).text()


def say(scene: Scene, lang: Lang, rng: np.random.Generator) -> str:
    """Describe a scene in one sentence without capital or full stop; the same ``rng`` state gives the same sentence.

    Raises:
        UserError: the language cannot say it; names its file and the missing key.
    """
    return word(choose(scene, rng), lang, rng)


_LEXICONS: dict[int, tuple[Lang, Lexicon]] = {}


def lexicon(lang: Lang) -> Lexicon:
    """Return the checked lexicon of a language, built once for each ``Lang`` object.

    Raises:
        UserError: the language has no ``[starter]`` table, or the table is wrong.
    """
    # Lang contains dicts and so has no hash. Keeping the object prevents that its id is used again.
    if id(lang) not in _LEXICONS:
        _LEXICONS[id(lang)] = (lang, Lexicon(lang))
    return _LEXICONS[id(lang)][1]


class _Sentence:
    """One sentence: the words of its noun phrases ``a`` and ``b``, and the templates of its relation and background."""

    def __init__(self, plan: Plan, lexicon: Lexicon, rng: np.random.Generator) -> None:
        self.lexicon, self.rng = lexicon, rng
        self.phrases = {name: self._draw(part) for name, part in zip("ab", plan.parts, strict=True)}
        self.clauses: dict[str, tuple[str, ...]] = {}
        if plan.relation is not None:
            self.clauses["rel"] = lexicon.relations[plan.relation]
        if plan.background is not None:
            self.clauses["bg"] = lexicon.backgrounds[plan.background]

    def text(self) -> str:
        template = self._pick(self.lexicon.sentences[frozenset(self.clauses)])
        text = " ".join(fill(template, self.phrases.keys() | self.clauses.keys(), self._say).split())
        for pattern, new in self.lexicon.rewrites:
            text = pattern.sub(new, text)
        return text

    def _pick(self, options: Sequence[T]) -> T:
        return options[0] if len(options) == 1 else options[int(self.rng.integers(len(options)))]

    def _draw(self, part: Part) -> tuple[dict[str, Entry], Tags]:
        """Draw the words of a noun phrase; its tags are number and count, and those of its words."""
        entries = {} if part.color is None else {"color": self._pick(self.lexicon.colors[part.color])}
        if part.size is not None:
            entries["size"] = self._pick(self.lexicon.sizes[part.size])
        entries["count"] = self._pick(self.lexicon.counts[str(part.count)])
        entries["noun"] = self._pick(self.lexicon.kinds[part.kind])
        number = {"sg" if part.count == 1 else "pl", str(part.count)}
        return entries, frozenset(number).union(*(entry.tags for entry in entries.values()))

    def _say(self, name: str, tags: Tags, agrees_with: str | None) -> str:
        """Fill a slot of a sentence, relation or background."""
        if name in self.phrases:
            return self._phrase(*self.phrases[name], tags)
        if name in self.clauses:
            return fill(self._pick(self.clauses[name]), self.phrases.keys(), self._say)
        agreed = self.phrases[agrees_with][1] if agrees_with else frozenset()
        return self._pick(self.lexicon.words[name]).inflect(agreed | tags)

    def _phrase(self, entries: dict[str, Entry], own: Tags, place: Tags) -> str:
        """Inflect every word for the tags of the phrase and those of its place in the sentence, such as case."""

        def inflect(name: str, tags: Tags, _: str | None) -> str:
            entry = entries[name] if name in entries else self._pick(self.lexicon.words[name])
            return entry.inflect(own | place | tags)

        return fill(self._pick(self.lexicon.phrase(own | place)), entries.keys(), inflect).strip()
