"""The ``[starter]`` table of a language: words with their forms, and templates that combine them.

A word form is chosen by a set of tags (``sg``, ``dat``, ``f``, ...). A key lists the tags that it needs; ``"dat m|n"``
stands for ``"dat m"`` and ``"dat n"``. Of the keys whose tags are all present, the longest wins. The code knows only
the tags of number (``sg``, ``pl`` and the count itself); the language file defines all others.

A template is text with slots and ``[optional parts]``. A slot is ``{name}``, ``{name:tags}`` (more tags for the word)
or ``{name@phrase}`` (the word agrees with phrase ``a`` or ``b``).
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Collection, Mapping, Set
from typing import Annotated, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from polyalign.config.language import Lang, describe_error
from polyalign.data.starter import world
from polyalign.utils.errors import UserError, did_you_mean

Tags = frozenset[str]
T = TypeVar("T")

_FACTS = frozenset({"a", "b", "rel", "bg"})
_NEEDED = {
    "kinds": world.KINDS,
    "colors": world.COLORS,
    "sizes": world.SIZES,
    "counts": tuple(map(str, world.COUNTS)),
    "relations": world.RELATIONS,
    "backgrounds": world.BACKGROUNDS,
}
_SLOT = re.compile(r"\{(\w+)(?::([\w ]+))?(?:@(\w+))?\}")
_OPTIONAL = re.compile(r"\[([^\[\]]*)\]")


def _as_list(value: object) -> object:
    return value if isinstance(value, list | tuple) else [value]


class Word(BaseModel, frozen=True, extra="forbid"):
    """A word: its ``forms`` by tags override those of the paradigm ``like``, in which ``{}`` stands for ``stem``.

    The word adds its ``tags`` (gender, noun class, classifier) to its phrase. A plain string is a word with one form.
    """

    stem: str = ""
    like: str | None = None
    forms: dict[str, str] = {}
    tags: str = ""

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: object) -> object:
        return {"forms": {"": value}} if isinstance(value, str) else value


Words = Annotated[tuple[Word, ...], BeforeValidator(_as_list), Field(min_length=1)]
Texts = Annotated[tuple[str, ...], BeforeValidator(_as_list), Field(min_length=1)]


class Table(BaseModel, frozen=True, extra="forbid"):
    """The ``[starter]`` table as written; of several words or texts, one is drawn at random."""

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
    rewrites: tuple[tuple[re.Pattern[str], str], ...] = ()


class Entry:
    """A word that can be inflected; it adds ``tags`` to its phrase."""

    def __init__(self, word: Word, paradigms: Mapping[str, dict[str, str]], where: str) -> None:
        """Combine the forms of the paradigm with the word's own; ``where`` begins every error message."""
        if word.like is not None and word.like not in paradigms:
            known = did_you_mean(word.like, paradigms)
            raise UserError(f'{where} is like "{word.like}", which is not in [starter.paradigms]: {known}')
        paradigm = paradigms[word.like] if word.like is not None else {}
        self._forms = {
            tags: form.replace("{}", word.stem)
            for key, form in [*paradigm.items(), *word.forms.items()]
            for tags in expand(key)
        }
        self._where = where
        self.tags = frozenset(word.tags.split())
        self.inflect = functools.cache(self._inflect)

    def _inflect(self, tags: Tags) -> str:
        """Return the form for these tags.

        Raises:
            UserError: no form fits, or two fit equally well.
        """
        best = sorted(set(_longest(self._forms, tags)))
        if len(best) != 1:
            trouble = f"forms {best} fit equally well" if best else "no form fits"
            raise UserError(f"{self._where}: {trouble} the tags {' '.join(sorted(tags))!r}")
        return best[0]


