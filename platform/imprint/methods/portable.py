"""A concept in the terms of other programs: low-rank factors, changed weights, new words, and what prompts say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from imprint.methods.low_rank import LowRank


@dataclass(frozen=True, eq=False)
class Portable:
    """What a method's `export` gives; `imprint.tuning.export` writes it in the formats of other programs.

    `triggers` stand in prompts for the subjects, one for each of the concept's placeholders. `lora` is by
    `<part>.<module>` and `deltas` by `<part>.<parameter>`. `words` are the new words' embeddings, for each trigger one
    tensor for each text encoder; a trigger without a word of its own is ordinary text.
    """

    triggers: tuple[str, ...]
    lora: Mapping[str, LowRank] = field(default_factory=dict)
    deltas: Mapping[str, Tensor] = field(default_factory=dict)
    words: Mapping[str, tuple[Float[Tensor, "k width"], ...]] = field(default_factory=dict)
