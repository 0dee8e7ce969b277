"""New words of subjects, as a concept keeps them: embeddings that stand where the placeholders do.

Tensors by name: `word.<subject>.<text encoder>` [vectors, width], both counted from 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.backbone import Backbone, TokenReplacements
from imprint.errors import ConceptError, ConfigError
from imprint.methods.base import Learned

Word = tuple[Float[Tensor, "k width"], ...]
"""A word's embeddings, one tensor for each text encoder."""


def word_tensors(subject: int, vectors: Sequence[Float[Tensor, "k width"]], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of one subject's word, one for each text encoder."""
    return {f"word.{subject}.{n}": vector.detach().to(dtype).clone() for n, vector in enumerate(vectors)}


def words(learned: Learned) -> list[Word]:
    """For each subject its word, one tensor for each text encoder.

    Raises:
        ConceptError: a subject has no word.
    """
    found = []
    for subject in range(len(learned.placeholders)):
        names = sorted(name for name in learned.tensors if name.startswith(f"word.{subject}."))
        if not names:
            raise ConceptError(f"reading a concept: it has no word.{subject}; it was not made by {learned.method}")
        found.append(tuple(learned.tensors[name].float() for name in names))
    return found


def side_by_side(learned: Sequence[Learned]) -> dict[str, Tensor]:
    """The words of several concepts as those of one, numbered anew, in fp32."""
    every = [word for one in learned for word in words(one)]
    tensors: dict[str, Tensor] = {}
    for subject, word in enumerate(every):
        tensors |= word_tensors(subject, word, torch.float32)
    return tensors


def replacements(backbone: Backbone, learned: Learned) -> list[TokenReplacements]:
    """Each subject's word at its placeholder, on the backbone's device."""
    return [
        TokenReplacements(tuple(vector[None].to(backbone.device) for vector in word), placeholder)
        for placeholder, word in zip(learned.placeholders, words(learned), strict=True)
    ]


def named_words(learned: Learned, names: Sequence[str] | None) -> dict[str, Word]:
    """The words by the names that other programs call them by; by default the placeholders.

    Raises:
        ConfigError: there is not one name for each subject.
    """
    triggers = tuple(names or learned.placeholders)
    every = words(learned)
    if len(set(triggers)) != len(every):
        raise ConfigError(f"exporting: got the names {', '.join(triggers)}, expected {len(every)} different ones")
    return dict(zip(triggers, every, strict=True))
