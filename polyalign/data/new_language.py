"""A file for a new language: its codes and script are checked, and the rest is left to edit."""

from __future__ import annotations

import difflib
import importlib.util
import json
import logging
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import tomli_w
from pydantic import ValidationError

from polyalign.config.language import Lang, describe_error
from polyalign.data.scripts import letters_of
from polyalign.utils.errors import UserError, first_line
from polyalign.utils.files import check_is_file
from polyalign.utils.text import clean

logger = logging.getLogger(__name__)

_PRIVATE = re.compile("q[a-t][a-z]")
_OPTIONAL = """
# Optional: sentences around the name of a class, for `polyalign zeroshot`.
# prompts = ["{}."]

# Optional: what any recipe should change for this language.
# [recipe]
# text.max_tokens = 80
"""


def describe(lang: Lang) -> str:
    """Return the language as a TOML file to edit."""
    fields = lang.model_dump(exclude_none=True, include={"code", "name", "english_name", "script", "flores"})
    text = tomli_w.dumps({**fields, "low_resource": lang.low_resource})
    if lang.flores is None:
        near = flores_codes(lang.code, lang.english_name, lang.script)[:3]
        perhaps = f", perhaps {' or '.join(near)}" if near else ""
        text += f'# flores = "xxx_Xxxx"  # the code in FLORES-200, which NLLB\'s encoder needs{perhaps}\n'
    return text + _OPTIONAL


def new_language(
    code: str, *, name: str, english_name: str, script: str, flores: str | None = None, low_resource: bool
) -> Lang:
    """Check the codes of a language.

    Raises:
        UserError: BCP-47 has no such code, Unicode no such script, FLORES-200 no such code, or a name is too long.
    """
    english_name_of(code)
    if flores is not None:
        _check_flores(flores, script, flores_codes(code, english_name))
    _check_script(script)
    try:
        return Lang(
            code=code, name=name, english_name=english_name, script=script, flores=flores, low_resource=low_resource
        )
    except ValidationError as error:
        raise UserError(f"language {clean(code, 40)}: {describe_error(error)}") from error


def english_name_of(code: str) -> str | None:
    """Return the English name of a language; None for a code of private use (qaa to qtz).

    Raises:
        UserError: BCP-47 has no such code.
    """
    known, first = _registry(), code.partition("-")[0]
    if _PRIVATE.fullmatch(first):
        return None
    if first not in known:
        word = code.casefold()
        named = [one for one, name in known.items() if re.search(rf"\b{re.escape(word)}\b", name.casefold())]
        near = sorted(named, key=lambda one: len(known[one]))[:3] or [one for one in (first[:2],) if one in known]
        hint = ", ".join(f"{one} ({known[one]})" for one in near)
        raise UserError(
            f'"{clean(code, 40)}" is not a language code of BCP-47: '
            + (f"did you mean {hint}?" if hint else "use that of ISO 639, or one of qaa to qtz for a language without")
        )
    return re.sub(r"\s*\(.*?\)", "", known[first].partition(";")[0])


def flores_codes(code: str, english_name: str, script: str | None = None) -> list[str]:
    """Return the FLORES-200 codes that may be those of a language.

    Many are codes of a single language where BCP-47 has that of a group: ``ayr`` (Central Aymara) for ``ay``.
    """
    known = _registry()
    found = [one for one in _flores() if script is None or one.endswith(script)]
    named = [one for one in found if one[:3] == code or (english_name and english_name in known.get(one[:3], ""))]
    return named or [one for one in found if one[:2] == code and one[:3] not in known]


def detect_script(path: Path) -> str:
    """Return the ISO 15924 code of the script of most letters in a text file.

    Raises:
        UserError: the file cannot be read or has no letters, or is Chinese, which has two scripts with common letters.
    """
    from fontTools.unicodedata import script

    check_is_file(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {clean(path)}: {first_line(error)}") from error
    found = Counter(script(letter) for letter in text if letter.isalpha())
    for code in ("Zinh", "Zyyy", "Zzzz"):
        del found[code]
    if not found:
        raise UserError(f"{clean(path)} has no letters: give the script with --script")
    top, count = found.most_common(1)[0]
    logger.info(f"{count / found.total():.0%} of the letters in {clean(path)} are of the script {top}")
    if found["Hira"] + found["Kana"] > found.total() / 10:
        return "Jpan"
    if top == "Hani":
        raise UserError(
            f"{clean(path)} is in Chinese characters: give --script Hans (simplified) or Hant (traditional)"
        )
    return "Kore" if top == "Hang" else str(top)


def _check_script(script: str) -> None:
    from fontTools.unicodedata import Scripts, script_code

    if re.fullmatch("[A-Z][a-z]{3}", script) and letters_of(script) is not None:
        return
    named = script_code(script, script.title())
    near = (
        [named] if named in Scripts.NAMES else difflib.get_close_matches(script.title(), Scripts.NAMES, n=3, cutoff=0.5)
    )
    hint = f"did you mean {' or '.join(near)}?" if near else "such as Latn, Arab or Deva"
    raise UserError(f'"{clean(script, 40)}" is not the ISO 15924 code of a script: {hint}')


def _check_flores(flores: str, script: str, likely: Sequence[str]) -> None:
    known = _flores()
    if flores not in known:
        near = likely[:3] or difflib.get_close_matches(flores, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise UserError(
            f'"{clean(flores, 40)}" is not one of the {len(known)} codes of FLORES-200: {hint}Leave it out if '
            "there is none for the language"
        )
    own = flores[4:]
    if script != own and (script, own) != ("Kore", "Hang"):
        logger.warning(f"warning: {flores} is in the script {own}, and the language in {script}")


def _flores() -> Sequence[str]:
    from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES

    return FAIRSEQ_LANGUAGE_CODES


@cache
def _registry() -> dict[str, str]:
    """Return the English names of languages by BCP-47 code, from the registry's copy in Hugging Face's datasets."""
    spec = importlib.util.find_spec("datasets")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / "utils" / "resources" / "languages.json"
    names: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return names
