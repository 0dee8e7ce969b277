"""What a contender drew of one sitter; apart from who draws, so that who judges need not import models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8


@dataclass(frozen=True, eq=False)
class Portrait:
    """Pictures of one sitter: k copies of each of p prompts, and c of the class noun alone by the tuned model.

    `cost` has seconds, steps, memory_mib (as far as it is known), kilobytes of the concept, and draw_seconds of a
    picture.
    """

    images: UInt8[np.ndarray, "p k h w 3"]
    cost: Mapping[str, float] = field(default_factory=dict)
    class_images: UInt8[np.ndarray, "c h w 3"] | None = None
