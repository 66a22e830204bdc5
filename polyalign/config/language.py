"""Languages, one TOML file each: names, script, codes, overrides of recipes, prompts, starter lexicon."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from polyalign.config.shipped import find_shipped, read_toml, shipped_names
from polyalign.config.values import Code
from polyalign.utils.errors import UserError, did_you_mean
from polyalign.utils.text import clean

_RIGHT_TO_LEFT = ("Adlm", "Arab", "Hebr", "Nkoo", "Rohg", "Syrc", "Thaa")
_WITHOUT_SPACES = ("Hani", "Hans", "Hant", "Jpan", "Khmr", "Laoo", "Mymr", "Thai", "Tibt")

Name = Annotated[str, Field(min_length=1, max_length=100)]

_SHOWN = 5  # errors in one message


class PageTexts(BaseModel):
    """The texts of the search page in a language; see ``langs/en.toml``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    search_photos: Name
    describe: Name
    search: Name
    score: Name
    similar: Name
    full_size: Name
    next: Name
    previous: Name
    none: Name
    not_found: Name
    too_long: Name
    busy: Name
    failed: Name


class Lang(BaseModel):
    """A language.

    ``recipe`` overrides keys of any recipe used with the language, such as ``text.max_tokens``. ``starter`` has the
    lexicon and the rules with which ``polyalign.data.starter.grammar`` describes a scene; a language without it has no
    captions in the starter world. A language without ``page`` has the search page in English.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    code: Code
    name: Name
    english_name: Name
    script: str = Field(pattern=r"^[A-Z][a-z]{3}$")
    low_resource: bool
    flores: str | None = Field(None, pattern=r"^[a-z]{3}_[A-Z][a-z]{3}$")
    recipe: dict[str, Any] = {}
    prompts: tuple[str, ...] = ()
    page: PageTexts | None = None
    starter: dict[str, Any] = {}

    @property
    def has_spaces(self) -> bool:
        """Whether the script separates words with spaces."""
        return self.script not in _WITHOUT_SPACES

    @property
    def direction(self) -> Literal["ltr", "rtl"]:
        """Direction of writing, as the attribute ``dir`` of HTML has it."""
        return "rtl" if self.script in _RIGHT_TO_LEFT else "ltr"


def language_codes() -> list[str]:
    """List the codes of all languages, including those in ``./langs``."""
    return shipped_names("langs")


def load_language(code: str) -> Lang:
    """Load the language with this BCP-47 code.

    Raises:
        UserError: there is no file for the language, or it does not fit the schema.
    """
    path = find_shipped("langs", code)
    try:
        lang = Lang.model_validate(read_toml(path))
    except ValidationError as error:
        raise UserError(f"{path} does not describe a language: {describe_error(error)}") from error
    if lang.code != path.stem:
        raise UserError(f'{path} says code = "{lang.code}": the file must be named {lang.code}.toml')
    return lang


def code_of(text: str) -> str:
    """Return the code of the language with this code, English name or own name; other text is returned as it is."""
    if text in language_codes():
        return text
    for lang in map(load_language, language_codes()):
        if text.casefold() in (lang.code.casefold(), lang.english_name.casefold(), lang.name.casefold()):
            return lang.code
    return text


def describe_error(error: ValidationError) -> str:
    """Describe a validation error in one line: the keys, and what is wrong with each."""
    found = [(clean(".".join(map(str, e["loc"])), 100), clean(e["msg"], 500)) for e in error.errors()]
    parts = [f"{key or 'top level'}: {message.removeprefix('Value error, ')}" for key, message in found]
    more = f"; and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
    return "; ".join(parts[:_SHOWN]) + more


def unknown_key_hint(error: ValidationError, model: type[BaseModel]) -> str:
    """Return a hint at the keys of the model if the first error is an unknown key, else nothing."""
    first = error.errors()[0]
    unknown = first["type"] == "extra_forbidden"
    return f"; {did_you_mean(clean(first['loc'][-1], 100), model.model_fields)}" if unknown else ""
