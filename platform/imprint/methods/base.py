"""What every method has in common: what tuning leaves behind, and the doors it goes through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Pictures:
    """What is known of a concept: pictures in [-1, 1], and for each a mask and context phrases where there are any."""

    images: Float[Tensor, "n 3 h w"]
    masks: Float[Tensor, "n 1 h w"] | None = None
    contexts: Sequence[str] | None = None


@dataclass(frozen=True)
class Learned:
    """What a method learned of one concept: all that sampling needs beside the backbone.

    `tensors` goes to a safetensors file and `settings`, plain JSON, beside it.
    """

    method: str
    class_noun: str
    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)
