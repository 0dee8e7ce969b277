"""What textual inversion keeps of a subject: its word's embeddings.

Tensors by name: `word.<subject>.<text encoder>` [vectors, width], both counted from 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.backbone import Backbone, TokenReplacements
from imprint.errors import ConceptError, ConfigError
from imprint.methods.base import Learned
from imprint.methods.portable import Portable


def word_tensors(subject: int, vectors: Sequence[Float[Tensor, "k width"]], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of one subject's word, one for each text encoder."""
    return {f"word.{subject}.{n}": vector.detach().to(dtype).clone() for n, vector in enumerate(vectors)}


def words(learned: Learned) -> list[tuple[Float[Tensor, "k width"], ...]]:
    """For each subject its word, one tensor for each text encoder.

    Raises:
        ConceptError: a subject has no word.
    """
    found = []
    for subject in range(len(learned.placeholders)):
        names = sorted(name for name in learned.tensors if name.startswith(f"word.{subject}."))
        if not names:
            raise ConceptError(f"reading a concept: it has no word.{subject}; it was not made by textual inversion")
        found.append(tuple(learned.tensors[name].float() for name in names))
    return found


def replacements(backbone: Backbone, learned: Learned) -> list[TokenReplacements]:
    """Each subject's word at its placeholder, on the backbone's device."""
    return [
        TokenReplacements(tuple(vector[None].to(backbone.device) for vector in word), placeholder)
        for placeholder, word in zip(learned.placeholders, words(learned), strict=True)
    ]


def merge(learned: Sequence[Learned], weights: Sequence[float]) -> Learned:
    """Several concepts in one: their words side by side.

    Raises:
        ConfigError: a weight is not 1; there is nothing that a word's weight could mean.
    """
    if any(weight != 1 for weight in weights):
        raise ConfigError("merging concepts of textual_inversion: words stand side by side and have no weight; leave "
                          "--weight out")  # fmt: skip
    every = [word for one in learned for word in words(one)]
    tensors: dict[str, Tensor] = {}
    for subject, word in enumerate(every):
        tensors |= word_tensors(subject, word, torch.float32)
    settings = {"subjects": len(every), "merged": [dict(one.settings) for one in learned]}
    nouns = " and ".join(one.class_noun for one in learned)
    return dataclasses.replace(learned[0], class_noun=nouns, tensors=tensors, settings=settings)


def export(learned: Learned, names: Sequence[str] | None = None) -> Portable:
    """The words for other programs, called by `names`, or by the placeholders.

    Raises:
        ConfigError: there is not one name for each subject.
    """
    triggers = tuple(names or learned.placeholders)
    every = words(learned)
    if len(set(triggers)) != len(every):
        raise ConfigError(f"exporting: got the names {', '.join(triggers)}, expected {len(every)} different ones")
    return Portable(triggers, words=dict(zip(triggers, every, strict=True)))
