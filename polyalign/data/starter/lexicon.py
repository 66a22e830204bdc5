"""What the ``[starter]`` table of a language holds: words with their forms, and templates to put them in.

A word form is looked up by a set of tags (``sg``, ``dat``, ``f``, ...). A key lists the tags that it asks for,
``"dat m|n"`` standing for ``"dat m"`` and ``"dat n"``; of the keys whose tags are all there, the longest wins. The
engine knows no tag but those of number (``sg``/``pl`` and the count itself); all others are the language's own.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Mapping
from typing import Annotated, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from polyalign.config.language import Lang, describe_error
from polyalign.data.starter import world
from polyalign.utils.errors import UserError, did_you_mean

Tags = frozenset[str]

_FACTS = frozenset({"a", "b", "rel", "bg"})
_SLOT = re.compile(r"\{(\w+)(?::([\w ]+))?(?:@(\w+))?\}")
_OPTIONAL = re.compile(r"\[([^\[\]]*)\]")


def _listed(value: object) -> object:
    return value if isinstance(value, list | tuple) else [value]


class Word(BaseModel):
    """A word: ``forms`` by tags, over those of the paradigm that it is ``like`` (whose ``{}`` is its ``stem``).

    ``tags`` are what the word brings into its phrase: gender, noun class, classifier. A plain string is a word of one
    form.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    stem: str = ""
    like: str | None = None
    forms: dict[str, str] = {}
    tags: str = ""

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: object) -> object:
        return {"forms": {"": value}} if isinstance(value, str) else value


Words = Annotated[tuple[Word, ...], BeforeValidator(_listed), Field(min_length=1)]
Texts = Annotated[tuple[str, ...], BeforeValidator(_listed), Field(min_length=1)]


