"""Pictures of one batch by their shape, so that models get them side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import UInt8


def by_shape(
    images: Sequence[UInt8[np.ndarray, "h w 3"]], most: int
) -> Iterator[tuple[list[int], UInt8[np.ndarray, "n h w 3"]]]:
    """Stacks of at most `most` pictures of one shape, each with the places of its pictures in the batch."""
    places: dict[tuple[int, ...], list[int]] = {}
    for i, image in enumerate(images):
        places.setdefault(image.shape, []).append(i)
    for found in places.values():
        for start in range(0, len(found), most):
            part = found[start : start + most]
            yield part, np.stack([images[i] for i in part])
