"""Prompts and nouns from strangers: any Unicode, only ever text, and no longer than the model reads."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from imprint.serve.problems import Problem

NOUN_TOKENS = 8
NOUN_LENGTH = 60
_PLACEHOLDER = re.compile(r"(<concept(?:-[1-9][0-9]?)?>)")
PROMPT_LENGTH = 4000
"""Characters; the model's own limit in tokens is far below, and is what messages say."""


def check_text(text: str, key: str) -> str:
    """Text that can be written down at all.

    Raises:
        Problem: 422, a lone surrogate, which is no character, or too many characters.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Problem.of(422, "not-text", f"{key}: character {error.start} is half of a pair; it is no text") from error
    if len(text) > PROMPT_LENGTH:
        raise Problem.of(
            422, "prompt-too-long", f"{key}: got {len(text)} characters, expected {PROMPT_LENGTH} at most",
            limit=PROMPT_LENGTH,
        )  # fmt: skip
    return text


def check_noun(noun: str | None) -> str | None:
    """A class noun of letters, digits, marks, spaces, hyphens and apostrophes.

    Raises:
        Problem: 422.
    """
    if noun is None:
        return None
    noun = " ".join(check_text(noun, "class_noun").split())
    fine = all(unicodedata.category(letter)[0] in "LMN" or letter in " -'’" for letter in noun)
    if not noun or not fine or len(noun) > NOUN_LENGTH:
        raise Problem.of(
            422, "bad-class-noun", f"class_noun: expected a noun such as 'person', {NOUN_LENGTH} letters at most"
        )
    return noun


def literal(prompt: str, tokenizer: Any) -> str:
    """The prompt with the tokenizer's special words taken apart, so that they are read as what they spell."""
    for special in tokenizer.all_special_tokens:
        prompt = prompt.replace(special, f"{special[:1]} {special[1:]}")
    return prompt


def prompt_tokens(tokenizer: Any, prompt: str, widths: Mapping[str, int], default: int = 1) -> int:
    """Tokens that a prompt takes, with as many for a placeholder as `widths` says."""
    total = 0
    for part in _PLACEHOLDER.split(prompt):
        if _PLACEHOLDER.fullmatch(part):
            total += widths.get(part, default)
        elif part.strip():
            total += len(tokenizer(part, add_special_tokens=False)["input_ids"])
    return total


def require_subject(prompt: str, placeholders: Sequence[str], key: str) -> None:
    """A prompt must say where each subject goes, and nothing of subjects that there are not.

    Raises:
        Problem: 422.
    """
    said = set(_PLACEHOLDER.findall(prompt))
    if placeholders and not said & set(placeholders):
        raise Problem.of(
            422, "no-placeholder",
            f"{key}: it does not say where the subject goes; write {' and '.join(placeholders)} in it",
        )  # fmt: skip
    if extra := said - set(placeholders):
        known = f"expected {' and '.join(placeholders)}" if placeholders else "no concept was given"
        raise Problem.of(422, "unknown-placeholder", f"{key}: it says {min(extra)}, and {known}")
