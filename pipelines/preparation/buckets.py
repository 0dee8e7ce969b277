"""Shapes of pictures: buckets by aspect ratio, and where a picture is cropped, which is noted for SDXL.

Source: arXiv:2307.01952, section 2.3; what is noted: `imprint.pipelines.sizes`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from imprint.config.jobs.shards import PictureSpec
from imprint.pipelines.sizes import Shape


def make_buckets(size: int, step: int, max_aspect: float) -> list[Shape]:
    """All shapes with sides that `step` divides, at most `size`^2 pixels, the longest there are for their short side.

    From the widest to the tallest; the longer side is at most `max_aspect` times the shorter.
    """
    shapes = set()
    for short in range(step, size + 1, step):
        long = size * size // short // step * step
        if long >= short and long <= max_aspect * short:
            shapes |= {(short, long), (long, short)}
    square = size // step * step
    shapes.add((square, square))
    return sorted(shapes, key=lambda shape: (shape[0] / shape[1], shape))


def nearest_bucket(height: int, width: int, buckets: list[Shape]) -> Shape:
    """The bucket whose aspect ratio is nearest on a logarithmic scale, so that the least is cropped."""
    aspect = math.log(height / width)
    return min(buckets, key=lambda shape: abs(math.log(shape[0] / shape[1]) - aspect))


@dataclass(frozen=True)
class Crop:
    """A picture of `original` size is resized to `resized`, and `target` is cut out of it at `top_left`."""

    original: Shape
    resized: Shape
    top_left: tuple[int, int]
    target: Shape

    def record(self) -> dict[str, Any]:
        """As it stands in a sample's json."""
        return {
            "original_size": list(self.original), "crop_top_left": list(self.top_left), "target_size": list(self.target)
        }  # fmt: skip


def place_crop(original: Shape, target: Shape | None, shares: tuple[float, float] = (0.5, 0.5)) -> Crop:
    """The smallest resizing that covers `target`; `shares` in [0, 1] say where in the rest the crop begins.

    Without a target the picture stays as it is.
    """
    if target is None:
        return Crop(original, original, (0, 0), original)
    scale = max(target[0] / original[0], target[1] / original[1])
    resized = max(target[0], round(original[0] * scale)), max(target[1], round(original[1] * scale))
    top, left = (
        int(share * (side - wanted) + 0.5) for share, side, wanted in zip(shares, resized, target, strict=True)
    )
    return Crop(original, resized, (top, left), target)


def apply_crop(array: UInt8[np.ndarray, "h w ..."], crop: Crop) -> UInt8[np.ndarray, "h2 w2 ..."]:
    """A picture or its mask as `crop` says."""
    if array.shape[:2] == crop.resized == crop.target:
        return array
    picture = Image.fromarray(np.ascontiguousarray(array))
    if crop.resized != crop.original:
        picture = picture.resize(crop.resized[::-1], Image.Resampling.LANCZOS)
    (top, left), (height, width) = crop.top_left, crop.target
    return np.asarray(picture.crop((left, top, left + width, top + height)))


def shapes_of(spec: PictureSpec) -> list[Shape] | None:
    """The shapes that pictures may come out with; None where they stay as they are."""
    if spec.mode == "keep":
        return None
    return [(spec.size, spec.size)] if spec.mode == "square" else make_buckets(spec.size, spec.step, spec.max_aspect)
