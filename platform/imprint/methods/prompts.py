"""Prompts for training: templates, a sample's own context phrases, and text dropping."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from imprint.backbone import PLACEHOLDER
from imprint.errors import ConfigError


def check_templates(templates: Sequence[str]) -> None:
    """Every template must hold the placeholder.

    Raises:
        ConfigError: one does not.
    """
    for template in templates:
        require_placeholder(template, "templates")


def require_placeholder(prompt: str, key: str, placeholders: Sequence[str] = (PLACEHOLDER,)) -> None:
    """A prompt without any of the placeholders would draw anybody.

    Raises:
        ConfigError: `prompt` has none; `key` is the option that it came from.
    """
    if not any(placeholder in prompt for placeholder in placeholders):
        names = " or ".join(placeholders)
        raise ConfigError(f"{key}: {prompt!r} does not say where the concept goes; write {names} in it, as in "
                          f"'a photo of {placeholders[0]} on a beach'")  # fmt: skip


def training_prompts(
    templates: Sequence[str],
    contexts: Sequence[str],
    *,
    context_probability: float,
    text_dropping: float,
    generator: torch.Generator,
) -> list[str]:
    """One prompt for each of `contexts` (empty strings where a sample has none).

    A template, followed by the context with `context_probability`; empty with probability `text_dropping`, so that
    classifier-free guidance keeps an unconditional branch.
    """
    draws = torch.rand(len(contexts), 3, generator=generator, device=generator.device, dtype=torch.float64).tolist()
    prompts = []
    for context, (which, with_context, drop) in zip(contexts, draws, strict=True):
        template = templates[min(int(which * len(templates)), len(templates) - 1)]
        prompt = f"{template}, {context}" if context and with_context < context_probability else template
        prompts.append("" if drop < text_dropping else prompt)
    return prompts
