"""Concepts whose subject is a phrase of ordinary words, "a [identifier] [class noun]", and changed weights.

DreamBooth and plain LoRA leave such concepts. Settings: `phrases`, one for each subject. Tensors: changes of weights
(`imprint.methods.weight_deltas`) or low-rank factors (`imprint.methods.low_rank`).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from imprint.backbone import Backbone
from imprint.config.methods import PhraseSpec, SampleSpec
from imprint.errors import ConceptError, ConfigError
from imprint.methods.base import Learned, Pictures, numbered_placeholders
from imprint.methods.low_rank import PREFIX, as_tensors, merged_weights, read_factors, summed
from imprint.methods.portable import Portable
from imprint.methods.prompts import require_placeholder
from imprint.methods.rare_tokens import find_identifier, subject_seed
from imprint.methods.shells import shell, trainable_parts
from imprint.methods.weight_deltas import add_deltas
from imprint.sampling.draw import draw_prompts

log = logging.getLogger(__name__)
SECOND_STAGE = "super_resolution."
"""How the names of a super-resolution model's tensors begin; `imprint.methods.dreambooth.super_resolution`."""


def subject_phrase(identifier: str, noun: str) -> str:
    """What `<concept>` reads in prompts: "a [identifier] [class noun]", DreamBooth section 4.1."""
    return " ".join(("a", identifier, noun)).strip()


def phrase_of(backbone: Backbone, pictures: Pictures, spec: PhraseSpec, class_noun: str, seed: int) -> str:
    """The phrase of a subject: the spec's identifier, or rare words drawn for these pictures, with its noun.

    Raises:
        ConfigError: the vocabulary has no rare words.
    """
    noun = class_noun if spec.noun is None else spec.noun
    avoid = (noun, class_noun, *spec.templates, *(pictures.contexts or ()))
    own_seed = subject_seed(pictures.images, seed)
    return subject_phrase(find_identifier(backbone, spec.identifier, seed=own_seed, avoid=avoid), noun)


def spell(prompts: Sequence[str], *phrases: str) -> list[str]:
    """The prompts with the placeholder of each subject spelled out."""
    spelled = list(prompts)
    for placeholder, phrase in zip(numbered_placeholders(len(phrases)), phrases, strict=True):
        spelled = [prompt.replace(placeholder, phrase) for prompt in spelled]
    return spelled


def phrase_concept(
    method: str, phrase: str, class_noun: str, tensors: dict[str, Tensor], spec: PhraseSpec, seed: int
) -> Learned:
    """What tuning leaves of one subject."""
    settings: dict[str, Any] = {
        "subjects": 1, "phrases": [phrase], "tune": spec.model_dump(mode="json"), "seed": seed,
    }  # fmt: skip
    return Learned(method, class_noun, tensors, settings)


def tuned_backbone(backbone: Backbone, learned: Learned) -> Backbone:
    """The backbone with a concept's weights, the rest of it shared.

    Raises:
        ConceptError: the concept does not fit the backbone.
    """
    weights = add_deltas(backbone, learned.tensors, trainable_parts(backbone))
    return shell(backbone, weights | merged_weights(backbone, read_factors(learned.tensors)))


def sample(
    backbone: Backbone,
    learned: Learned,
    prompts: Sequence[str],
    spec: SampleSpec,
    *,
    seeds: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Float[Tensor, "n 3 h w"]:
    """Pictures in [-1, 1] of a concept, one a prompt; `<concept>` in a prompt is where it goes.

    Raises:
        ConfigError: a prompt has no placeholder.
        ConceptError: the concept does not fit the backbone.
    """
    for prompt in prompts:
        require_placeholder(prompt, "prompt", learned.placeholders)
    spelled = spell(prompts, *learned.settings["phrases"])
    return draw_prompts(tuned_backbone(backbone, learned), spelled, spec, seeds=seeds, progress=progress)


def merge(learned: Sequence[Learned], weights: Sequence[float]) -> Learned:
    """Several concepts in one: their low-rank changes are summed, and each subject keeps its phrase.

    Raises:
        ConfigError: two subjects have the same phrase.
        ConceptError: a concept holds whole weights, whose changes do not add up.
    """
    for one in learned:
        if "super_resolution" in one.settings:
            log.warning(
                "merging concepts: super-resolution as tuned on %s is left out", ", ".join(one.settings["phrases"])
            )
        if any(not name.startswith((PREFIX, SECOND_STAGE)) for name in one.tensors):
            raise ConceptError(
                f"merging concepts: one of {one.method} changed all weights, and the sum of such changes is neither "
                "subject; tune it again with LoRA (train=lora)"
            )
    phrases = [phrase for one in learned for phrase in one.settings["phrases"]]
    if double := {phrase for phrase in phrases if phrases.count(phrase) > 1}:
        raise ConfigError(
            f"merging concepts: two subjects are called {min(double)!r}, so a prompt could not tell them apart; tune "
            "one of them again with another seed or identifier.text"
        )
    factors = summed([read_factors(one.tensors) for one in learned], weights)
    settings = {"subjects": len(phrases), "phrases": phrases, "merged": [dict(one.settings) for one in learned]}
    nouns = " and ".join(one.class_noun for one in learned)
    return dataclasses.replace(learned[0], class_noun=nouns, tensors=as_tensors(factors), settings=settings)


def export(learned: Learned, names: Sequence[str] | None = None) -> Portable:
    """The concept for other programs; its triggers are its phrases without the article.

    Raises:
        ConfigError: names were given, and the weights know the subjects by other words.
    """
    triggers = tuple(phrase.removeprefix("a ") for phrase in learned.settings["phrases"])
    if names:
        raise ConfigError(
            f"exporting: the concept was tuned on the words {', '.join(map(repr, triggers))} and is called by no "
            "others; leave --trigger out"
        )
    if "super_resolution" in learned.settings:
        log.warning(
            "exporting: the tuned super-resolution model stays in the concept; other programs get the first stage"
        )
    deltas = {n: value for n, value in learned.tensors.items() if not n.startswith((PREFIX, SECOND_STAGE))}
    return Portable(triggers, lora=read_factors(learned.tensors), deltas=deltas)
