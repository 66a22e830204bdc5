"""Language tokens of translation encoders (NLLB, M2M-100, mBART): which one stands for a language."""

from __future__ import annotations

from typing import Any

from polyalign.config.language import load_language
from polyalign.utils.errors import UserError


def language_token(tokenizer: Any, lang: str | None) -> str | None:
    """Return what ``tokenizer.src_lang`` has to be for the language; None if the tokenizer knows no languages.

    NLLB names languages by their FLORES-200 code (``swh_Latn``), M2M-100 by ISO 639 (``sw``), mBART by both language
    and country (``sw_KE``).

    Raises:
        UserError: the tokenizer does not know the language, or none is given.
    """
    if not hasattr(tokenizer, "src_lang"):
        return None
    if lang is None:
        raise UserError("the text tower needs to know the language of the captions: state it (lang=...)")
    known = _known(tokenizer)
    flores = load_language(lang).flores
    match = next((token for token in known if token in (flores, lang)), None)
    match = match or next((token for token in known if token.partition("_")[0] == lang), None)
    if match is None:
        raise UserError(
            f"the text tower knows no language {lang}"
            + (f" ({flores})" if flores else ": its file in langs/ states no flores code")
            + f"; it knows {len(known)}, such as {', '.join(known[:5])}"
        )
    return match


def _known(tokenizer: Any) -> list[str]:
    """Return the language codes of a tokenizer: its special tokens such as ``swh_Latn`` or ``__sw__``."""
    codes = getattr(tokenizer, "lang_code_to_token", None) or getattr(tokenizer, "fairseq_language_codes", None)
    if codes:
        return sorted(codes)
    tokens = [*tokenizer.get_added_vocab()]
    return sorted(token for token in tokens if not token.startswith("<"))