class Table(BaseModel):
    """The ``[starter]`` table as written; wherever there may be several words or texts, one of them is drawn."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    paradigms: dict[str, dict[str, str]] = {}
    kinds: dict[str, Words]
    colors: dict[str, Words]
    sizes: dict[str, Words]
    counts: dict[str, Words]
    words: dict[str, Words] = {}
    phrases: dict[str, Texts]
    relations: dict[str, Texts]
    backgrounds: dict[str, Texts]
    sentences: Texts
    rewrites: tuple[tuple[str, str], ...] = ()


class Slot(NamedTuple):
    """A place in a template: what fills it, tags added to it, and the phrase that it agrees with."""

    name: str
    tags: Tags
    agrees_with: str | None


class Template:
    """Text with ``{slot}``s and ``[optional parts]``, which are left out when a slot in them has nothing to say.

    A slot is ``{name}``, ``{name:tags}`` (more tags for what fills it) or ``{name@phrase}`` (agreeing with a phrase).
    """

    def __init__(self, text: str) -> None:
        """Find the slots; those outside brackets are required."""
        self.text = text
        self.slots = frozenset(slot[1] for slot in _SLOT.finditer(text))
        self.required = frozenset(slot[1] for slot in _SLOT.finditer(_OPTIONAL.sub("", text)))
        self._known: dict[Tags, list[str | Slot]] = {}

    def parts(self, present: frozenset[str]) -> list[str | Slot]:
        """Cut into literals and slots, optional parts kept where all their slots are ``present``."""
        if present not in self._known:
            self._known[present] = self._cut(present)
        return self._known[present]

    def _cut(self, present: frozenset[str]) -> list[str | Slot]:
        whole = _OPTIONAL.sub(
            lambda part: part[1] if all(slot[1] in present for slot in _SLOT.finditer(part[1])) else "", self.text
        )
        cut: list[str | Slot] = []
        end = 0
        for slot in _SLOT.finditer(whole):
            cut += [whole[end : slot.start()], Slot(slot[1], frozenset((slot[2] or "").split()), slot[3])]
            end = slot.end()
        return [*cut, whole[end:]]


class Entry:
    """A word of a lexicon, ready to be inflected."""

    def __init__(self, name: str, word: Word, paradigms: Mapping[str, dict[str, str]], file: str) -> None:
        """Join the word's own forms with its paradigm's."""
        if word.like is not None and word.like not in paradigms:
            known = did_you_mean(word.like, paradigms)
            raise UserError(f'{file}: {name} is like "{word.like}", which is not in [starter.paradigms]: {known}')
        self.name, self.file = name, file
        self.tags = frozenset(word.tags.split())
        pattern = paradigms[word.like] if word.like is not None else {}
        self._forms: dict[Tags, str] = {}
        for forms in (pattern, word.forms):
            for key, form in forms.items():
                self._forms.update({tags: form.replace("{}", word.stem) for tags in expand(key)})
        self._known: dict[Tags, str] = {}

    def inflect(self, tags: Tags) -> str:
        """Return the form whose key asks for most of ``tags`` and for nothing else.

        Raises:
            UserError: no form fits, or two fit equally well.
        """
        if tags not in self._known:
            self._known[tags] = self._choose(tags)
        return self._known[tags]

    def _choose(self, tags: Tags) -> str:
        fitting = {key: form for key, form in self._forms.items() if key <= tags}
        best = [form for key, form in fitting.items() if len(key) == max(map(len, fitting))]
        if len(set(best)) != 1:
            trouble = f"forms {sorted(set(best))} fit equally well" if best else "no form fits"
            raise UserError(f"{self.file}: {self.name}: {trouble} the tags {' '.join(sorted(tags))!r}")
        return best[0]


class Lexicon:
    """The ``[starter]`` table of one language, checked and ready for use."""

    def __init__(self, lang: Lang) -> None:
        """Check that the table says every fact of the world.

        Raises:
            UserError: the language has no ``[starter]`` table, or something is missing in it; names file and key.
        """
        self.file = f"langs/{lang.code}.toml"
        if not lang.starter:
            raise UserError(f"{self.file} has no [starter] table, so {lang.english_name} cannot say the starter world")
        try:
            table = Table.model_validate(lang.starter)
        except ValidationError as error:
            raise UserError(f"{self.file}: [starter] {describe_error(error)}") from error
        self._paradigms = table.paradigms
        self.kinds = self._words("kinds", table.kinds, world.KINDS)
        self.colors = self._words("colors", table.colors, world.COLORS)
        self.sizes = self._words("sizes", table.sizes, world.SIZES)
        self.counts = self._words("counts", table.counts, [str(count) for count in world.COUNTS])
        self.words = self._words("words", table.words, table.words)
        self.relations = self._templates("relations", table.relations, world.RELATIONS)
        self.backgrounds = self._templates("backgrounds", table.backgrounds, world.BACKGROUNDS)
        self.phrases = {
            tags: self._parse(f"phrases.{key}", texts, {"count", "size", "color", "noun"})
            for key, texts in table.phrases.items()
            for tags in expand(key)
        }
        self.sentences = self._parse("sentences", table.sentences, _FACTS)
        self.rewrites = [(self._pattern(pattern), new) for pattern, new in table.rewrites]
        self._usable: dict[frozenset[str], list[Template]] = {}
        self._check_sentences()

    def phrase(self, tags: Tags) -> tuple[Template, ...]:
        """Return the noun-phrase templates whose key asks for most of ``tags``."""
        fitting = [key for key in self.phrases if key <= tags]
        if not fitting:
            raise UserError(f"{self.file}: [starter.phrases] has no template for the tags {' '.join(sorted(tags))!r}")
        return self.phrases[max(fitting, key=len)]

    def usable(self, present: frozenset[str]) -> list[Template]:
        """Return the sentence templates that say exactly what is ``present``, of ``a``, ``b``, ``rel`` and ``bg``."""
        if present not in self._usable:
            # A relation says {b} itself, so a sentence with {rel} need not.
            said = present - {"b"} if "rel" in present else present
            self._usable[present] = [t for t in self.sentences if t.required & _FACTS <= present and said <= t.slots]
        return self._usable[present]

    def _words(
        self, section: str, given: Mapping[str, tuple[Word, ...]], needed: Collection[str]
    ) -> dict[str, list[Entry]]:
        self._complete(section, given, needed)
        return {
            key: [Entry(f"[starter.{section}] {key}", word, self._paradigms, self.file) for word in words]
            for key, words in given.items()
        }

    def _templates(
        self, section: str, given: Mapping[str, tuple[str, ...]], needed: Collection[str]
    ) -> dict[str, tuple[Template, ...]]:
        self._complete(section, given, needed)
        return {key: self._parse(f"{section}.{key}", texts, {"a", "b"}) for key, texts in given.items()}

    def _complete(self, section: str, given: Collection[str], needed: Collection[str]) -> None:
        if missing := [key for key in needed if key not in given]:
            raise UserError(f"{self.file}: [starter.{section}] lacks {', '.join(missing)}")
        if unknown := [key for key in given if key not in needed]:
            raise UserError(f'{self.file}: [starter.{section}] has "{unknown[0]}": {did_you_mean(unknown[0], needed)}')

    def _parse(self, where: str, texts: tuple[str, ...], slots: Collection[str]) -> tuple[Template, ...]:
        for text in texts:
            rest = _SLOT.sub("", _OPTIONAL.sub(r"\1", text))
            if re.search(r"[][{}]", rest):
                raise UserError(f'{self.file}: [starter] {where}: stray bracket in "{text}"')
            for slot in _SLOT.finditer(text):
                if slot[1] not in slots and slot[1] not in self.words:
                    known = did_you_mean(slot[1], {*slots, *self.words})
                    raise UserError(f'{self.file}: [starter] {where}: unknown slot "{slot[1]}" in "{text}": {known}')
                if slot[3] not in (None, "a", "b"):
                    raise UserError(f'{self.file}: [starter] {where}: a word agrees with a or b, not "{slot[3]}"')
        return tuple(Template(text) for text in texts)

    def _pattern(self, pattern: str) -> re.Pattern[str]:
        try:
            return re.compile(pattern)
        except re.error as error:
            raise UserError(
                f'{self.file}: [starter] rewrites: "{pattern}" is no regular expression: {error}'
            ) from error

    def _check_sentences(self) -> None:
        for extra in ((), ("rel",), ("bg",), ("rel", "bg")):
            if not self.usable(frozenset({"a", "b", *extra})):
                wanted = " ".join(f"{{{slot}}}" for slot in ("a", "b", *extra))
                raise UserError(f"{self.file}: [starter] sentences: no template says exactly {wanted}")


def expand(key: str) -> list[Tags]:
    """Spell out the alternatives of a key: ``"dat m|n"`` gives ``{dat, m}`` and ``{dat, n}``."""
    return [frozenset(choice) for choice in itertools.product(*(part.split("|") for part in key.split()))]
