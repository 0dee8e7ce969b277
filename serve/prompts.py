"""Prompts as a model reads them: how many tokens they take, and how many it takes."""

from __future__ import annotations

from collections.abc import Mapping

from imprint.backbone import Backbone
from imprint.backbone.text import max_prompt_tokens
from imprint.methods.base import Learned
from imprint.serve.problems import Problem
from imprint.serve.texts import check_text, literal, prompt_tokens

_BEGIN_AND_END = 2


def check_prompt(backbone: Backbone, prompt: str, key: str, widths: Mapping[str, int] | None = None) -> str:
    """The prompt as it is given to the model.

    Raises:
        Problem: 422, longer than the model reads, with the limit.
    """
    for tokenizer in backbone.tokenizers:
        prompt = literal(check_text(prompt, key), tokenizer)
    for tokenizer in backbone.tokenizers:
        limit = max_prompt_tokens(tokenizer) - _BEGIN_AND_END
        count = prompt_tokens(tokenizer, prompt, widths or {})
        if count > limit:
            raise Problem.of(
                422, "prompt-too-long", f"{key}: got {count} tokens, and the model reads {limit}; shorten it",
                limit=limit, got=count,
            )  # fmt: skip
    return prompt


def placeholder_widths(backbone: Backbone, learned: Learned) -> dict[str, int]:
    """How many tokens each of a concept's placeholders takes."""
    tokenizer = backbone.tokenizers[0]
    widths = {}
    for subject, placeholder in enumerate(learned.placeholders):
        word = learned.tensors.get(f"word.{subject}.0")
        if word is not None:
            widths[placeholder] = len(word)
            continue
        phrases = learned.settings.get("phrases")
        # E4T puts a vector for each token of its noun; taming and ProFusion's plain branch read "a noun".
        phrase = phrases[subject] if phrases else f"a {learned.class_noun}"
        widths[placeholder] = max(1, len(tokenizer(phrase, add_special_tokens=False)["input_ids"]))
    return widths