class Lexicon:
    """The ``[starter]`` table of one language, checked: it has words for every fact of the world."""

    def __init__(self, lang: Lang) -> None:
        """Check the table.

        Raises:
            UserError: the language has no ``[starter]`` table, or the table is wrong; names the file and the key.
        """
        self._file = f"langs/{lang.code}.toml"
        if not lang.starter:
            raise UserError(f"{self._file} has no [starter] table, so {lang.english_name} has no starter captions")
        try:
            self._table = table = Table.model_validate(lang.starter)
        except ValidationError as error:
            raise UserError(f"{self._file}: [starter] {describe_error(error)}") from error
        for section, needed in _NEEDED.items():
            given = getattr(table, section)
            where = f"{self._file}: [starter.{section}]"
            if missing := [key for key in needed if key not in given]:
                raise UserError(f"{where} lacks {', '.join(missing)}")
            if unknown := [key for key in given if key not in needed]:
                raise UserError(f'{where} has "{unknown[0]}": {did_you_mean(unknown[0], needed)}')
        self.kinds, self.colors, self.sizes = map(self._entries, ("kinds", "colors", "sizes"))
        self.counts, self.words = map(self._entries, ("counts", "words"))
        self.relations, self.backgrounds, self.rewrites = table.relations, table.backgrounds, table.rewrites
        phrase = {"count", "size", "color", "noun"}
        for section, slots in {"relations": {"a", "b"}, "backgrounds": {"a", "b"}, "phrases": phrase}.items():
            for key, texts in getattr(table, section).items():
                self._check_templates(f"{section}.{key}", texts, slots)
        self._check_templates("sentences", table.sentences, _FACTS)
        self._phrases = {tags: texts for key, texts in table.phrases.items() for tags in expand(key)}
        optional: list[set[str]] = [set(), {"rel"}, {"bg"}, {"rel", "bg"}]
        self.sentences = {frozenset(said): self._sentences(said) for said in optional}

    def phrase(self, tags: Tags) -> tuple[str, ...]:
        """Return the templates of a noun phrase with these tags."""
        if best := _longest(self._phrases, tags):
            return best[0]
        raise UserError(f"{self._file}: [starter.phrases] has no template for the tags {' '.join(sorted(tags))!r}")

    def _sentences(self, said: set[str]) -> list[str]:
        """Return the templates that say both phrases and exactly the facts in ``said``, of ``rel`` and ``bg``."""
        allowed = {"a", "b"} | said
        # A relation says {b} itself, so a sentence with {rel} need not.
        needed = allowed - {"b"} if "rel" in said else allowed
        found = [
            text
            for text in self._table.sentences
            if _slots(_OPTIONAL.sub("", text)) & _FACTS <= allowed and needed <= _slots(text)
        ]
        if not found:
            wanted = " ".join(f"{{{slot}}}" for slot in ("a", "b", "rel", "bg") if slot in allowed)
            raise UserError(f"{self._file}: [starter] sentences: no template says exactly {wanted}")
        return found

    def _entries(self, section: str) -> dict[str, list[Entry]]:
        where = f"{self._file}: [starter.{section}]"
        return {
            key: [Entry(word, self._table.paradigms, f"{where} {key}") for word in words]
            for key, words in getattr(self._table, section).items()
        }

    def _check_templates(self, where: str, texts: tuple[str, ...], slots: Collection[str]) -> None:
        known = {*slots, *self.words}
        for text in texts:
            wrong = f"{self._file}: [starter] {where}:"
            if re.search(r"[][{}]", _SLOT.sub("", _OPTIONAL.sub(r"\1", text))):
                raise UserError(f'{wrong} stray bracket in "{text}"')
            for slot in _SLOT.finditer(text):
                if slot[1] not in known:
                    raise UserError(f'{wrong} unknown slot "{slot[1]}" in "{text}": {did_you_mean(slot[1], known)}')
                if slot[3] not in (None, "a", "b"):
                    raise UserError(f'{wrong} a word agrees with a or b, not "{slot[3]}"')


def fill(template: str, present: Set[str], say: Callable[[str, Tags, str | None], str]) -> str:
    """Replace each slot with ``say(name, tags, phrase)``; drop optional parts with a slot that is not ``present``."""
    kept = _OPTIONAL.sub(lambda part: part[1] if _slots(part[1]) <= present else "", template)
    return _SLOT.sub(lambda slot: say(slot[1], frozenset((slot[2] or "").split()), slot[3]), kept)


def expand(key: str) -> list[Tags]:
    """Write out the alternatives of a key: ``"dat m|n"`` gives ``{dat, m}`` and ``{dat, n}``."""
    return [frozenset(choice) for choice in itertools.product(*(part.split("|") for part in key.split()))]


@functools.cache
def _slots(template: str) -> set[str]:
    return {slot[1] for slot in _SLOT.finditer(template)}


def _longest(forms: Mapping[Tags, T], tags: Tags) -> list[T]:
    """Return the values of the longest keys that are subsets of ``tags``."""
    fitting = [key for key in forms if key <= tags]
    length = max(map(len, fitting), default=0)
    return [forms[key] for key in fitting if len(key) == length]
