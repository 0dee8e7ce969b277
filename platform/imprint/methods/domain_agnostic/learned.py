"""What the domain-agnostic method keeps of a concept: a word, low-rank factors, and the hard token.

Tensors by name: `word.<subject>.<text encoder>` [1, width] and `lora.unet.<module>.down` and `.up`. Settings: `tokens`,
for each subject the id of its hard token for each text encoder; `alpha`, the blend of Eq. 5, or null without the dual
path.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.backbone import Backbone
from imprint.config.methods import DomainAgnosticTuneSpec
from imprint.errors import ConceptError, ConfigError
from imprint.methods.base import Learned
from imprint.methods.batched_low_rank import Factors, as_low_rank
from imprint.methods.low_rank import as_tensors, read_factors, summed
from imprint.methods.portable import Portable
from imprint.methods.weight_deltas import STORAGE
from imprint.methods.words import named_words, side_by_side, word_tensors


def pack(
    backbone: Backbone,
    words: Sequence[Float[Tensor, "1 width"]],
    factors: Factors,
    tokens: Sequence[int],
    alpha: float | None,
    spec: DomainAgnosticTuneSpec,
    *,
    class_noun: str | None,
    seed: int,
) -> Learned:
    """A concept of one subject; without a class noun it is called by its hard token."""
    dtype = STORAGE[spec.storage]
    tensors = word_tensors(0, words, dtype) | as_tensors(as_low_rank(factors, dtype))
    settings: dict[str, Any] = {
        "subjects": 1, "tokens": [list(tokens)], "alpha": alpha, "tune": spec.model_dump(mode="json"), "seed": seed,
    }  # fmt: skip
    return Learned(spec.method, class_noun or backbone.tokenizers[0].decode(tokens[:1]).strip(), tensors, settings)


@torch.no_grad()
def merge(learned: Sequence[Learned], weights: Sequence[float]) -> Learned:
    """Several concepts in one: low-rank changes are summed, and each subject keeps its word and its hard token.

    Raises:
        ConfigError: they are blended differently, so that no one path fits them all.
    """
    alphas = {one.settings["alpha"] for one in learned}
    if len(alphas) > 1:
        blends = ", ".join(sorted(map(str, alphas)))
        raise ConfigError(
            f"merging concepts: those of domain_agnostic have the blends {blends}, expected one for all; tune them "
            "again with the same dual_path"
        )
    factors = summed([read_factors(one.tensors) for one in learned], weights)
    settings = {
        "subjects": sum(len(one.placeholders) for one in learned),
        "tokens": [tokens for one in learned for tokens in one.settings["tokens"]],
        "alpha": alphas.pop(),
        "merged": [dict(one.settings) for one in learned],
    }
    nouns = " and ".join(one.class_noun for one in learned)
    tensors = side_by_side(learned) | as_tensors(factors)
    return dataclasses.replace(learned[0], class_noun=nouns, tensors=tensors, settings=settings)


def export(learned: Learned, names: Sequence[str] | None = None) -> Portable:
    """The word and the LoRA for other programs, called by `names`, or by the placeholders.

    Raises:
        ConceptError: the concept draws by the dual path, which no LoRA can say.
        ConfigError: there is not one name for each subject.
    """
    if learned.settings["alpha"] is not None:
        raise ConceptError(
            "exporting: the concept draws by the dual path, which blends every attention block with its original, and "
            "no file for other programs can say that; tune it again with dual_path.enabled=false"
        )
    named = named_words(learned, names)
    return Portable(tuple(named), lora=read_factors(learned.tensors), words=named)
