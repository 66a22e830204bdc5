"""Says a scene in any language that has a ``[starter]`` table: first what to say, then how.

``choose`` picks the facts (a plan, no language in it), ``word`` puts a plan into words; two languages given the same
plan say the same, which makes parallel text without a translator. Nothing here knows any language.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np

from polyalign.config.language import Lang
from polyalign.data.starter.lexicon import Lexicon, Slot, Tags, Template
from polyalign.data.starter.world import OPPOSITE, Scene

KEEP: Final = 0.75
"""How likely a caption says a fact that it may leave out."""


T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """What a caption says of one thing; None is left unsaid."""

    kind: str
    count: int
    color: str | None
    size: str | None


@dataclass(frozen=True)
class Plan:
    """What a caption says: ``parts[0]`` stands in ``relation`` to ``parts[1]``; None is left unsaid."""

    parts: tuple[Part, Part]
    relation: str | None
    background: str | None

    def turned(self) -> Plan:
        """Say the same from the other side: A left of B is B right of A."""
        relation = None if self.relation is None else OPPOSITE[self.relation]
        return Plan((self.parts[1], self.parts[0]), relation, self.background)


def choose(scene: Scene, rng: np.random.Generator) -> Plan:
    """Choose which facts a caption says: kinds and counts always, each other fact with probability ``KEEP``."""
    keep = rng.random(6) < KEEP
    first, second = (
        Part(thing.kind, thing.count, thing.color if color else None, thing.size if size else None)
        for thing, color, size in zip(scene.things, keep[:2], keep[2:4], strict=True)
    )
    return Plan((first, second), scene.relation if keep[4] else None, scene.background if keep[5] else None)


def word(plan: Plan, lang: Lang, rng: np.random.Generator) -> str:
    """Put a plan into words, with a wording drawn from those the language has.

    Raises:
        UserError: the language cannot say it; names its file and the missing key.
    """
    return _Wording(plan if rng.random() < 0.5 else plan.turned(), lexicon(lang), rng).sentence()


def say(scene: Scene, lang: Lang, rng: np.random.Generator) -> str:
    """Say a scene in one sentence without capital or full stop; the same ``rng`` state gives the same sentence.

    Raises:
        UserError: the language cannot say it; names its file and the missing key.
    """
    return word(choose(scene, rng), lang, rng)


_LEXICONS: dict[int, tuple[Lang, Lexicon]] = {}


def lexicon(lang: Lang) -> Lexicon:
    """Return the checked lexicon of a language, built once for each ``Lang`` object.

    Raises:
        UserError: the language has no ``[starter]`` table or something is missing in it.
    """
    # Lang holds dicts and so has no hash; keeping the object keeps its id from being used again.
    if id(lang) not in _LEXICONS:
        _LEXICONS[id(lang)] = (lang, Lexicon(lang))
    return _LEXICONS[id(lang)][1]


class _Wording:
    """One sentence being made: the plan, the words drawn so far, and the source of chance."""

    def __init__(self, plan: Plan, lexicon: Lexicon, rng: np.random.Generator) -> None:
        self.plan, self.lexicon, self.rng = plan, lexicon, rng
        self.phrases = dict(zip("ab", (_Phrase(part, self) for part in plan.parts), strict=True))

    def pick(self, options: Sequence[T]) -> T:
        return options[0] if len(options) == 1 else options[int(self.rng.integers(len(options)))]

    def sentence(self) -> str:
        said = {"rel": self.plan.relation, "bg": self.plan.background}
        present = frozenset({"a", "b", *(slot for slot, fact in said.items() if fact is not None)})
        text = self._fill(self.pick(self.lexicon.usable(present)), present)
        text = " ".join(text.split())
        for pattern, new in self.lexicon.rewrites:
            text = pattern.sub(new, text)
        return text

    def _fill(self, template: Template, present: frozenset[str]) -> str:
        return "".join(part if isinstance(part, str) else self._say(part) for part in template.parts(present))

    def _say(self, slot: Slot) -> str:
        name = slot.name
        if name in self.phrases:
            return self.phrases[name].text(slot.tags)
        if name == "rel" and self.plan.relation is not None:
            return self._fill(self.pick(self.lexicon.relations[self.plan.relation]), frozenset("ab"))
        if name == "bg" and self.plan.background is not None:
            return self._fill(self.pick(self.lexicon.backgrounds[self.plan.background]), frozenset("ab"))
        agreed = self.phrases[slot.agrees_with].tags if slot.agrees_with else frozenset()
        return self.pick(self.lexicon.words[name]).inflect(agreed | slot.tags)


class _Phrase:
    """A noun phrase: number and the noun's own tags are settled once, case comes from where it stands."""

    def __init__(self, part: Part, wording: _Wording) -> None:
        lexicon = wording.lexicon
        self.wording = wording
        drawn: Mapping[str, str | None] = {"color": part.color, "size": part.size, "count": str(part.count)}
        sections = {"color": lexicon.colors, "size": lexicon.sizes, "count": lexicon.counts}
        self.words = {slot: wording.pick(sections[slot][key]) for slot, key in drawn.items() if key is not None}
        self.words["noun"] = wording.pick(lexicon.kinds[part.kind])
        number = "sg" if part.count == 1 else "pl"
        self.tags: Tags = frozenset({number, str(part.count)}).union(*(w.tags for w in self.words.values()))

    def text(self, tags: Tags) -> str:
        """Inflect every word for the phrase's own tags and those of its place (case)."""
        tags = self.tags | tags
        template = self.wording.pick(self.wording.lexicon.phrase(tags))
        parts = template.parts(frozenset(self.words))
        return "".join(
            part if isinstance(part, str) else self._word(part.name, tags | part.tags) for part in parts
        ).strip()

    def _word(self, name: str, tags: Tags) -> str:
        entry = self.words[name] if name in self.words else self.wording.pick(self.wording.lexicon.words[name])
        return entry.inflect(tags)
