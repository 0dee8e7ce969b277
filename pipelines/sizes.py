"""What SDXL is told of a picture's size: how large it was, where it was cropped, how large it came out.

Each as (height, width) or (top, left), in pixels; a crop's corner lies in the resized picture. Source:
arXiv:2307.01952, section 2.2, in the order of diffusers' `time_ids`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int32

Shape = tuple[int, int]  # height, width
FIELD = "size_conditioning"
"""Where `prepare_shards` notes it in a sample's json."""


def size_conditioning(record: Mapping[str, Any], shape: Shape, size: int | None = None) -> Int32[np.ndarray, "6"]:
    """(original height, width, crop top, left, target height, width) of a sample with the json `record`.

    `shape` is that of its picture in the shard. With `size` the picture was also resized and centre-cropped to such a
    square on reading, after what is noted. A sample without a note, or with one that is not ours, was never resized.
    """
    original, top_left = _noted(record.get(FIELD)) or (shape, (0, 0))
    if size is None or shape == (size, size):
        return np.array([*original, *top_left, *shape], np.int32)
    scale = size / min(shape)
    crop = [
        round(first * scale) + (max(size, round(side * scale)) - size) // 2
        for first, side in zip(top_left, shape, strict=True)
    ]
    return np.array([*original, *crop, size, size], np.int32)


def _noted(note: Any) -> tuple[Shape, tuple[int, int]] | None:
    if not isinstance(note, Mapping):
        return None
    pairs = [note.get("original_size"), note.get("crop_top_left")]
    if not all(isinstance(pair, list) and len(pair) == 2 and all(_is_side(side) for side in pair) for pair in pairs):
        return None
    (height, width), (top, left) = pairs  # type: ignore[misc]
    return (height, width), (top, left)


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
