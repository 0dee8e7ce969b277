"""What textual inversion keeps of a subject: its word's embeddings, by the names of `imprint.methods.words`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from imprint.errors import ConfigError
from imprint.methods.base import Learned
from imprint.methods.portable import Portable
from imprint.methods.words import named_words, side_by_side


def merge(learned: Sequence[Learned], weights: Sequence[float]) -> Learned:
    """Several concepts in one: their words side by side.

    Raises:
        ConfigError: a weight is not 1; there is nothing that a word's weight could mean.
    """
    if any(weight != 1 for weight in weights):
        raise ConfigError("merging concepts of textual_inversion: words stand side by side and have no weight; leave "
                          "--weight out")  # fmt: skip
    subjects = sum(len(one.placeholders) for one in learned)
    settings = {"subjects": subjects, "merged": [dict(one.settings) for one in learned]}
    nouns = " and ".join(one.class_noun for one in learned)
    return dataclasses.replace(learned[0], class_noun=nouns, tensors=side_by_side(learned), settings=settings)


def export(learned: Learned, names: Sequence[str] | None = None) -> Portable:
    """The words for other programs, called by `names`, or by the placeholders.

    Raises:
        ConfigError: there is not one name for each subject.
    """
    named = named_words(learned, names)
    return Portable(tuple(named), words=named)
