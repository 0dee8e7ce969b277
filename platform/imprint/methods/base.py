"""What every method has in common: what tuning leaves behind, and the doors it goes through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Learned:
    """What a method learned of one concept: all that sampling needs beside the backbone.

    `tensors` goes to a safetensors file and `settings`, plain JSON, beside it.
    """

    method: str
    class_noun: str
    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)
